"""Each word of the command line on the toy pair, and Ctrl-C on a real process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import FAST, Words

ROOT = Path(__file__).parents[2]


def test_help_needs_no_torch() -> None:
    code = "import sys, tutelage.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_printed(tutelage: Words) -> None:
    assert tutelage("--version").stdout.startswith("tutelage 0.")


def test_list_names_presets_objectives_and_moves(tutelage: Words) -> None:
    output = tutelage("list").output
    assert all(f"{name} " in output for name in ("demo", "forward_kl", "concrete_score", "taid"))
    assert "forward_kl" not in tutelage("list", "moves").output
    assert tutelage("list", "nothing").exit_code == 2


def test_show_prints_settings_counts_and_memory(tutelage: Words) -> None:
    result = tutelage("show", "tiny", "training.learning_rate=0.5")
    assert result.exit_code == 0
    for part in ("learning_rate: 0.5", "35,232 parameters", "53,792 parameters", "MB in all"):
        assert part in result.output


def test_doctor_is_content_with_tiny_and_says_so_by_its_code(tutelage: Words) -> None:
    assert tutelage("doctor", "tiny").exit_code == 0
    assert tutelage("doctor", "tiny", "rollouts.data=gone.jsonl").exit_code == 1


def test_train_then_eval_then_report(tutelage: Words) -> None:
    result = tutelage("train", "tiny", *FAST, "output=run")
    assert result.exit_code == 0, result.output
    for part in ("before", "cross entropy", "distilled", "teacher", "forward KL", "run/student"):
        assert part in result.output
    measured = tutelage("eval", "run")
    assert measured.exit_code == 0, measured.output
    assert "student" in measured.output
    assert tutelage("report", "run").stdout.strip() == "report   run/report.html"
    assert Path("run/report.html").is_file()


def test_compare_ends_with_its_page(tutelage: Words) -> None:
    words = ("compare", "tiny", *FAST, "baselines={}", "--seeds", "2", "-o", "out")
    result = tutelage(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().splitlines()[-1] == "report   out/compare.html"
    assert "±" in result.output
    assert len(json.loads(Path("out/compare.json").read_text())["variants"][0]["runs"]) == 2


@pytest.mark.slow
def test_control_c_saves_what_was_learned_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = ["train", "tiny", "training.num_steps=5000", "report.enabled=false", "baselines={}"]
    command = [str(Path(sys.executable).with_name("tutelage")), *words]
    metrics = tmp_path / "runs" / "tiny" / "metrics.jsonl"
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and len(metrics.read_text().splitlines()) > 5:
            break
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 130, told
    assert "Interrupted at step" in told
    assert "Go on with: tutelage train tiny" in told
    assert "--resume" in told
    assert (tmp_path / "runs" / "tiny" / "student" / "model.safetensors").is_file()
    saved = list((tmp_path / "runs" / "tiny" / "checkpoints").glob("step-*"))
    assert saved


@pytest.mark.slow
@pytest.mark.parametrize("name", ["custom_objective.py", "python_api.py"])
def test_every_example_runs(name: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_a_custom_objective_takes_fewer_than_thirty_lines() -> None:
    text = (ROOT / "examples" / "custom_objective.py").read_text()
    code = text.split('if __name__ == "__main__":')[0].split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) < 30
