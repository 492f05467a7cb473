"""Programs that nobody has read: what they earn, and what they cannot do."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.rewards.rollouts import judged, rewards_of
from tutelage.core.errors import ConfigError, DataError
from tutelage.rewards import CodeTestsSettings
from tutelage.rewards.sandbox import (
    Isolation,
    Limits,
    best_isolation,
    chosen_isolation,
    run_program,
)

ADD = {"tests": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]}
DOUBLE = {"tests": [{"input": "3\n", "output": "6\n"}, {"input": "5\n", "output": "10\n"}]}
NO_NAMESPACES = Isolation(namespaces=False, other_user=False)
IMPATIENT = Limits(cpu_seconds=1, wall_seconds=60)


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\n"


def test_a_right_program_earns_all_and_a_wrong_or_malformed_one_nothing() -> None:
    programs = [
        fenced("def add(a, b):\n    return a + b"),
        fenced("def add(a, b):\n    return 3"),
        fenced("def add(a, b) return"),
        "def add(a, b): return a + b",
        fenced("x = 1"),
    ]
    right, wrong, malformed, unfenced, nameless = judged(CodeTestsSettings(), ADD, *programs)
    assert [right.reward, wrong.reward, malformed.reward, unfenced.reward] == [1, 0, 0, 0]
    assert right.parts["passed"] == right.parts["tests"] == 2
    assert wrong.parts["passed"] == 1
    assert wrong.note.startswith("test 2: AssertionError")
    assert "SyntaxError" in malformed.note
    assert unfenced.note == "no program found"
    assert "NameError" in nameless.note


def test_a_share_of_the_tests_earns_that_share() -> None:
    settings = CodeTestsSettings(score="share", extract="whole")
    assert rewards_of(settings, ADD, "add = lambda a, b: 3") == [0.5]


def test_a_program_is_judged_by_what_it_prints_for_each_input() -> None:
    settings = CodeTestsSettings(style="cases", extract="whole")
    texts = ["print(2 * int(input()))", "print(6)", "print(6); raise SystemExit(1)"]
    right, constant, failing = judged(settings, DOUBLE, *texts)
    assert [right.reward, constant.reward, failing.reward] == [1, 0, 0]
    assert (constant.parts["passed"], constant.note) == (1, "case 2: wrote '6\\n'")
    assert failing.note == "case 1: exit code 1"


@pytest.mark.parametrize(
    "trick",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os; os.write(1, b'passed'); os.write(3, b'0 0 '); os._exit(0)",
        "import os; os.kill(os.getpid(), 9)",
        "class T:\n def __str__(self): raise ValueError\nraise SystemExit(T())",
    ],
)
def test_leaving_early_passes_no_test(trick: str) -> None:
    (verdict,) = judged(CodeTestsSettings(extract="whole"), ADD, trick)
    assert verdict.reward == verdict.parts["passed"] == 0
    assert verdict.note


HOSTILE = {
    "while True: pass": "out of processor time",
    "x = b'x' * 2**31": "MemoryError",
    "while True: print('x' * 10_000)": "File too large",
    "open('big', 'wb').write(b'x' * 20 * 2**20)": "File too large",
}


@pytest.mark.parametrize("isolation", [best_isolation(), NO_NAMESPACES], ids=["best", "limits"])
def test_a_program_without_end_or_measure_is_stopped_by_the_kernel(isolation: Isolation) -> None:
    for program, why in HOSTILE.items():
        ended = run_program(program, "", IMPATIENT, isolation, output_bytes=2**24)
        assert why in ended.trouble, program


def test_a_sleeper_is_stopped_by_the_clock_and_more_output_than_is_read_has_failed() -> None:
    limits = Limits(wall_seconds=3)
    ended = run_program("import time; time.sleep(999)", "", limits, best_isolation())
    assert ended.trouble == "out of time"
    ended = run_program("print('x' * 100)", "", Limits(), best_isolation(), output_bytes=50)
    assert ended.trouble == "more than 50 bytes of output"
    assert len(ended.stdout) == 50


needs_namespaces = pytest.mark.skipif(
    not best_isolation().namespaces, reason="this machine grants no namespaces"
)


def processes_with(word: str) -> list[str]:
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in text:
                found.append(entry.name)
    return found


@needs_namespaces
def test_nothing_that_a_program_starts_outlives_it() -> None:
    word = "never-to-outlive-its-parent"
    escape = (
        "import os, sys\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(99)', "
        f"'{word}'])\n"
    )
    assert run_program(escape, "", Limits(), best_isolation()).trouble == ""
    deadline = time.monotonic() + 20
    while processes_with(word) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_with(word)


@pytest.mark.skipif(
    os.geteuid() == 0 and not best_isolation().other_user,
    reason="the kernel counts no processes of the superuser",
)
def test_a_fork_bomb_stays_small() -> None:
    bomb = (
        "import os, time\n"
        "forked = 0\n"
        "try:\n"
        "    while forked < 200:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(99)\n"
        "        forked += 1\n"
        "except BlockingIOError:\n"
        "    print(forked)\n"
    )
    ended = run_program(bomb, "", Limits(processes=8), best_isolation())
    assert ended.trouble == ""
    assert int(ended.stdout) < 8


@pytest.mark.parametrize("isolation", [best_isolation(), NO_NAMESPACES], ids=["best", "limits"])
def test_a_program_inherits_no_environment_and_no_open_file(
    isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    look = (
        "import os\n"
        "print('very-secret' in str(os.environ), 'HF_TOKEN' in os.environ)\n"
        "print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[3:-1])\n"
        "print(os.listdir('.'))\n"
    )
    ended = run_program(look, "", Limits(), isolation)
    assert ended.stdout.splitlines() == ["False False", "[]", "['program.py']"]


@needs_namespaces
def test_a_program_sees_no_network_no_other_process_and_no_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    (tmp_path / "mine").write_text("mine")
    look = (
        "import os, socket\n"
        "def tried(what):\n"
        "    try: what()\n"
        "    except OSError as error: return 'refused'\n"
        "    return 'done'\n"
        "print(socket.if_nameindex())\n"
        "print(tried(lambda: socket.create_connection(('127.0.0.1', 22), 1)))\n"
        "seen = [p for p in os.listdir('/proc') if p.isdigit()]\n"
        "print(len(seen))\n"
        "print(any(tried(lambda: open(f'/proc/{p}/environ').read()) == 'done' and 'very-secret'\n"
        "    in open(f'/proc/{p}/environ').read() for p in seen))\n"
        f"print(os.path.exists({str(tmp_path / 'mine')!r}))\n"
        "print(tried(lambda: open('/usr/planted', 'w')), tried(lambda: open('/etc/x', 'w')))\n"
        "print(tried(lambda: open('own', 'w')))\n"
        "print(os.system('mount -o remount,rw / 2>/dev/null') == 0)\n"
    )
    ended = run_program(look, "", Limits(), best_isolation())
    assert ended.stdout.splitlines() == [
        "[(1, 'lo')]", "refused", "2", "False", "False", "refused refused", "done", "False",
    ]  # fmt: skip
    assert (tmp_path / "mine").read_text() == "mine"


@needs_namespaces
def test_all_files_of_a_program_together_are_bounded() -> None:
    fill = "for n in range(20): open(f'f{n}', 'wb').write(b'x' * 2**20)"
    limits = Limits(file_megabytes=2, folder_megabytes=4)
    assert "No space left" in run_program(fill, "", limits, best_isolation()).trouble


@needs_namespaces
def test_an_ordinary_user_gets_namespaces_of_its_own() -> None:
    isolation = Isolation(namespaces=True, other_user=False)
    look = "import os; print(len([p for p in os.listdir('/proc') if p.isdigit()]))"
    refused = "try: open('/usr/planted', 'w')\nexcept OSError: print('refused')"
    remount = "import os; print(os.system('mount -o remount,rw / 2>/dev/null') == 0)"
    program = "\n".join([look, refused, remount])
    unshare = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False)
    if unshare.returncode:
        pytest.skip("this machine grants no user namespaces")
    said = run_program(program, "", Limits(), isolation).stdout
    assert said.splitlines() == ["2", "refused", "False"]


def test_limits_alone_can_be_chosen_and_a_verdict_says_what_was_granted() -> None:
    assert chosen_isolation("limits") == NO_NAMESPACES
    right = fenced("def add(a, b): return a + b")
    (best,) = judged(CodeTestsSettings(), ADD, right)
    (limits,) = judged(CodeTestsSettings(isolation="limits"), ADD, right)
    assert best.reward == limits.reward == 1
    assert best.parts["isolated"] == float(best_isolation().namespaces)
    assert limits.parts["isolated"] == 0


def test_namespaces_that_the_machine_refuses_are_an_error_when_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    best_isolation.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"rewards\.isolation is namespaces"):
            chosen_isolation("namespaces")
    finally:
        monkeypatch.undo()
        best_isolation.cache_clear()


@pytest.mark.parametrize("tests", [[3], 7, {"a": 1}, [{"input": "x", "output": "y"}]])
def test_tests_of_another_form_are_refused(tests: object) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:7 has other things in column 'tests'"):
        judged(CodeTestsSettings(), {"tests": tests}, "x")
    with pytest.raises(DataError, match=r"rewards\.style"):
        judged(CodeTestsSettings(style="cases"), {"tests": ["assert True"]}, "x")
