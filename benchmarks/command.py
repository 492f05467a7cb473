"""What the comparisons' command lines, workers and notes have in common."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from benchmarks.measure import RESULTS, Answer, installed, machine_line, serve, write_results


@final
@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What every comparison can be asked: how often, on how many threads, of whom, into where."""

    threads: tuple[int, ...]
    num_rounds: int
    only: str
    folder: Path


def parser_for(doc: str | None, *, quick: str) -> argparse.ArgumentParser:
    """A parser that knows the arguments of a sweep, and `--quick`.

    Args:
        quick: what `--quick` leaves of the work.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all cores")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only implementations with this in their name")
    parser.add_argument("--quick", action="store_true", help=f"one round, one thread, {quick}")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    return parser


def sweep_of(asked: argparse.Namespace) -> Sweep:
    """The sweep that the parsed words ask for."""
    threads = tuple(asked.threads or sorted({1, os.cpu_count() or 1}))
    return Sweep(
        threads=threads[:1] if asked.quick else threads,
        num_rounds=1 if asked.quick else asked.rounds,
        only=asked.only,
        folder=asked.folder,
    )


def missing_of(packages: Iterable[str]) -> set[str]:
    """Those that are not installed, each said once."""
    missing = {package for package in packages if installed(package) is None}
    for package in sorted(missing):
        print(f"{package} is not installed: pip install -e '.[benchmarks]'", file=sys.stderr)
    return missing


def address_space() -> int:
    """Bytes for a worker: well above the machine's memory, which mappings exceed."""
    return 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def work_by(work: Callable[[Answer], Answer], words: Sequence[str] | None = None) -> None:
    """A worker's whole command line: `--worker REQUEST`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", required=True)
    serve(work, parser.parse_args(words).worker)


@final
@dataclass(kw_only=True)
class Notebook:
    """The sections of a run, and the numbers behind them."""

    name: str
    folder: Path
    results: dict[str, Any] = field(default_factory=lambda: {"machine": machine_line()})
    sections: list[str] = field(default_factory=list[str])

    def add(self, title: str, *, threads: int, body: Sequence[str], numbers: Any) -> None:  # noqa: ANN401  JSON
        """One more table with its notes; written at once, so that a killed run leaves it."""
        heading = f"{title}, {threads} thread{'s' if threads > 1 else ''}"
        self.results[heading] = numbers
        self.sections.append("\n\n".join([f"### {heading}", *(part for part in body if part)]))
        write_results(self.name, self.results, self.text, folder=self.folder)

    @property
    def text(self) -> str:
        """All sections, as Markdown."""
        return "\n\n".join(self.sections)
