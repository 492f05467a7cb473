"""`tutelage list`: what there is to choose from."""

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.table import Table

from tutelage import recipes
from tutelage.cli.console import out, told_in_one_line
from tutelage.recipes.tree import preset_names, read_recipe


@told_in_one_line
def list_all(
    what: Annotated[
        str,
        typer.Argument(help="presets, teachers, rollouts, objectives, moves, policies, or all."),
    ] = "all",
) -> None:
    """List presets, teachers, sources of rollouts, objectives, moves and policies, a line each."""
    titles = ("presets", "teachers", "rollouts", "objectives", "moves", "policies")
    if what != "all" and what not in titles:
        raise typer.BadParameter(f"{what!r} is not one of {', '.join(titles)}, all.")
    wanted = titles if what == "all" else (what,)
    if "presets" in wanted:
        _print("Presets: tutelage train NAME", _presets())
    if "teachers" in wanted:
        _print("Teachers: teacher.kind", recipes.choices("teacher"))
    if "rollouts" in wanted:
        _print("Rollouts: rollouts.kind", recipes.choices("rollouts"))
    if "objectives" in wanted:
        _print("Objectives: objective.kind", recipes.choices("objective"))
    if "moves" in wanted:
        _print("Moves of the target: move.kind", recipes.choices("move"))
    if "policies" in wanted:
        _print("Policies: policy.kind", recipes.choices("policy"))


def _presets() -> Iterable[tuple[str, str]]:
    for name in preset_names():
        yield name, str(read_recipe(name).get("description", ""))


def _print(title: str, lines: Iterable[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, line in lines:
        table.add_row(name, line)
    out().print(table)
    out().print()
