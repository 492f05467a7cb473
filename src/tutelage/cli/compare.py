"""`tutelage compare`: several recipes, several seeds, the same work."""

from pathlib import Path
from typing import Annotated

import typer

from tutelage import recipes
from tutelage.cli.console import err, out, told_in_one_line
from tutelage.cli.progress import LiveNarrator
from tutelage.cli.tables import comparison_table


@told_in_one_line
def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [PATH=VALUE]...",
            help="Presets or files to compare; settings given here hold for all of them.",
        ),
    ],
    *,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of each recipe.", min=1)] = 3,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Compare each recipe's own baselines too.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the runs and the page.")
    ] = Path("runs/compare"),
    learning_rates: Annotated[
        str | None,
        typer.Option(
            "--learning-rates",
            help="Commas between: each recipe first picks its best of these with the first seed.",
        ),
    ] = None,
) -> None:
    """Run recipes on the same rows with several seeds; finished runs are not run again."""
    overrides = [text for text in sources if "=" in text]
    names = [text for text in sources if "=" not in text]
    chosen = [recipes.load(name, overrides) for name in names]
    if baselines:
        chosen = [one for recipe in chosen for one in recipes.alone(recipe)]
    plan = recipes.Plan.of(
        chosen,
        num_seeds=seeds,
        learning_rates=_numbers(learning_rates),
    )
    narrator = LiveNarrator(err())
    comparison, page = recipes.compare_recipes(plan, output, narrator=narrator)
    out().print(comparison_table(comparison))
    typer.echo(f"report   {page}")


def _numbers(text: str | None) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers, such as 1e-4,3e-4", param_hint="--learning-rates"
        ) from None
