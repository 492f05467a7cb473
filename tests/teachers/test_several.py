"""Several teachers: each is asked about its own rows alone, and answers where they are."""

import pytest
import torch
from typing_extensions import override

from tests.tiny_models import tiny_llama
from tutelage.core.errors import DataError
from tutelage.core.records import Prompt, Rollout, TokenBatch
from tutelage.core.targets import LogitsTarget
from tutelage.models import CausalLM
from tutelage.teachers import (
    ByRow,
    ByWeight,
    LiveTeacher,
    SeveralTeachers,
    Teacher,
    blended_by,
)
from tutelage.teachers.reading import rows_of_batch
from tutelage.text import collate

ROWS = [
    Rollout(
        prompt=Prompt(student_ids=tuple(range(3, 5 + n)), teacher_ids=tuple(range(9, 10 + 2 * n))),
        completion_ids=tuple(range(40 + n, 42 + 2 * n)),
        trained=None if n % 2 else (True, *(n > 1 for _ in range(n)), True),
        sampled_logp=tuple(-float(i) for i in range(2 + n)),
        advantage=float(n),
    )
    for n in range(5)
]
TEACHERS = {
    name: LiveTeacher(CausalLM(tiny_llama(seed, hidden_size=size)), remember_bytes=2**20)
    for name, seed, size in (("c", 3, 32), ("a", 1, 32), ("b", 2, 48))
}
OWN = ["b", "a", "b", "b", "a"]
BY_ROW = ByRow(
    teacher_of=dict(zip(collate(ROWS).keys, OWN, strict=True)),
)


def fields(batch: TokenBatch) -> dict[str, torch.Tensor]:
    views = {
        f"{side}.{name}": value
        for side in ("student", "teacher")
        for name, value in vars(getattr(batch, side)).items()
    }
    own = {n: v for n, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    return views | own


@pytest.mark.parametrize("rows", [[0], [1, 3], [0, 2, 4], [0, 1, 2, 3, 4]])
def test_some_rows_of_a_batch_are_the_batch_of_those_rows(rows: list[int]) -> None:
    got = rows_of_batch(collate(ROWS), rows)
    want = collate([ROWS[row] for row in rows])
    assert got.keys == want.keys
    assert fields(got).keys() == fields(want).keys()
    for name, value in fields(want).items():
        assert torch.equal(fields(got)[name], value), name


def test_rows_that_both_read_alike_stay_one_view() -> None:
    alike = [Rollout(prompt=Prompt(student_ids=(1, n)), completion_ids=(3, 4)) for n in range(3)]
    some = rows_of_batch(collate(alike), [0, 2])
    assert some.teacher is some.student


def test_each_row_is_answered_by_its_own_teacher() -> None:
    batch = collate(ROWS)
    target = SeveralTeachers(TEACHERS, by=BY_ROW).score(batch)
    # Nobody asked c.
    assert len(target.members) == 2
    assert torch.equal(target.weights.sum(1), torch.ones(len(batch.labels)))
    for number, name in enumerate(("a", "b")):
        rows = [at for at, own in enumerate(OWN) if own == name]
        here = torch.isin(batch.row_of, torch.tensor(rows))
        alone = TEACHERS[name].score(collate([ROWS[row] for row in rows]))
        assert torch.equal(target.members[number].hidden[here], alone.hidden)
        assert torch.equal(target.weights[:, number], here.float())
        assert target.members[number].head.weight is not None
    assert torch.equal(target.labels, batch.labels)


def test_weights_count_alike_in_every_token_and_add_up_to_one() -> None:
    by = blended_by(["a", "b"], {"b": 3.0, "a": 1.0}, "product")
    assert by == ByWeight(weights={"a": 0.25, "b": 0.75}, blend="product")
    assert blended_by(["a", "b"], None, "mixture").weights == {"a": 0.5, "b": 0.5}
    batch = collate(ROWS)
    two = {name: TEACHERS[name] for name in ("a", "b")}
    target = SeveralTeachers(two, by=by).score(batch)
    assert target.blend == "product"
    assert torch.equal(target.weights, torch.tensor([[0.25, 0.75]] * len(batch.labels)))
    assert torch.equal(target.members[1].hidden, TEACHERS["b"].score(batch).hidden)


def test_a_row_without_a_teacher_and_a_teacher_without_hidden_states_are_refused() -> None:
    stranger = Rollout(prompt=Prompt(student_ids=(1,)), completion_ids=(2, 3))
    with pytest.raises(DataError, match="has no teacher; every row must name one"):
        SeveralTeachers(TEACHERS, by=BY_ROW).score(collate([ROWS[0], stranger]))

    class Scores(Teacher):
        @override
        def score(self, batch: TokenBatch) -> LogitsTarget:
            return LogitsTarget(logits=torch.zeros(len(batch.labels), 4), labels=batch.labels)

    by = blended_by(["odd"], None, "mixture")
    with pytest.raises(DataError, match="The teacher odd answers with a LogitsTarget"):
        SeveralTeachers({"odd": Scores()}, by=by).score(collate(ROWS))
