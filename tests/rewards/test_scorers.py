"""math-verify and reasoning-gym as judges: right, wrong, malformed and hostile answers."""

import importlib.util
import json
from typing import Any

import pytest

from tests.rewards.rollouts import judged, rollout_of
from tutelage.core.errors import ConfigError, DataError, MissingDependencyError
from tutelage.core.records import Verdict
from tutelage.rewards import (
    Boxed,
    ExactAnswerSettings,
    MathAnswerSettings,
    ReasoningGymSettings,
    RewardSettings,
    Verifier,
    WeightedReward,
    WeightedSumSettings,
    Whole,
    make_verifier,
)
from tutelage.rewards.sandbox import Scorer, best_isolation


@pytest.fixture(scope="module")
def math() -> Verifier:
    return make_verifier(MathAnswerSettings(cpu_seconds=2))


@pytest.fixture(scope="module")
def gym() -> Verifier:
    return make_verifier(ReasoningGymSettings(extract=Whole(), cpu_seconds=2))


def verdicts_of(verifier: Verifier, row: dict[str, Any], *texts: str) -> list[Verdict]:
    return verifier.judge([rollout_of(row)] * len(texts), texts)


def rewards_by(verifier: Verifier, row: dict[str, Any], *texts: str) -> list[float]:
    return [verdict.reward for verdict in verdicts_of(verifier, row, *texts)]


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (r"\frac{1}{2}", ["0.5", "1/2", r"\dfrac{2}{4}", r"\frac12"], ["2", "0.51", "-1/2"]),
        ("12", ["12", "12.0", r"3 \cdot 4", r"\text{12}"], ["13", "21", "x"]),
        (7, ["7"], ["8"]),
        ("x^2 + 2x + 1", ["(x+1)^2"], ["(x-1)^2", "x^2"]),
        (r"\{1, 2\}", [r"\{2, 1\}"], [r"\{1, 3\}"]),
        (r"$\sqrt{8}$", [r"2\sqrt{2}"], ["8"]),
    ],
)
def test_an_equal_expression_is_right_however_it_is_written(
    math: Verifier, gold: str | int, right: list[str], wrong: list[str]
) -> None:
    texts = [f"So the answer is \\boxed{{{answer}}}." for answer in (*right, *wrong)]
    rewards = rewards_by(math, {"answer": gold}, *texts)
    assert rewards == [1.0] * len(right) + [0.0] * len(wrong)


def test_only_the_last_box_counts_and_a_malformed_answer_is_wrong(math: Verifier) -> None:
    texts = [
        r"\boxed{3} no: \boxed{4}",
        r"\boxed{4} no: \boxed{3}",
        "4",
        r"\boxed{4",
        r"\boxed{}",
        r"\boxed{\frac{}{}}",
        r"\boxed{))((}",
        "",
    ]
    assert rewards_by(math, {"answer": "4"}, *texts) == [1, 0, 0, 0, 0, 0, 0, 0]


def test_anywhere_finds_an_answer_without_a_box() -> None:
    settings = MathAnswerSettings(extract="anywhere")
    texts = ["It is $4$.", "The answer is 4", "The answer is 5", "who knows"]
    assert [v.reward for v in judged(settings, {"answer": "4"}, *texts)] == [1, 1, 0, 0]


def test_an_answer_that_computes_for_ever_is_wrong_and_harms_no_later_one(math: Verifier) -> None:
    tower = r"\boxed{9^{9^{9^{9^{9}}}}}"
    factorial = r"\boxed{(10^{9})!}"
    texts = [tower, r"\boxed{4}", factorial, "\\boxed{" + "(" * 5000 + "}", r"\boxed{4}"]
    verdicts = verdicts_of(math, {"answer": "4"}, *texts)
    assert [verdict.reward for verdict in verdicts] == [0, 1, 0, 0, 1]


def test_a_row_that_math_verify_cannot_read_is_named(math: Verifier) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:7 has .* in column 'answer'; it must be an"):
        verdicts_of(math, {"answer": "$$"}, r"\boxed{4}")
    with pytest.raises(DataError, match="has no column 'answer'"):
        verdicts_of(math, {"result": "4"}, r"\boxed{4}")


TASKS = ["gsm_symbolic", "chain_sum", "countdown", "letter_counting", "spiral_matrix", "rearc"]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_gives_its_own_answer_full_marks_and_nonsense_few(gym: Verifier, task: str) -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    row = dict(reasoning_gym.create_dataset(task, size=1, seed=3)[0])
    # As rows come: from memory, from a file, and with metadata as text.
    from_file = json.loads(json.dumps(row))
    as_text = {**row, "metadata": json.dumps(row["metadata"])}
    for form in (row, from_file, as_text):
        right, nonsense = rewards_by(gym, form, str(row["answer"]), "zz")
        assert right == 1
        assert nonsense <= 0.1


SPIRAL = {"question": "?", "answer": "1 2", "metadata": {"source_dataset": "spiral_matrix"}}


def test_an_answer_that_is_python_runs_where_it_can_do_no_harm(
    gym: Verifier, tmp_path_factory: pytest.TempPathFactory
) -> None:
    planted = tmp_path_factory.mktemp("outside") / "planted"
    texts = [
        f"[open({str(planted)!r}, 'w')]",
        "[9**9**9]",
        "['x' * 2**33]",
        "[__import__('os').kill(__import__('os').getppid(), 9)]",
        "[__import__('os')._exit(0)]",
        "1 2",
    ]
    verdicts = verdicts_of(gym, SPIRAL, *texts)
    assert [verdict.reward for verdict in verdicts][-1] == 1
    assert all(verdict.reward < 1 for verdict in verdicts[:-1])
    assert verdicts[0].parts["isolated"] == float(best_isolation().namespaces)
    if best_isolation().namespaces:
        assert not planted.exists()


def test_an_answer_that_waits_for_ever_is_stopped_by_the_clock() -> None:
    settings = ReasoningGymSettings(extract=Whole(), cpu_seconds=1)
    sleeper, right = judged(settings, SPIRAL, "[__import__('time').sleep(99)]", "1 2")
    assert (sleeper.reward, right.reward) == (0, 1)
    assert sleeper.note == "not judged: out of time"


def test_the_task_can_be_named_in_the_settings() -> None:
    settings = ReasoningGymSettings(dataset="spiral_matrix", metadata_column="meta")
    row = {"answer": "1 2", "meta": {"difficulty": {}}}
    texts = ["<answer>1 2</answer>", "<answer>2 1</answer>", "1 2"]
    verdicts = judged(settings, row, *texts)
    assert [verdict.reward == 1 for verdict in verdicts] == [True, False, False]
    assert verdicts[2].note == "no answer found by tag"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"answer": "1"}, "has no column 'metadata'"),
        ({"answer": "1", "metadata": {}}, "has no source_dataset"),
        ({"answer": "1", "metadata": "no json"}, "has metadata that is not JSON"),
        ({"answer": "1", "metadata": {"a": {1j}}}, "has metadata that is not JSON"),
        ({"answer": "1", "metadata": [1]}, "has a list in column 'metadata'"),
        ({"answer": "1", "metadata": {"source_dataset": "chess"}}, "has source_dataset 'chess'"),
        ({"metadata": {"source_dataset": "chain_sum"}}, "has no column 'answer'"),
    ],
)
def test_a_row_that_no_task_made_is_named(
    gym: Verifier, row: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        verdicts_of(gym, row, "1")


def test_a_task_that_does_not_exist_is_a_wrong_setting() -> None:
    settings = ReasoningGymSettings(dataset="chess", extract=Whole())
    with pytest.raises(ConfigError, match=r"rewards\.dataset is 'chess'"):
        judged(settings, {"answer": "1", "metadata": {"a": 1}}, "1")


@pytest.mark.parametrize("settings", [MathAnswerSettings(), ReasoningGymSettings()])
def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(
    settings: RewardSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tutelage\[rewards\]'"):
        make_verifier(settings)


def test_a_package_that_cannot_be_imported_apart_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer("math_verify", best_isolation(), cpu_seconds=1, memory_megabytes=20)
    with pytest.raises(MissingDependencyError, match="math-verify cannot be imported"):
        scorer.ask([{"gold": "1", "answer": "1"}])


def test_library_judges_can_be_part_of_a_sum() -> None:
    settings = WeightedSumSettings(
        parts={
            "equal": WeightedReward(weight=1.0, reward=MathAnswerSettings()),
            "same": WeightedReward(weight=0.5, reward=ExactAnswerSettings(extract=Boxed())),
        }
    )
    texts = [r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{2}"]
    assert [v.reward for v in judged(settings, {"answer": "0.5"}, *texts)] == [1.0, 1.5, 0.0]
