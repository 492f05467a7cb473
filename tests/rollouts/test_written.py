"""Rollouts that a model writes: who, from which numbers, and what is left behind."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.rollouts.test_generation import ends_at
from tests.tiny_models import VOCABULARY, tiny_llama
from tutelage.core.errors import CheckpointError, DataError
from tutelage.core.records import Prompt, Rollout
from tutelage.models import CausalLM
from tutelage.rollouts import Order, StudentRollouts, TeacherRollouts, Writing
from tutelage.rollouts.engines import Completion, Sampling

WRITING = Writing(sampling=Sampling(max_completion_tokens=6, batch_rows=4))
ORDER = Order(seed=3)


def prompts(num_rows: int = 7) -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    return [
        Prompt(
            student_ids=tuple(
                torch.randint(VOCABULARY, (1 + 3 * row % 8,), generator=generator).tolist()
            ),
            name=f"rows.jsonl:{row + 1}",
        )
        for row in range(num_rows)
    ]


def model(seed: int = 0, **config) -> CausalLM:
    return CausalLM(ends_at(tiny_llama(seed, **config), *range(0, VOCABULARY, 12)))


def source(lm: CausalLM | None = None, writing: Writing = WRITING, order: Order = ORDER):
    return StudentRollouts(lm or model(), prompts(), writing, order)


def ids(rollouts: Sequence[Rollout]) -> list[tuple[int, ...]]:
    """Without the log-probabilities, whose last digits depend on the rows side by side."""
    return [row.completion_ids for row in rollouts]


def test_a_rollout_says_who_wrote_it_how_it_ended_and_what_it_was_drawn_with() -> None:
    found = source().take(7)
    assert {row.prompt.name for row in found} == {prompt.name for prompt in prompts()}
    assert len({row.truncated for row in found}) == 2
    for row in found:
        assert row.source == "student"
        assert row.trained is None
        assert row.truncated == (row.completion_ids[-1] % 12 != 0)
        assert row.sampled_logp is not None
        assert len(row.sampled_logp) == len(row.completion_ids)


def test_the_place_in_the_order_decides_what_is_drawn_and_nothing_else_does() -> None:
    whole = ids(source().take(10))
    pieces = source()
    assert ids(pieces.take(4) + pieces.take(1) + pieces.take(5)) == whole
    one_by_one = WRITING.sampling.model_copy(update={"batch_rows": 1})
    assert ids(source(writing=Writing(sampling=one_by_one)).take(10)) == whole


def test_two_ranks_write_together_what_one_would_have_written() -> None:
    ranks = [source(order=Order(seed=3, rank=rank, num_ranks=2)) for rank in range(2)]
    together = [row for _ in range(2) for rank in ranks for row in rank.take(3)]
    assert ids(together) == ids(source().take(12))


def test_a_prompt_that_comes_again_is_answered_anew() -> None:
    written = source()
    first, second = written.take(7), written.take(7)
    answers = {row.prompt.name: row.completion_ids for row in first}
    assert any(answers[row.prompt.name] != row.completion_ids for row in second)


def test_the_student_writes_with_the_weights_it_has_by_then() -> None:
    lm = model()
    before = source(lm).take(7)
    with torch.no_grad():
        lm.head.weight.add_(torch.randn(lm.head.weight.shape))
    assert source(lm).take(7) != before


def test_a_student_in_training_writes_as_in_evaluation_without_gradients_and_trains_on() -> None:
    lm = model(attention_dropout=0.5)
    expected = source(lm.eval()).take(7)
    lm.train()
    frozen_part = lm.model.model.layers[0].eval()
    randomness = torch.get_rng_state()
    assert source(lm).take(7) == expected
    assert torch.equal(randomness, torch.get_rng_state())
    assert lm.training
    assert lm.model.model.layers[1].training
    assert not frozen_part.training
    assert torch.is_grad_enabled()
    assert all(p.grad is None and p.requires_grad for p in lm.parameters())


def test_gradient_checkpointing_changes_nothing_that_is_written() -> None:
    lm = model()
    expected = source(lm).take(7)
    lm.model.activation_checkpointing_enable({"use_reentrant": False})
    assert source(lm.train()).take(7) == expected


def test_a_source_goes_on_from_its_place_with_nothing_but_the_place_saved() -> None:
    first = source()
    first.take(4)
    state = first.state_dict()
    again = source()
    again.load_state_dict(state)
    assert again.take(5) == first.take(5)
    assert all(isinstance(value, int | float | str | bool | None) for value in state.values())


SHORTER = WRITING.sampling.model_copy(update={"max_completion_tokens": 5})


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"order": Order(seed=4)}, "seed"),
        ({"writing": Writing(sampling=SHORTER)}, "max_completion_tokens"),
        ({"writing": replace(WRITING, skip_empty=True)}, "skip_empty"),
    ],
)
def test_another_source_is_not_gone_on_with(change, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"rollouts\.{name} is .*it must be"):
        source(**change).load_state_dict(source().state_dict())


def test_other_prompts_are_not_gone_on_with() -> None:
    fewer = StudentRollouts(model(), prompts(3), WRITING, ORDER)
    with pytest.raises(CheckpointError, match=r"rollouts\.fingerprint"):
        fewer.load_state_dict(source().state_dict())


def test_more_rows_side_by_side_are_no_other_source() -> None:
    wide = Writing(sampling=WRITING.sampling.model_copy(update={"batch_rows": 64}))
    source(writing=wide).load_state_dict(source().state_dict())


def test_the_teacher_reads_its_own_prompt_and_writes_for_both() -> None:
    own = tuple(range(40, 49))
    one = replace(prompts(1)[0], teacher_ids=own)
    asked: list[Sequence[int]] = []

    def engine(lm, given, sampling, *, generator, num_real):
        asked.extend(given)
        return [Completion(ids=(5, 12), truncated=False, logp=(-0.5, -0.25))]

    written = TeacherRollouts(model(), [one], replace(WRITING, engine=engine), ORDER)
    assert written.take(1) == [
        Rollout(prompt=one, completion_ids=(5, 12), source="teacher", sampled_logp=(-0.5, -0.25))
    ]
    assert asked == [own]
    StudentRollouts(model(), [one], replace(WRITING, engine=engine), ORDER).take(1)
    assert asked[1] == one.student_ids


@pytest.mark.parametrize("skip", [False, True])
def test_an_empty_completion_trains_its_end_or_by_setting_nothing(skip: bool) -> None:  # noqa: FBT001
    lm = CausalLM(ends_at(tiny_llama(), *range(VOCABULARY)))
    found = source(lm, replace(WRITING, skip_empty=skip)).take(7)
    assert all(row.is_empty and len(row.completion_ids) == 1 for row in found)
    assert {row.trained for row in found} == ({(False,)} if skip else {None})


def test_a_completion_cut_after_one_token_is_not_empty() -> None:
    lm = CausalLM(ends_at(tiny_llama()))
    one = Writing(sampling=Sampling(max_completion_tokens=1), skip_empty=True)
    assert not any(row.is_empty or row.trained for row in source(lm, one).take(7))


def test_half_precision_lasts_as_long_as_the_writing() -> None:
    lm = model()
    source(lm, replace(WRITING, dtype=torch.bfloat16)).take(2)
    assert not torch.is_autocast_enabled("cpu")
    assert lm.dtype == torch.float32


def test_tokens_written_are_counted() -> None:
    written = source()
    rows = written.take(4) + written.take(3)
    assert written.num_generated == sum(len(row.completion_ids) for row in rows)


def test_a_prompt_without_room_and_a_source_without_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="must not read more than 8"):
        source(model(max_position_embeddings=8)).take(7)
    with pytest.raises(DataError, match="rollouts is empty"):
        StudentRollouts(model(), [], WRITING, ORDER)
