# pyright: basic
# Runs inside a cell, on its own: it sees the libraries, and nothing of this package.
"""Asks a library what it thinks of answers, each in a forked process with its own limits.

Some scorers evaluate the answer as Python or may compute for ever, in C, where no signal handler
is heard. Here the library is imported once; whatever an answer does ends with its own process.

Speaks JSON, one object a line. The first line read names the scorer; then each line is a question
and gets one line back: {value: ...} or {trouble: why}.
"""

import contextlib
import importlib
import json
import logging
import math
import os
import resource
import select
import signal
import sys
from collections.abc import Callable

MOST_BYTES = 4000


class MathVerify:
    """Are two mathematical expressions the same?"""

    def __init__(self) -> None:
        self.library = importlib.import_module("math_verify")
        # What is compiled at the first use is compiled before the first fork.
        self.score({"gold": "\\boxed{\\frac{1}{2}}", "answer": "\\boxed{0.5}"}, None)

    def prepare(self, _question: dict) -> None:
        """Nothing: every question is complete."""

    def score(self, question: dict, _prepared: object) -> dict:
        """Whether the row's answer and the completion's could be read, and whether they agree."""
        gold, answer = self.read(question["gold"]), self.read(question["answer"])
        right = bool(self.library.verify(gold, answer, timeout_seconds=None))
        return {"gold": bool(gold), "found": bool(answer), "right": right}

    def read(self, text: str) -> list:
        """A box has priority; without a clock of its own, which would need the alarm."""
        forms = [
            self.library.LatexExtractionConfig(boxed_match_priority=0),
            self.library.ExprExtractionConfig(),
        ]
        return self.library.parse(text, forms, parsing_timeout=None)


class ReasoningGym:
    """What the task's own scorer gives an answer."""

    # Their scorers compare nested tuples, which JSON turns into lists.
    WITH_TUPLES = ("arc_agi", "rearc")

    def __init__(self) -> None:
        self.library = importlib.import_module("reasoning_gym.factory")
        self.scorers = {}

    def prepare(self, question: dict) -> Callable | None:
        """The scorer, made once; None for a task that the library does not know."""
        name = question["dataset"]
        if name not in self.library.DATASETS:
            return None
        if name not in self.scorers:
            self.scorers[name] = self.library.get_score_answer_fn(name)
        return self.scorers[name]

    def score(self, question: dict, scorer: Callable | None) -> dict:
        """From 0 to 1."""
        if scorer is None:
            return {"tasks": len(self.library.DATASETS)}
        entry = question["entry"]
        if question["dataset"] in self.WITH_TUPLES:
            entry["metadata"] = tuples(entry["metadata"])
        score = float(scorer(answer=question["answer"], entry=entry))
        return {"score": score if math.isfinite(score) else 0.0}


def tuples(value: object) -> object:
    """The same tree with every list a tuple."""
    if isinstance(value, dict):
        return {key: tuples(inner) for key, inner in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def answered(scorer: MathVerify | ReasoningGym, question: dict, channel: int) -> dict:
    """Fork, let the child score, and say what became of it."""
    try:
        prepared = scorer.prepare(question)
    except Exception as error:  # noqa: BLE001 - told to whoever asked
        return {"trouble": said(error)}
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(channel)
        os.setpgid(0, 0)
        seconds = question["cpu_seconds"]
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        try:
            outcome = {"value": scorer.score(question, prepared)}
        except BaseException as error:  # noqa: BLE001 - told to whoever asked
            outcome = {"trouble": said(error)}
        os.write(write, json.dumps(outcome).encode()[:MOST_BYTES])
        os._exit(0)
    os.close(write)
    code = ended(child, question["wall_seconds"])
    # Not to its end: what the child has left running may hold it open.
    text = os.read(read, MOST_BYTES) if select.select([read], [], [], 0)[0] else b""
    os.close(read)
    try:
        return dict(json.loads(text))
    except ValueError:
        return {"trouble": "out of time" if code == -signal.SIGKILL else f"ended with {code}"}


def ended(child: int, seconds: float) -> int:
    """Wait for the child, end it when its time is up, and end what it has started."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    # Not reaped yet, so that its group's number is still its own.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    signal.setitimer(signal.ITIMER_REAL, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def said(error: BaseException) -> str:
    """An error on one line."""
    try:
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    except BaseException:  # noqa: BLE001 - an error that cannot even be printed
        return "an error that cannot be printed"


def main() -> None:
    """Questions in, answers out, until nobody asks any more."""
    logging.disable(logging.CRITICAL)
    channel = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    questions = os.fdopen(os.dup(0), "rb")
    os.dup2(nowhere, 0)
    try:
        name = json.loads(questions.readline())["scorer"]
        scorer = {"math_verify": MathVerify, "reasoning_gym": ReasoningGym}[name]()
    except Exception as error:  # noqa: BLE001 - told to whoever asked
        os.write(channel, json.dumps({"trouble": said(error)}).encode() + b"\n")
        sys.exit(1)
    os.write(channel, b'{"value": "ready"}\n')
    for line in questions:
        outcome = answered(scorer, json.loads(line), channel)
        os.write(channel, json.dumps(outcome).encode() + b"\n")


if __name__ == "__main__":
    main()
