"""`tutelage train` and `tutelage demo`: a whole run, from a recipe to a student and a report."""

from typing import Annotated

import typer

from tutelage import recipes
from tutelage.cli.console import INTERRUPTED, err, out, told_in_one_line
from tutelage.cli.progress import LiveNarrator
from tutelage.cli.tables import summary_table

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH=VALUE]...", help="Settings to change, such as training.seed=1."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run that the output folder holds.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete what the output folder holds, and start anew.")
]


@told_in_one_line
def train(
    recipe: Annotated[str, typer.Argument(help="A preset (see `tutelage list`) or a YAML file.")],
    overrides: Overrides = None,
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a student by a recipe; measure, sample, compare with baselines, write a report."""
    _train(recipe, overrides or [], resume=resume, overwrite=overwrite)


@told_in_one_line
def demo(
    overrides: Overrides = None,
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Distil SmolLM2-135M into its own pruned copy in minutes: `tutelage train demo`."""
    _train("demo", overrides or [], resume=resume, overwrite=overwrite)


def _train(source: str, overrides: list[str], *, resume: bool, overwrite: bool) -> None:
    console = err()
    with console.status("Reading the recipe"):
        settings = recipes.load(source, overrides)
    narrator = LiveNarrator(console)
    outcome = recipes.run_recipe(settings, resume=resume, overwrite=overwrite, narrator=narrator)
    if outcome.summary:
        out().print(summary_table(outcome.summary))
    if outcome.interrupted:
        words = " ".join([f"tutelage train {source}", *overrides, "--resume"])
        typer.echo(
            f"Interrupted at step {outcome.step}. What was learned is in {outcome.student}.\n"
            f"Go on with: {words}",
            err=True,
        )
        raise typer.Exit(INTERRUPTED)
    typer.echo(f"student  {outcome.student}")
    if outcome.report:
        typer.echo(f"report   {outcome.report}")
