import random
from pathlib import Path

import pytest
from benchmarks.step_pairs import LONGEST_ROW, ROWS_PER_BATCH, SHORTEST_ROW, random_batch

from benchmarks import command, step, step_peers, step_work


def batch_of(seed: int) -> step_work.Batch:
    return random_batch(random.Random(seed))  # noqa: S311  row lengths, not secrets


def answer(tokens_per_second: float, losses: list[float], memory: float = 2**20) -> dict:
    return {
        "tokens_per_second": tokens_per_second,
        "step_seconds": 1.0,
        "first_step_seconds": 2.0,
        "cpu_per_wall": 1.0,
        "memory_bytes": memory,
        "losses": losses,
        "probe_seconds": 0.1,
    }


def test_random_rows_are_ragged_and_about_half_prompt() -> None:
    rows = [row for seed in range(20) for row in batch_of(seed)]
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    assert len(rows) == 20 * ROWS_PER_BATCH
    assert SHORTEST_ROW <= min(lengths) < max(lengths) <= LONGEST_ROW
    share = sum(len(prompt) for prompt, _ in rows) / sum(lengths)
    assert share == pytest.approx(0.5, abs=0.05)


def test_every_process_reads_the_rows_that_were_written(tmp_path: Path) -> None:
    batches = [batch_of(seed) for seed in range(3)]
    step_work.write_batches(tmp_path, batches)
    assert step_work.read_batches(tmp_path, num_steps=2) == batches[:2]


def test_padding_trains_completions_and_nothing_else() -> None:
    batch = step_peers.padded([([5, 6], [7]), ([5], [6, 7, 8])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [5, 6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100], [-100, 6, 7, 8]]
    assert batch["prompts"].tolist() == [[5, 6], [0, 5]]
    assert batch["prompt_attention_mask"].tolist() == [[1, 1], [0, 1]]


def test_the_first_step_is_not_in_the_speed() -> None:
    clock = step_work.StepClock()
    clock.wall_seconds, clock.cpu_seconds, clock.losses = [100.0, 2.0], [90.0, 1.8], [0.5, 0.4]
    said = clock.answer([[([1], [2])], [([1, 2], [3, 4])]], memory_bytes=7)
    assert said["tokens_per_second"] == 2.0
    assert said["first_step_seconds"] == 100.0
    assert said["cpu_per_wall"] == pytest.approx(0.9)


def test_what_a_student_wrote_is_what_its_speed_counts() -> None:
    clock = step_work.StepClock()
    clock.wall_seconds, clock.cpu_seconds, clock.written = [9.0, 2.0], [9.0, 2.0], [50, 60]
    said = clock.answer([[([1], [2])], [([1, 2], [3, 4])]], memory_bytes=7)
    assert said["tokens_per_second"] == 30.0


def test_on_policy_nobody_is_compared_who_cannot_write_nor_any_loss() -> None:
    plan = step.plan_from(["--new-tokens", "96"])
    names = [row.name for row in step.IMPLEMENTATIONS if plan.includes(row)]
    assert "ours, bf16" in names
    assert step.YARDSTICK in names
    assert step.REFERENCE not in names
    assert "no losses are compared" in step.said_of_losses(plan, {})
    assert plan.title == "random pair, 96 new tokens at most"


def test_losses_are_compared_step_by_step_with_the_plain_fp32_ones() -> None:
    answers = {
        step.REFERENCE: [answer(1, [0.5, 0.4])],
        "ours, fp32": [answer(5, [0.5, 0.41])],
        "failed": [{"error": "killed"}],
    }
    differences = step.loss_differences(answers)
    assert differences["ours, fp32"] == pytest.approx(0.01)
    assert differences["failed"] != differences["failed"]


def test_the_table_gives_ratios_to_trl_and_names_what_failed() -> None:
    answers = {
        step.YARDSTICK: [answer(100, [0.5], memory=800 * 2**20)],
        "ours, bf16": [answer(900, [0.5], memory=100 * 2**20)],
        "broken": [{"error": "MemoryError"}],
    }
    (table, *notes) = step.body_of(step.plan_from([]), answers, threads=1)
    assert notes[0] == ""
    ours = next(line for line in table.splitlines() if "ours" in line)
    assert "| 9 |" in ours
    assert "| 0.125 |" in ours
    assert "broken: MemoryError" in table


def test_a_round_beside_a_slow_matrix_product_is_left_out_and_said() -> None:
    slow = {**answer(50, [0.5]), "probe_seconds": 0.2}
    answers = {
        step.YARDSTICK: [answer(100, [0.5])] * 3,
        "ours, bf16": [answer(900, [0.5]), slow, answer(920, [0.5])],
    }
    table, marks, notes = step.body_of(step.plan_from([]), answers, threads=1)
    assert "| ours, bf16\\* | 910 | 9.1 |" in table
    assert "left out of the medians: ours, bf16, round 2." in marks
    assert "varied by a factor of 2." in notes


def test_a_quick_plan_is_one_short_round_on_one_thread() -> None:
    plan = step.plan_from(["--quick"])
    assert (plan.num_steps, plan.sweep.num_rounds, plan.sweep.threads) == (2, 1, (1,))


def test_what_is_not_installed_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "installed", lambda package: None)
    jobs = step.jobs_of(step.plan_from([]), tmp_path, threads=1)
    assert jobs
    assert not any("TRL" in job.name for job in jobs)
    assert "pip install" in capsys.readouterr().err
