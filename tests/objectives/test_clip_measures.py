"""What a clip holds and what it turns round, counted."""

import torch

from tests.objectives.pairs import golden_pair, random_pair, row
from tutelage.objectives import clip_measures, from_settings, overlap_ratio, reversed_top
from tutelage.objectives.divergences import Entrywise


def entrywise(**settings: object) -> Entrywise:
    objective = from_settings({"kind": "forward_kl", **settings})
    assert isinstance(objective, Entrywise)
    return objective


def test_the_golden_pair_clips_two_entries_and_turns_the_favourite_round() -> None:
    for threshold in (0.05, 0.3):
        objective = entrywise(clip={"kind": "pointwise", "threshold": threshold})
        found = clip_measures(objective, *golden_pair())
        assert found.clipped_entries.item() == 0.5
        torch.testing.assert_close(
            found.clipped_teacher_mass, torch.tensor([1 - 0.11920292]).double(), atol=2e-8, rtol=0
        )
        assert found.reversed_top.item()
        assert found.negative.item() is (threshold < 0.1)


def test_without_a_clip_nothing_is_held_and_nothing_turned_round() -> None:
    found = clip_measures(entrywise(), *random_pair(20, 6))
    assert not found.clipped_entries.any()
    assert not found.clipped_teacher_mass.any()
    assert not found.reversed_top.any()
    assert not found.negative.any()


def test_a_clip_of_positions_holds_all_of_one_and_turns_nothing_round() -> None:
    student, teacher = random_pair(20, 6)
    plain = entrywise().from_logits(student, teacher)
    for kind in ("token_sum", "token_weight"):
        objective = entrywise(clip={"kind": kind, "threshold": 1.0})
        found = clip_measures(objective, student, teacher)
        assert torch.equal(found.clipped_entries == 1, plain >= 1)
        torch.testing.assert_close(found.clipped_teacher_mass, (plain >= 1).double())
        assert not found.reversed_top.any()


def test_measures_are_of_the_temperature_and_the_support() -> None:
    student, teacher = random_pair(3, 4, 9)
    clip = {"kind": "pointwise", "threshold": 0.1}
    support = {"num_entries": 2}
    hot = clip_measures(entrywise(clip=clip, temperature=2.0), student, teacher)
    plain = clip_measures(entrywise(clip=clip), student / 2, teacher / 2)
    assert hot.clipped_entries.shape == (3, 4)
    torch.testing.assert_close(hot.clipped_entries, plain.clipped_entries)
    torch.testing.assert_close(hot.clipped_teacher_mass, plain.clipped_teacher_mass)
    few = clip_measures(entrywise(clip=clip, support=support), student, teacher)
    assert set((few.clipped_entries * 3).round(decimals=6).flatten().tolist()) <= {0, 1, 2, 3}


def test_a_favourite_is_turned_round_only_where_the_student_is_below_the_teacher() -> None:
    student, teacher = row([0.0, 1.0]).log_softmax(-1), row([1.0, 0.0]).log_softmax(-1)
    assert reversed_top(student, teacher, row([0.1, -0.1])).item()
    assert not reversed_top(student, teacher, row([-0.1, 0.1])).item()
    assert not reversed_top(teacher, teacher, row([0.1, -0.1])).item()


def test_overlap_is_the_share_of_favourites_in_common() -> None:
    student, teacher = row([3.0, 2.0, 1.0, 0.0]), row([3.0, 1.0, 2.0, 0.0])
    assert overlap_ratio(student, teacher, num_entries=1).item() == 1
    assert overlap_ratio(student, teacher, num_entries=2).item() == 0.5
    assert overlap_ratio(student, -student, num_entries=2).item() == 0
    assert overlap_ratio(student, -student, num_entries=99).item() == 1
