"""Weights row by row: what teachers find likely, and what a classifier has said beforehand."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.teachers.test_several import ROWS, TEACHERS
from tutelage.core.errors import DataError
from tutelage.core.targets import HiddenTarget
from tutelage.teachers import ByLikelihood, ByShares, LikelihoodRouter, SeveralTeachers, shares_by
from tutelage.teachers.routed import mean_log_likelihood
from tutelage.text import collate

NAMES = list(TEACHERS)


def slow_means(target: HiddenTarget, labels: Tensor, row_of: Tensor, mask: Tensor) -> list[float]:
    """The definition, one Python float at a time."""
    weight = target.head.weight[: target.head.num_real].double()
    scores = (target.hidden.double() @ weight.T).tolist()
    found: dict[int, list[float]] = {}
    for one, label, row, trained in zip(
        scores, labels.tolist(), row_of.tolist(), mask.tolist(), strict=True
    ):
        if trained:
            total = math.log(math.fsum(math.exp(x) for x in one))
            found.setdefault(row, []).append(one[label] - total)
    return [sum(v) / len(v) for _, v in sorted(found.items())]


@pytest.mark.parametrize("num_real", [None, 200])
def test_a_rows_likelihood_is_the_mean_over_its_trained_tokens(num_real: int | None) -> None:
    batch = collate(ROWS)
    mask = torch.ones_like(batch.loss_mask)
    # Not the last token of a row, nor one of the first.
    mask[[1, len(mask) - 2]] = False
    batch = replace(batch, loss_mask=mask)
    target = TEACHERS["b"].score(batch)
    target = replace(target, head=replace(target.head, num_real=num_real))
    got = mean_log_likelihood(target, batch)
    assert got.tolist() == pytest.approx(slow_means(target, batch.labels, batch.row_of, mask))
    assert not got.requires_grad


@given(
    st.lists(st.floats(-20, 0), min_size=3, max_size=3),
    st.floats(0.1, 10),
    st.sampled_from([None, 1, 2, 3]),
)
def test_shares_are_a_softmax_over_the_best(
    scores: list[float], temperature: float, top: int | None
) -> None:
    got = shares_by(torch.tensor([scores], dtype=torch.float64), temperature=temperature, top=top)[
        0
    ].tolist()
    best = sorted(range(3), key=lambda m: (-scores[m], m))[: top or 3]
    powers = {m: math.exp((scores[m] - max(scores)) / temperature) for m in best}
    want = [powers.get(m, 0.0) / sum(powers.values()) for m in range(3)]
    assert got == pytest.approx(want)
    assert sum(got) == pytest.approx(1)


def test_of_equals_the_first_is_the_best() -> None:
    same = torch.zeros(2, 3)
    assert shares_by(same, temperature=1.0, top=1).tolist() == [[1, 0, 0]] * 2
    assert shares_by(same, temperature=1.0, top=2).tolist() == [[0.5, 0.5, 0]] * 2


def test_two_teachers_at_temperature_one_count_as_in_ca_mkd() -> None:
    """(1 - softmax(cross-entropy)) / (M - 1), which for three is another number."""
    cross_entropy = torch.tensor([[0.3, 2.0], [4.0, 1.0]])
    want = (1 - cross_entropy.softmax(dim=1)) / 1
    torch.testing.assert_close(shares_by(-cross_entropy, temperature=1.0, top=None), want)
    three = torch.tensor([[0.3, 2.0, 1.0]])
    theirs = (1 - three.softmax(dim=1)) / 2
    mine = shares_by(-three, temperature=1.0, top=None)
    assert mine.argmax() == theirs.argmax()
    assert float(mine.max()) > float(theirs.max())


def test_whoever_finds_a_row_likelier_counts_more_in_all_of_its_tokens() -> None:
    batch = collate(ROWS)
    router = LikelihoodRouter(temperature=0.5)
    target = SeveralTeachers(TEACHERS, by=ByLikelihood(router=router)).score(batch)
    means = torch.stack(
        [mean_log_likelihood(TEACHERS[name].score(batch), batch) for name in NAMES], dim=1
    )
    want = (means / 0.5).softmax(dim=1).float()
    assert torch.equal(target.weights, want[batch.row_of])
    assert target.blend == "mixture"
    assert len(target.members) == 3
    assert target.row_shares is not None
    assert list(target.row_shares) == NAMES
    assert list(target.row_shares.values()) == pytest.approx(want.sum(dim=0).tolist())


@pytest.mark.parametrize("top", [1, 2])
def test_the_best_alone_are_blended(top: int) -> None:
    batch = collate(ROWS)
    by = ByLikelihood(router=LikelihoodRouter(top=top))
    target = SeveralTeachers(TEACHERS, by=by).score(batch)
    assert ((target.weights > 0).sum(dim=1) == top).all()
    assert target.row_shares is not None
    chosen = [name for name in NAMES if target.row_shares[name] > 0]
    assert len(target.members) == len(chosen)
    for member, name in zip(target.members, chosen, strict=True):
        assert torch.equal(member.hidden, TEACHERS[name].score(batch).hidden)


def test_a_rows_weights_do_not_look_at_its_neighbours() -> None:
    teachers = SeveralTeachers(TEACHERS, by=ByLikelihood(router=LikelihoodRouter()))
    together = teachers.score(collate(ROWS))
    alone = [teachers.score(collate([row])) for row in ROWS]
    assert torch.equal(together.weights, torch.cat([one.weights for one in alone]))


def test_a_row_without_a_trained_token_is_everybodys() -> None:
    batch = collate(ROWS)
    batch = replace(batch, loss_mask=batch.loss_mask & (batch.row_of != 2))
    by = ByLikelihood(router=LikelihoodRouter())
    weights = SeveralTeachers(TEACHERS, by=by).score(batch).weights
    assert weights[batch.row_of == 2].unique().tolist() == pytest.approx([1 / 3])


def test_only_teachers_that_count_in_a_row_are_asked_about_it() -> None:
    batch = collate(ROWS)
    given = [(0.0, 1.0, 0.0), (0.0, 0.25, 0.75), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.5, 0.5)]
    by = ByShares(shares_of=dict(zip(batch.keys, given, strict=True)))
    target = SeveralTeachers(TEACHERS, by=by).score(batch)
    assert len(target.members) == 2
    assert torch.equal(target.weights, torch.tensor(given)[batch.row_of][:, 1:])
    assert target.row_shares == {NAMES[0]: 0.0, NAMES[1]: 2.75, NAMES[2]: 2.25}
    own = torch.isin(batch.row_of, torch.tensor([1, 3, 4]))
    last = target.members[1].hidden
    assert torch.equal(last[own], TEACHERS[NAMES[2]].score(batch).hidden[own])
    assert not last[~own].any()
    with pytest.raises(DataError, match="has no teacher; every row must name one"):
        SeveralTeachers(TEACHERS, by=ByShares(shares_of={})).score(batch)
