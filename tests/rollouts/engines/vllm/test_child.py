"""A server of the run's own goes when the run goes; without vLLM itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.tiny_models import tiny_llama
from tutelage.core.errors import MissingDependencyError, ModelError
from tutelage.models import CausalLM
from tutelage.rollouts.engines import Sampling, VllmEngine, VllmSettings
from tutelage.rollouts.engines.vllm import child, keeper

# Starts a child of its own, as vLLM does, and says who both are.
SERVER = """
import os, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".part", "w") as out:
    out.write(f"{os.getpid()} {other.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""
RUN = """
import subprocess, sys, time
subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.is_file() and status.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"


def wait_until(done, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_when_a_run_is_killed_its_server_goes_with_all_processes_and_folders(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "weights", tmp_path / "own"]
    for folder in folders:
        folder.mkdir()
    pids = tmp_path / "pids"
    server = [sys.executable, "-c", SERVER, str(pids)]
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, sys.executable, keeper.__file__, *map(str, folders), *server]
    )
    wait_until(pids.is_file)
    found = [int(pid) for pid in pids.read_text().split()]
    assert all(is_running(pid) for pid in found)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_until(lambda: not any(is_running(pid) for pid in found))
    wait_until(lambda: not any(folder.exists() for folder in folders))


def test_a_server_that_ends_by_itself_leaves_its_words_and_its_code(tmp_path: Path) -> None:
    folders = [tmp_path / "weights", tmp_path / "own"]
    for folder in folders:
        folder.mkdir()
    dying = [sys.executable, "-c", "raise SystemExit(7)"]
    command = [sys.executable, keeper.__file__, *map(str, folders), *dying]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as kept:
        # Nobody has let go of it.
        wait_until(lambda: kept.poll() is not None)
    assert kept.returncode == 7
    assert all(folder.is_dir() for folder in folders)


def test_the_first_cause_is_told_of_a_server_that_ended() -> None:
    log = """
(EngineCore pid=1) INFO 11-22 17:08:18 [core.py:133] Initializing
(Worker pid=3) ERROR 11-22 17:08:18 [x.py:1] RuntimeError: Unsupported CPU attention: head_dim=8
(Worker pid=3) ERROR 11-22 17:08:19 [x.py:1] RuntimeError: Unsupported CPU attention: head_dim=8
(APIServer pid=2) ERROR 11-22 17:08:20 [y.py:2] vllm.v1.engine.EngineDeadError: See above
"""
    assert child.telling(log) == [
        "RuntimeError: Unsupported CPU attention: head_dim=8",
        "vllm.v1.engine.EngineDeadError: See above",
    ]
    assert child.telling("one\n\ntwo\n") == ["one", "two"]


def test_a_python_without_vllm_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(child.VARIABLE, raising=False)
    for settings in (VllmSettings(), VllmSettings(python="nowhere/python")):
        with pytest.raises(MissingDependencyError, match="Run `make vllm`"):
            VllmEngine(settings, dtype=torch.float32, room=64)
    monkeypatch.setenv(child.VARIABLE, sys.executable)
    assert child.vllm_python(VllmSettings()) == Path(sys.executable)


def test_a_vllm_that_does_not_start_ends_the_run_with_its_own_words(tmp_path: Path) -> None:
    settings = VllmSettings(python=sys.executable, weights_folder=tmp_path)
    engine = VllmEngine(settings, dtype=torch.float32, room=64)
    own = [torch.Generator()]
    with pytest.raises(ModelError, match=r"has ended with code 1[\s\S]*No module named 'vllm'"):
        engine(CausalLM(tiny_llama()), [[1]], Sampling(), generator=own, num_real=None)
    engine.close()
    assert list(tmp_path.iterdir()) == []
