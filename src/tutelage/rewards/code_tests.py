"""The reward for a program that passes the row's tests, run apart from everything else."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast, final

from pydantic import Field, PositiveInt
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout, Verdict
from tutelage.core.settings import Settings
from tutelage.rewards import sandbox
from tutelage.rewards.sandbox import IsolationChoice, Limits, chosen_isolation, run_program
from tutelage.rewards.verifier import Verifier, column_of, name_of, paired

_DRIVER = Path(sandbox.__file__).with_name("assert_driver.py")
_REPORT_BYTES = 2**20
_FENCE = re.compile(r"^```[^\n`]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


@final
class CodeTestsSettings(Settings):
    """A Python program's reward: run it on the row's tests, in a process cut off from the rest.

    Programs see Python's standard library alone.
    """

    kind: Literal["code_tests"] = "code_tests"
    column: str = "tests"
    """Where the row holds its tests, in the form that `style` says."""
    style: Literal["asserts", "cases"] = "asserts"
    """`asserts`: Python text, or a list of texts, run after the completion in the same names; each
    text is a test. `cases`: a list of {input: text, output: text}; each is one run of the program,
    whose output must be that text up to space at the ends of lines and of the whole."""
    extract: Literal["last_fence", "whole"] = "last_fence"
    """The last block between lines of three backticks, or all of the completion."""
    score: Literal["all", "share"] = "all"
    """1 for a program that passes all tests and 0 for any other; or the share it passes."""
    limits: Limits = Field(default_factory=Limits)
    """For each run of a program."""
    isolation: IsolationChoice = "best"
    """`best` takes namespaces where the machine grants them, and the verdicts' `isolated` says
    whether it did; `namespaces` refuses to run without; `limits` never asks for them: a program
    then has the network, reads what this user reads, and may overwrite it."""
    parallel: PositiveInt = 2
    """Programs run at one time."""


@final
class CodeTests(Verifier):
    """Runs what a student wrote. `isolation` says how far it is cut off on this machine.

    Raises:
        ConfigError: namespaces are asked for, and this machine refuses them.
    """

    def __init__(self, settings: CodeTestsSettings) -> None:
        self._settings = settings
        self.isolation = chosen_isolation(settings.isolation)

    @override
    def judge(self, rollouts: Sequence[Rollout], texts: Sequence[str]) -> list[Verdict]:
        # All rows are read before any program runs: a bad row costs no time.
        tests = [self._tests(rollout) for rollout, _ in paired(rollouts, texts)]
        with ThreadPoolExecutor(self._settings.parallel) as pool:
            return list(pool.map(self._judge_one, tests, texts))

    def _judge_one(self, tests: Sequence[Any], text: str) -> Verdict:
        source = program_in(text) if self._settings.extract == "last_fence" else text
        isolated = float(self.isolation.namespaces)
        parts = {"passed": 0.0, "tests": float(len(tests)), "isolated": isolated}
        if source is None or not source.strip():
            return Verdict(reward=0.0, parts=parts, note="no program found")
        run = self._asserts if self._settings.style == "asserts" else self._cases
        num_passed, note = run(source, tests)
        share = num_passed / len(tests)
        reward = share if self._settings.score == "share" else float(share == 1)
        return Verdict(reward=reward, parts={**parts, "passed": float(num_passed)}, note=note)

    def _asserts(self, source: str, tests: Sequence[str]) -> tuple[int, str]:
        """All tests in one process: how many passed, and what happened first."""
        word = secrets.token_hex(16)
        ended = run_program(
            _DRIVER.read_text(encoding="utf-8"),
            json.dumps({"word": word, "source": source, "tests": list(tests)}),
            self._settings.limits,
            self.isolation,
            output_bytes=_REPORT_BYTES,
        )
        reports = dict[int, str]()
        for line in ended.stdout.splitlines():
            spoken, _, rest = line.partition(" ")
            place, _, trouble = rest.partition(" ")
            if spoken == word:
                reports[int(place)] = trouble
        # What never reported was cut short: by a limit, or by leaving early.
        silent = ended.trouble or "left before its tests"
        troubles = [reports.get(place, silent) for place in range(-1, len(tests))]
        if troubles[0]:
            return 0, f"the program: {troubles[0]}"
        failed = [f"test {place}: {t}" for place, t in enumerate(troubles[1:], 1) if t]
        return len(tests) - len(failed), failed[0] if failed else "right"

    def _cases(self, source: str, cases: Sequence[Mapping[str, str]]) -> tuple[int, str]:
        """A run for each case; none after the first failure when only all of them count."""
        num_passed, note = 0, ""
        for number, case in enumerate(cases, 1):
            ended = run_program(source, case["input"], self._settings.limits, self.isolation)
            if not ended.trouble and _same_output(ended.stdout, case["output"]):
                num_passed += 1
                continue
            note = note or f"case {number}: {ended.trouble or f'wrote {ended.stdout[:80]!r}'}"
            if self._settings.score == "all":
                break
        return num_passed, note or "right"

    def _tests(self, rollout: Rollout) -> list[Any]:
        column = self._settings.column
        found = column_of(rollout, column, setting="rewards.column")
        if self._settings.style == "asserts":
            tests = [found] if isinstance(found, str) else found
            fits, form = _is_text, "a text of Python or a list of them"
        else:
            tests, fits, form = found, _is_case, "a list of {input: text, output: text}"
        if not isinstance(tests, list | tuple) or not all(fits(test) for test in tests):
            raise DataError(
                f"{name_of(rollout)} has other things in column {column!r} than {form}; it must "
                f"be that for style {self._settings.style}. Correct the row, or rewards.style."
            )
        return list(cast("Sequence[Any]", tests))


def program_in(text: str) -> str | None:
    """The last fenced block of a completion."""
    blocks = _FENCE.findall(text)
    return blocks[-1] if blocks else None


def _is_text(test: object) -> bool:
    return isinstance(test, str)


def _is_case(case: object) -> bool:
    if not isinstance(case, Mapping):
        return False
    fields = cast("Mapping[str, object]", case)
    return all(isinstance(fields.get(name), str) for name in ("input", "output"))


def _same_output(given: str, wanted: str) -> bool:
    def lines(text: str) -> list[str]:
        return [line.rstrip() for line in text.strip().splitlines()]

    return lines(given) == lines(wanted)
