"""`tutelage reroute`: new routers for a mixture of experts, from a dense teacher's neurons."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from tutelage import recipes
from tutelage.cli.console import err, out, told_in_one_line
from tutelage.cli.making.options import (
    DEFAULT_CALIBRATION,
    DEFAULT_ROWS,
    Calibration,
    Keep,
    Out,
    Overwrite,
    Rows,
    Seed,
    named_as_options,
)
from tutelage.cli.making.tables import reroute_lines, reroute_table
from tutelage.cli.progress import LiveNarrator


class Match(StrEnum):
    """Names of ways to pair clusters with experts."""

    identity = "identity"
    hungarian = "hungarian"


@told_in_one_line
def reroute(  # noqa: PLR0913 - the options of a word
    student: Annotated[
        str,
        typer.Option(
            "--student", metavar="MODEL", help="The mixture of experts: a hub name or a folder."
        ),
    ],
    teacher: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="The dense teacher with the same tokenizer: a hub name, a folder, a .gguf file, "
            "or package:NAME.",
        ),
    ],
    output: Out,
    *,
    match: Annotated[
        Match, typer.Option("--match", help="Which cluster an expert gets: j for j, or the best.")
    ] = Match.identity,
    calibration: Calibration = DEFAULT_CALIBRATION,
    rows: Rows = DEFAULT_ROWS,
    seed: Seed = 0,
    dtype: Keep = None,
    overwrite: Overwrite = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH=VALUE]...",
            help="Other settings of a rerouted student, such as split.rows=concat or ridge=0.1.",
        ),
    ] = None,
) -> None:
    """Make a mixture's routers anew from a dense teacher's clusters of neurons (PADD, stage I).

    Experts and all other weights stay as they are. The folder is an ordinary one, and
    `student: FOLDER` trains it; `routing.targets` finds the activities for its warm-up there.
    """
    tree: dict[str, Any] = {"match": match.value}
    with named_as_options():
        outcome = recipes.reroute_model(
            recipes.Source(
                model=teacher,
                output=output,
                overwrite=overwrite,
                calibration=calibration,
                num_rows=rows,
                dtype=None if dtype is None else dtype.value,
                seed=seed,
            ),
            recipes.student_of("rerouted", tree, overrides or [], model=student),
            narrator=LiveNarrator(err()),
        )
    out().print(reroute_table(outcome))
    for line in reroute_lines(outcome):
        typer.echo(line)
