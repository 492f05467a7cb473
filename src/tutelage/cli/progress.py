"""What a run is doing, as it does it: a line for each finished stage, a bar for the present one."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typing_extensions import override

from tutelage.recipes.narrator import Advance, Narrator

_WORTH_A_LINE_SECONDS = 0.5


@final
class LiveNarrator(Narrator):
    """Tells on a console. On one that is no terminal, a line for each stage is all it writes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @override
    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Generator[Advance]:
        started = time.perf_counter()
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn() if total else TextColumn(""),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn() if total else TextColumn(""),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        with progress:
            task = progress.add_task(title, total=total, note="")

            def advance(done: int, note: str = "") -> None:
                progress.update(task, completed=done, note=note)

            yield advance
        seconds = time.perf_counter() - started
        if seconds > _WORTH_A_LINE_SECONDS:
            self._console.print(f"{title}  [dim]{seconds:.1f} s[/dim]")

    @override
    def say(self, text: str) -> None:
        self._console.print(text, markup=False)
