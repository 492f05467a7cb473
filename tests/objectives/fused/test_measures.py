"""What evaluation reads: divergences, entropies and favourites from hidden states and heads."""

import pytest
import torch

from tests.objectives.fused.problems import (
    FEATURES,
    fused,
    in_dtype,
    make_case,
    objective_of,
    scores_of,
)
from tutelage.core.targets import HiddenTarget
from tutelage.objectives.fused import FusedOptions, excluded_mass_of_hidden, fused_measures


@pytest.mark.parametrize(
    "features", ["plain", "softcap", "num_real", "narrower student", "unlike teacher"]
)
@pytest.mark.parametrize("tile", [None, 5])
def test_measures_are_their_definitions(features: str, tile: int | None) -> None:
    case = in_dtype(make_case(FEATURES[features]), torch.float64)
    target = case.target
    assert isinstance(target, HiddenTarget)
    found = fused_measures(case.hidden, case.head, target, options=FusedOptions(tile_tokens=tile))
    student, teacher = scores_of(case.hidden, case.head), scores_of(target.hidden, target.head)
    reals = (case.head.num_real or 51, target.head.num_real or 51)
    shared = min(student.shape[1], teacher.shape[1], *reals)
    q, p = (side[:, :shared].detach().log_softmax(-1) for side in (student, teacher))

    torch.testing.assert_close(found.forward_kl, (p.exp() * (p - q)).sum(-1))
    torch.testing.assert_close(found.reverse_kl, (q.exp() * (q - p)).sum(-1))
    torch.testing.assert_close(found.student_entropy, -(q.exp() * q).sum(-1))
    torch.testing.assert_close(found.teacher_entropy, -(p.exp() * p).sum(-1))
    rows = torch.arange(13)
    torch.testing.assert_close(found.student_label_logp, q[rows, target.labels])
    torch.testing.assert_close(found.teacher_label_logp, p[rows, target.labels])
    assert torch.equal(found.student_top, q.argmax(-1))
    assert torch.equal(found.teacher_top, p.argmax(-1))
    assert torch.equal(found.agree, q.argmax(-1) == p.argmax(-1))


def test_measures_and_the_loss_tell_the_same_divergence() -> None:
    case = make_case(FEATURES["bias"], dtype=torch.bfloat16)
    found = fused_measures(case.hidden, case.head, case.target)
    values, _ = fused(case, objective_of({"kind": "forward_kl"}))
    torch.testing.assert_close(found.forward_kl, values, rtol=1e-5, atol=1e-6)
    assert not found.forward_kl.requires_grad
    assert not found.student_entropy.requires_grad


def test_without_a_teacher_there_are_the_students_own_measures() -> None:
    case = make_case(FEATURES["bias"])
    labels = case.target.labels
    found = fused_measures(case.hidden, case.head, None, labels=labels)
    logp = scores_of(case.hidden, case.head).detach().log_softmax(-1)
    torch.testing.assert_close(found.student_label_logp, logp[torch.arange(13), labels])
    assert found.forward_kl is None
    assert found.agree is None
    assert fused_measures(case.hidden, case.head, None).student_label_logp is None


def test_no_token_gives_empty_measures() -> None:
    case = make_case(FEATURES["bias"], num_tokens=0)
    found = fused_measures(case.hidden, case.head, case.target)
    assert found.forward_kl.shape == found.agree.shape == (0,)


def test_a_label_behind_the_shared_entries_has_no_probability() -> None:
    case = make_case(FEATURES["num_real"])
    labels = case.target.labels
    labels[5] = 45
    found = fused_measures(case.hidden, case.head, case.target)
    for logp in (found.student_label_logp, found.teacher_label_logp):
        assert logp.isinf().nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("features", ["plain", "num_real", "unlike teacher"])
@pytest.mark.parametrize("tile", [None, 5])
def test_the_mass_behind_the_shared_entries_is_told(features: str, tile: int | None) -> None:
    case, options = make_case(FEATURES[features]), FusedOptions(tile_tokens=tile)
    p = scores_of(case.hidden, case.head).detach().softmax(-1)
    found = excluded_mass_of_hidden(case.hidden, case.head, num_shared=40, options=options)
    torch.testing.assert_close(found, p[:, 40:].sum(-1))
    whole = excluded_mass_of_hidden(case.hidden, case.head, num_shared=51, options=options)
    torch.testing.assert_close(whole, torch.zeros(13))


def test_two_sides_that_rule_out_the_same_entry_have_a_finite_divergence() -> None:
    case = make_case(FEATURES["bias"])
    target = case.target
    assert isinstance(target, HiddenTarget)
    with torch.no_grad():
        case.head.bias[3] = -torch.inf
        target.head.bias[3] = -torch.inf
    found = fused_measures(case.hidden, case.head, target)
    assert found.forward_kl.isfinite().all()
    assert found.student_entropy.isfinite().all()
