"""The loss of a teacher with another tokenizer: its definition, gradients, laws and limits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives.cross_vocabulary.problems import Problem, problem, same_language, slow
from tutelage.core.errors import ConfigError
from tutelage.core.targets import HiddenTarget
from tutelage.objectives import Bridge, Objective, from_settings
from tutelage.objectives.cross_vocabulary import GroupScores, outcomes, sorted_distance
from tutelage.objectives.fused import FusedOptions, fused_loss
from tutelage.objectives.groupwise import can_cross, groupwise_loss, groupwise_per_token

CASES: list[dict[str, Any]] = [
    {"kind": "aligned_kl"},
    {"kind": "aligned_kl", "rest_weight": 0},
    {"kind": "aligned_kl", "rest_weight": 0.5, "divergence": {"kind": "jsd"}},
    {
        "kind": "aligned_kl",
        "divergence": {"kind": "reverse_kl", "temperature": 1.7, "scale_by_t2": True},
    },
    {"kind": "uld"},
    {"kind": "uld", "temperature": 0.6},
    {
        "kind": "weighted_sum",
        "parts": [
            {"weight": 2.0, "objective": {"kind": "uld"}},
            {"weight": 0.5, "objective": {"kind": "cross_entropy", "labels": "tokens"}},
        ],
    },
]
DUAL = {"kind": "dual_space"}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))


def loss_of(given: Problem, objective: Objective, **options: Any) -> Any:
    return groupwise_loss(
        given.hidden,
        given.head,
        given.target,
        objective,
        token_weights=given.weights,
        options=FusedOptions(**options),
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("settings", "kind", "temperature", "rest"),
    [
        ({"kind": "aligned_kl"}, "aligned_kl", 1.0, 1.0),
        (
            {"kind": "aligned_kl", "rest_weight": 0.3, "divergence": {"temperature": 1.6}},
            "aligned_kl",
            1.6,
            0.3,
        ),
        ({"kind": "uld"}, "uld", 1.0, 0.0),
        ({"kind": "uld", "temperature": 2.5}, "uld", 2.5, 0.0),
    ],
)
def test_each_objective_is_its_definition(
    settings: dict[str, Any], kind: str, temperature: float, rest: float, seed: int
) -> None:
    if "divergence" in settings:
        settings = {**settings, "divergence": {"kind": "forward_kl", **settings["divergence"]}}
    own = problem(seed=seed, bias=seed == 1, softcap=3.0 if seed == 2 else None)
    found = loss_of(own, from_settings(settings))
    wanted = slow(own, kind, temperature, rest)
    assert found.per_token.tolist() == pytest.approx(wanted, rel=1e-9)
    by_hand = sum(w * v for w, v in zip(own.weights.tolist(), wanted, strict=True))
    assert float(found.loss) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("case", CASES[:-1], ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_are_those_of_finite_differences(
    case: dict[str, Any], softcap: float | None
) -> None:
    own, objective = problem(bias=True, softcap=softcap), from_settings(case)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        moved = replace(own, hidden=hidden, head=replace(own.head, weight=weight, bias=bias))
        return loss_of(moved, objective, tile_tokens=2).loss * 1.5

    bias = own.head.bias
    assert bias is not None
    inputs = [x.clone().requires_grad_() for x in (own.hidden, own.head.weight, bias)]
    # One random direction of all entries at once: each direction costs two losses, each entry too.
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "total_variation"])
def test_with_one_tokenizer_aligned_kl_is_the_divergence_itself(divergence: str) -> None:
    own = same_language()
    hidden = own.hidden.clone().requires_grad_()
    found = loss_of(
        replace(own, hidden=hidden),
        from_settings({"kind": "aligned_kl", "divergence": {"kind": divergence}}),
    )
    plain = fused_loss(
        hidden,
        own.head,
        replace(own.target.teacher, labels=own.target.labels),
        from_settings({"kind": divergence}),
        token_weights=own.weights,
    )
    torch.testing.assert_close(found.per_token, plain.per_token)
    gradients = [torch.autograd.grad(one.loss, hidden)[0] for one in (found, plain)]
    torch.testing.assert_close(*gradients)
    alone = from_settings({"kind": "aligned_kl", "divergence": {"kind": divergence}})
    as_usual = fused_loss(
        own.hidden, own.head, own.target.teacher, alone, token_weights=own.weights
    )
    torch.testing.assert_close(as_usual.per_token, plain.per_token)


@every_case
def test_a_student_that_is_its_teacher_loses_nothing(case: dict[str, Any]) -> None:
    if case["kind"] == "weighted_sum":
        case = case["parts"][0]["objective"]
    own = same_language()
    teacher = HiddenTarget(hidden=own.hidden, head=own.head, labels=own.target.labels)
    own = replace(own, target=replace(own.target, teacher=teacher))
    hidden = own.hidden.clone().requires_grad_()
    found = loss_of(replace(own, hidden=hidden), from_settings(case))
    (gradient,) = torch.autograd.grad(found.loss, hidden)
    assert float(found.per_token.abs().max()) < 1e-12
    # At equality the absolute values of uld have a corner, and its middle slope is 0.
    assert float(gradient.abs().max()) < 1e-12


@every_case
def test_the_gradient_reaches_the_rows_of_trained_groups_and_no_other(
    case: dict[str, Any],
) -> None:
    if case["kind"] == "weighted_sum":
        case = case["parts"][0]["objective"]
    own = problem()
    columns = [column.tolist() for column in vars(own.target.groups).values()]
    for first, count, *_ in zip(*columns, strict=True):
        weights = torch.zeros(9, dtype=torch.float64)
        weights[first] = 1.0
        hidden = own.hidden.clone().requires_grad_()
        found = loss_of(replace(own, hidden=hidden, weights=weights), from_settings(case))
        (gradient,) = torch.autograd.grad(found.loss, hidden)
        touched = (gradient.abs().sum(dim=1) > 0).nonzero()[:, 0].tolist()
        assert touched == list(range(first, first + count))


@every_case
def test_the_teacher_never_gets_a_gradient(case: dict[str, Any]) -> None:
    own = problem()
    refuse_gradients_of_the_teacher(own, from_settings(case))


def test_the_teacher_of_two_spaces_never_gets_a_gradient() -> None:
    own = problem()
    bridged = replace(own.target, bridge=Bridge(4, 5).double())
    refuse_gradients_of_the_teacher(replace(own, target=bridged), from_settings(DUAL))


def refuse_gradients_of_the_teacher(own: Problem, objective: Objective) -> None:
    """Whoever hands in a teacher that could learn has one that does not."""
    teacher = own.target.teacher
    theirs = [teacher.hidden.clone().requires_grad_(), teacher.head.weight.clone().requires_grad_()]
    moved = replace(teacher, hidden=theirs[0], head=replace(teacher.head, weight=theirs[1]))
    hidden = own.hidden.clone().requires_grad_()
    given = replace(own, hidden=hidden, target=replace(own.target, teacher=moved))
    loss_of(given, objective).loss.backward()
    assert hidden.grad is not None
    assert all(one.grad is None for one in theirs)


@every_case
def test_rows_behind_the_words_of_either_side_play_no_part(case: dict[str, Any]) -> None:
    own, objective = problem(), from_settings(case)
    weight, teacher = own.head.weight.clone(), own.target.teacher
    weight[11:] = 50.0
    theirs = teacher.head.weight.clone()
    theirs[14:] = 50.0
    moved = replace(
        own,
        head=replace(own.head, weight=weight),
        target=replace(
            own.target, teacher=replace(teacher, head=replace(teacher.head, weight=theirs))
        ),
    )
    torch.testing.assert_close(loss_of(own, objective).loss, loss_of(moved, objective).loss)
    # A head without that padding, narrower or as wide as the words, is the same too.
    cut = replace(own, head=replace(own.head, weight=own.head.weight[:11]))
    torch.testing.assert_close(loss_of(own, objective).loss, loss_of(cut, objective).loss)


@every_case
def test_tiles_change_nothing(case: dict[str, Any]) -> None:
    own, objective = problem(), from_settings(case)
    whole = loss_of(own, objective, tile_tokens=100)
    for tile in (1, 2, 3):
        cut = loss_of(own, objective, tile_tokens=tile)
        torch.testing.assert_close(cut.per_token, whole.per_token)
        torch.testing.assert_close(cut.loss, whole.loss)


@every_case
def test_half_precision_is_near(case: dict[str, Any]) -> None:
    own, objective = problem(), from_settings(case)
    exact = loss_of(own, objective).per_token
    near = loss_of(own, objective, matmul_dtype=torch.bfloat16).per_token
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.02, check_dtype=False)


def test_no_groups_are_a_loss_of_nothing_that_can_be_differentiated() -> None:
    own = problem()
    none = replace(own.target.groups, **{n: v[:0] for n, v in vars(own.target.groups).items()})
    teacher = own.target.teacher
    assert teacher.labels is not None
    empty = replace(teacher, hidden=teacher.hidden[:0], labels=teacher.labels[:0])
    own = replace(own, target=replace(own.target, groups=none, teacher=empty))
    hidden = own.hidden.clone().requires_grad_()
    found = loss_of(replace(own, hidden=hidden), from_settings({"kind": "aligned_kl"}))
    (gradient,) = torch.autograd.grad(found.loss, hidden)
    assert float(found.loss.detach()) == 0
    assert not gradient.any()


def test_a_weight_of_nothing_leaves_out_whatever_the_row_holds() -> None:
    own = problem()
    broken = own.hidden.clone()
    broken[0] = torch.nan
    weights = own.weights.clone()
    weights[0] = 0
    hidden = broken.requires_grad_()
    found = loss_of(
        replace(own, hidden=hidden, weights=weights), from_settings({"kind": "aligned_kl"})
    )
    (gradient,) = torch.autograd.grad(found.loss, hidden)
    assert bool(found.loss.isfinite())
    assert bool(gradient.isfinite().all())


def test_values_without_gradients_are_the_same() -> None:
    own, objective = problem(), from_settings({"kind": "uld"})
    values = groupwise_per_token(own.hidden, own.head, own.target, objective)
    torch.testing.assert_close(values, loss_of(own, objective).per_token)


def test_an_objective_over_one_vocabulary_is_refused() -> None:
    own = problem()
    with pytest.raises(ConfigError, match="it must be one across vocabularies"):
        loss_of(own, from_settings({"kind": "forward_kl"}))
    assert can_cross(from_settings(CASES[-1]))
    assert not can_cross(from_settings({"kind": "jsd"}))
    mixed = {"kind": "weighted_sum", "parts": [{"weight": 1, "objective": {"kind": "jsd"}}]}
    assert not can_cross(from_settings(mixed))


def random_side(generator: torch.Generator, size: int, later: list[float]) -> GroupScores:
    scores = 3 * torch.randn(len(later), size, generator=generator, dtype=torch.float64)
    return GroupScores(
        logp=scores.log_softmax(dim=-1),
        first=torch.randint(0, size, (len(later),), generator=generator),
        later=-torch.tensor(later, dtype=torch.float64),
    )


@given(
    seed=st.integers(0, 10**6),
    later=st.lists(st.just(0.0) | st.floats(1e-9, 60), min_size=1, max_size=5),
)
def test_outcomes_are_distributions_whose_divergence_is_never_negative(
    seed: int, later: list[float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    words = problem(seed=seed).target.words
    student, teacher = (random_side(generator, size, later) for size in (11, 14))
    mine, theirs = outcomes(student, teacher, words)
    one = torch.ones(len(later), dtype=torch.float64)
    torch.testing.assert_close(mine.exp().sum(dim=1), one)
    torch.testing.assert_close(theirs.exp().sum(dim=1), one)
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        objective: Any = from_settings({"kind": kind})
        assert bool((objective.divergence(mine, theirs) >= -1e-12).all())


@given(seed=st.integers(0, 10**6))
def test_the_sorted_distance_knows_no_names_and_is_bounded(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(3, 9, generator=generator, dtype=torch.float64).softmax(dim=1)
    other = torch.randn(3, 5, generator=generator, dtype=torch.float64).softmax(dim=1)
    found = sorted_distance(one, other)
    shuffled = sorted_distance(one[:, torch.randperm(9, generator=generator)], other)
    torch.testing.assert_close(found, shuffled)
    torch.testing.assert_close(found, sorted_distance(other, one))
    assert bool((found <= 2).all())
    padded = torch.nn.functional.pad(other, (0, 4))
    assert bool((found <= (one - padded).abs().sum(dim=1) + 1e-12).all())


def test_no_table_of_tokens_by_words_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as the words, no tensor of the tiles or rows is as long as the groups."""
    from tutelage.objectives.fused.scores import LinearScores
    from tutelage.objectives.groupwise import loss as groupwise

    own = same_language(num_tokens=400, num_words=300)
    longest: list[int] = []
    allocate: Callable[[LinearScores, int], None] = LinearScores.allocate

    def watched(self: LinearScores, tile_tokens: int) -> None:
        longest.append(tile_tokens)
        allocate(self, tile_tokens)

    monkeypatch.setattr(groupwise.LinearScores, "allocate", watched)
    loss_of(own, from_settings({"kind": "aligned_kl"}), memory_bytes=1)
    assert longest
    assert max(longest) <= 64
