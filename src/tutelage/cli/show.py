"""`tutelage show`: what a recipe comes to, before anything is loaded."""

from typing import Annotated

import typer
from rich.table import Table

from tutelage import recipes
from tutelage.cli.console import err, out, told_in_one_line
from tutelage.cli.train import Overrides


@told_in_one_line
def show(
    recipe: Annotated[str, typer.Argument(help="A preset or a YAML file.")],
    overrides: Overrides = None,
) -> None:
    """Print the resolved settings, parameter counts and a memory estimate; loads no weights."""
    settings = recipes.load(recipe, overrides or [])
    typer.echo(recipes.to_yaml(settings))
    with err().status("Reading the models' configurations"):
        outline = recipes.outline_of(settings)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in outline.lines():
        table.add_row(name, value)
    out().print(table)
    for line in outline.warnings:
        typer.echo(f"note: {line}", err=True)
