"""Settings: what may be written, what is refused and how, and that each one does something."""

from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter

from tests.objectives.kinds import Case, every_kind
from tests.objectives.pairs import random_pair, value_and_gradient
from tutelage.core.errors import ConfigError, DataError
from tutelage.objectives import MoveSettings, Objective, ObjectiveSettings, from_settings

KINDS = {
    settings.model_fields["kind"].default: settings
    for settings in get_args(get_args(ObjectiveSettings)[0])
}

PROMISED = (
    "forward_kl reverse_kl jeffreys symmetric_kl jsd skew_forward_kl skew_reverse_kl "
    "total_variation alpha_beta adaptive_kl amid todi direct_logit concrete_score cross_entropy "
    "sampled_token policy_gradient aligned_kl uld dual_space weighted_sum"
)

ONE_PART = {"weight": 1.0, "objective": {"kind": "forward_kl"}}

# For each setting, another value than the default, and what else must be set for it to matter.
OTHER_VALUES: dict[str, Case] = {
    "temperature": {"temperature": 2.0},
    "scale_by_t2": {"scale_by_t2": True, "temperature": 2.0},
    "reverse_weight": {"reverse_weight": 0.9},
    "teacher_share": {"teacher_share": 0.3},
    "student_share": {"student_share": 0.3},
    "scaled": {"scaled": True},
    "detach_mixture": {"detach_mixture": True},
    "alpha": {"alpha": 0.4},
    "beta": {"beta": 0.4},
    "head_mass": {"head_mass": 0.95},
    "curve": {"curve": -1.0},
    "between": {"between": "mixture_student"},
    "measure": {"measure": "alpha_beta"},
    "weight": {"weight": "student"},
    "normalisation": {"normalisation": "std"},
    "weights": {"weights": ["teacher", "uniform"]},
    "mixture": {"mixture": 0.4},
    "weight_temperature": {"weight_temperature": 2.0},
    "labels": {"labels": "teacher"},
    "clip": {"clip": {"kind": "token_weight"}},
    "support": {"support": {"num_entries": 3}},
    "parts": {"parts": [ONE_PART, ONE_PART]},
    "divergence": {"divergence": {"kind": "jsd"}},
}

# Those that matter only where tokenizers differ are tried in cross_vocabulary/.
ACROSS = {("aligned_kl", "rest_weight")}

EVERY_SETTING = [
    (kind, name)
    for kind, settings in KINDS.items()
    for name in settings.model_fields
    if name != "kind" and kind != "dual_space" and (kind, name) not in ACROSS
]


def test_the_kinds_are_the_promised_ones() -> None:
    assert list(KINDS) == PROMISED.split()


@every_kind
def test_settings_survive_being_written_down(case: Case) -> None:
    objective = from_settings(case)
    assert from_settings(objective.model_dump()) == objective
    assert from_settings(objective.model_dump(mode="json", exclude_defaults=True) | case) == (
        objective
    )


@pytest.mark.parametrize(("kind", "name"), EVERY_SETTING)
def test_every_setting_changes_something(kind: str, name: str) -> None:
    base: dict[str, Any] = {"kind": kind}
    if kind == "weighted_sum":
        base["parts"] = [ONE_PART]
    other = base | OTHER_VALUES[name]
    if name == "scale_by_t2":
        base["temperature"] = 2.0
    assert getattr(from_settings(other), name) != getattr(from_settings(base), name)

    student, teacher = random_pair(4, 7)
    labels = torch.tensor([0, 1, 2, 3])
    before = value_and_gradient(from_settings(base), student, teacher, labels)
    after = value_and_gradient(from_settings(other), student, teacher, labels)
    assert not all(torch.allclose(a, b) for a, b in zip(before, after, strict=True))


REFUSED: list[tuple[Case, str]] = [
    ({}, r"^objective\.kind is missing; it must be one of forward_kl, "),
    ({"kind": "forward_lk"}, r"^objective\.kind is forward_lk; .* Did you mean forward_kl\?$"),
    ({"kind": "zzz"}, r"^objective\.kind is zzz; it must be one of forward_kl.*weighted_sum\.$"),
    (
        {"kind": "jsd", "temperatures": 2},
        r"^objective\.temperatures is not a setting of jsd, .*Did you mean temperature\?$",
    ),
    (
        {"kind": "jsd", "beta": 0.5},
        r"^objective\.beta is not a setting of jsd, which has .*teacher_share, scaled\.$",
    ),
    ({"kind": "jsd", "temperature": 0}, r"^objective\.temperature is 0; it must be greater"),
    ({"kind": "jsd", "teacher_share": 1.5}, r"^objective\.teacher_share is 1\.5; it must be less"),
    ({"kind": "jsd", "teacher_share": 0}, r"teacher_share is 0, where .* Use kind: forward_kl"),
    ({"kind": "jsd", "teacher_share": 1}, r"teacher_share is 1, where .* Use kind: reverse_kl"),
    ({"kind": "skew_forward_kl", "teacher_share": 1}, r"teacher_share is 1; it must be less"),
    ({"kind": "skew_reverse_kl", "student_share": 1}, r"student_share is 1; it must be less"),
    ({"kind": "alpha_beta", "alpha": -0.1}, r"^objective\.alpha is -0\.1; it must be"),
    ({"kind": "amid", "curve": 1.1}, r"^objective\.curve is 1\.1; it must be"),
    ({"kind": "adaptive_kl", "head_mass": 1}, r"^objective\.head_mass is 1; it must be"),
    ({"kind": "concrete_score", "temperature": 2}, r"temperature is not a setting of concrete_sc"),
    (
        {"kind": "concrete_score", "weights": ["student", "tutor"]},
        r"^objective\.weights\.1 is 'tutor'; it must be 'student', 'teacher' or 'uniform'\.$",
    ),
    (
        {"kind": "concrete_score", "weights": ["student", "student"], "mixture": 0.1},
        r"^objective\.mixture and weights are both given; it must be one of them\.",
    ),
    (
        {"kind": "concrete_score", "weights": ["uniform", "uniform"], "weight_temperature": 2},
        r"^objective\.weight_temperature is 2 and the weights are uniform",
    ),
    (
        {"kind": "forward_kl", "clip": {"kind": "pointwise", "threshold": 0}},
        r"^objective\.clip\.threshold is 0; it must be greater than 0\.$",
    ),
    (
        {"kind": "jsd", "clip": {"kind": "token_wait"}},
        r"^objective\.clip\.kind is token_wait; .*none, pointwise.* Did you mean token_weight\?$",
    ),
    ({"kind": "jsd", "clip": {}}, r"^objective\.clip\.kind is missing; it must be one of none, "),
    (
        {"kind": "jsd", "clip": {"kind": "token_sum", "treshold": 0.1}},
        r"^objective\.clip\.treshold is not a setting of token_sum.* Did you mean threshold\?$",
    ),
    (
        {"kind": "jsd", "clip": {"kind": "none", "threshold": 0.1}},
        r"^objective\.clip\.threshold is not a setting of none, which has kind\.$",
    ),
    (
        {"kind": "jsd", "support": {"k": 4}},
        r"^objective\.support\.k is not a setting of support, which has chosen_by, num_entries",
    ),
    (
        {"kind": "jsd", "support": {"num_entries": 0}},
        r"^objective\.support\.num_entries is 0; it must be greater",
    ),
    (
        {"kind": "todi", "clip": {"kind": "pointwise"}},
        r"^objective\.clip is not a setting of todi",
    ),
    ({"kind": "weighted_sum"}, r"^objective\.parts is missing"),
    ({"kind": "weighted_sum", "parts": []}, r"^objective\.parts is \[\]"),
    (
        {"kind": "weighted_sum", "parts": [{"weight": 0, "objective": {"kind": "jsd"}}]},
        r"^objective\.parts\.0\.weight is 0; it must be greater than 0\.$",
    ),
    (
        {"kind": "weighted_sum", "parts": [{"weight": 1, "objective": {"kind": "jsd", "x": 1}}]},
        r"^objective\.parts\.0\.objective\.x is not a setting of jsd",
    ),
    (
        {"kind": "weighted_sum", "parts": [{"weight": 1, "objective": {"kind": "kld"}}]},
        r"^objective\.parts\.0\.objective\.kind is kld; it must be one of",
    ),
    (
        {"kind": "weighted_sum", "parts": [{**ONE_PART, "weights": 1}]},
        r"^objective\.parts\.0\.weights is not a setting",
    ),
]


@pytest.mark.parametrize(("case", "complaint"), REFUSED)
def test_a_mistake_is_answered_in_one_line_with_the_way_out(case: Case, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        from_settings(case)
    assert "\n" not in str(caught.value)


def test_an_objective_can_never_be_changed() -> None:
    objective = from_settings({"kind": "jsd"})
    with pytest.raises(ValueError, match="frozen"):
        objective.teacher_share = 0.9


def test_a_tree_of_settings_takes_the_union_as_a_field() -> None:
    schema = TypeAdapter(ObjectiveSettings).json_schema()
    assert set(schema["discriminator"]["mapping"]) == set(KINDS)
    assert set(TypeAdapter(MoveSettings).json_schema()["discriminator"]["mapping"]) == {
        "none",
        "taid",
        "budget",
        "tempered",
        "reward_temperature",
    }


def test_cross_entropy_learns_tokens_where_there_are_some_and_the_teacher_elsewhere() -> None:
    student, teacher = random_pair(3, 6)
    labels = torch.tensor([1, 5, 0])

    def nats(labels_setting: str, ids: torch.Tensor | None) -> torch.Tensor:
        objective = from_settings({"kind": "cross_entropy", "labels": labels_setting})
        return value_and_gradient(objective, student, teacher, ids)[0]

    torch.testing.assert_close(nats("auto", labels), nats("tokens", labels))
    torch.testing.assert_close(nats("auto", None), nats("teacher", labels))
    assert not torch.allclose(nats("auto", labels), nats("auto", None))
    with pytest.raises(DataError, match=r"labels is tokens, and the target carries no token ids"):
        nats("tokens", None)


@every_kind
def test_an_objective_needs_a_teacher_if_and_only_if_another_one_would_change_it(
    case: Case,
) -> None:
    # Near enough that no clip holds every position.
    student, teacher = (side / 4 for side in random_pair(3, 6))
    labels = torch.tensor([0, 5, 2])
    objective = from_settings(case)
    values, _ = value_and_gradient(objective, student, teacher, labels)
    others, _ = value_and_gradient(objective, student, 2 * teacher.flip(0), labels)
    assert objective.needs_teacher == (not torch.equal(values, others))


@pytest.mark.parametrize("label", [-100, 6])
def test_a_label_that_is_no_token_of_both_models_is_refused(label: int) -> None:
    student, teacher = random_pair(3, 6)
    objective = from_settings({"kind": "cross_entropy"})
    with pytest.raises(DataError, match=rf"label is {label}; it must be a token id from 0 to 5"):
        value_and_gradient(objective, student, teacher, torch.tensor([1, label, 0]))


class HalfSquaredGap(Objective):
    """An objective of somebody's own, with nothing but its definition."""

    kind: str = "half_squared_gap"

    def from_logits(self, student_logits, teacher_logits, labels=None):
        return (student_logits - teacher_logits).square().sum(-1) / 2


def test_an_objective_of_ones_own_needs_its_definition_only() -> None:
    student, teacher = random_pair(3, 6)
    values, gradient = value_and_gradient(HalfSquaredGap(), student, teacher)
    torch.testing.assert_close(gradient, student - teacher)
    torch.testing.assert_close(HalfSquaredGap().rows(student, teacher, None), values)
    torch.testing.assert_close(student, gradient)
