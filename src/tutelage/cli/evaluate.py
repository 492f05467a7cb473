"""`tutelage eval`: measure a saved student on a recipe's held-out rows."""

from pathlib import Path
from typing import Annotated

import typer

from tutelage import recipes
from tutelage.cli.console import err, out, told_in_one_line
from tutelage.cli.progress import LiveNarrator
from tutelage.cli.tables import summary_table
from tutelage.cli.train import Overrides


@told_in_one_line
def evaluate(
    student: Annotated[Path, typer.Argument(help="Folder of a saved student, or of a run.")],
    recipe: Annotated[
        str | None,
        typer.Argument(help="Preset or file that names rows and teacher; a run folder knows it."),
    ] = None,
    overrides: Overrides = None,
    *,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="Another teacher to compare with, or `none`.")
    ] = None,
) -> None:
    """Measure a saved student: perplexity, divergence to the teacher, top-1 agreement."""
    narrator = LiveNarrator(err())
    summary = recipes.evaluate_folder(
        student, recipe, overrides=overrides or [], teacher=teacher, narrator=narrator
    )
    out().print(summary_table(summary))
