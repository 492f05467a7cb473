# pyright: basic
# Runs inside a cell, on its own: it sees nothing but the standard library.
"""Runs a completion, then each of its tests, and reports each by a word the completion never saw.

Reads one JSON object {word, source, tests} and writes one line `word place trouble` for each test
that came to an end; place -1 is the completion itself. A completion that leaves early, prints what
looks like success or closes its output passes nothing by it.
"""

import json
import os
import sys
import types


def trouble_of(code: str, name: str, module: types.ModuleType) -> str:
    """Run code; empty if it came to its end, otherwise what stopped it, on one line."""
    try:
        exec(compile(code, name, "exec"), module.__dict__)  # noqa: S102 - what this file is for
    except BaseException as error:  # noqa: BLE001 - SystemExit too is no success
        try:
            said = f"{type(error).__name__}: {error}"
        except BaseException:  # noqa: BLE001 - an error that cannot even be printed
            said = "an error that cannot be printed"
        return " ".join(said.split())[:200]
    return ""


def main() -> None:
    """The completion and its tests, in one process, one after the other."""
    given = json.loads(sys.stdin.buffer.read())
    report = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    # Named, so that dataclasses and pickling find it; not `__main__`: its own tests stay still.
    module = types.ModuleType("solution")
    sys.modules["solution"] = module

    for place, code in enumerate([given["source"], *given["tests"]], -1):
        trouble = trouble_of(code, "completion" if place < 0 else f"test {place}", module)
        line = f"{given['word']} {place} {trouble}\n"
        os.write(report, line.encode("utf-8", "replace"))
        if place < 0 and trouble:
            break
    os._exit(0)


if __name__ == "__main__":
    main()
