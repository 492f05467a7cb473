"""`tutelage report`: build the page of a run or a comparison again."""

from pathlib import Path
from typing import Annotated

import typer

from tutelage import recipes
from tutelage.cli.console import err, told_in_one_line
from tutelage.cli.progress import LiveNarrator


@told_in_one_line
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or of a comparison.")],
) -> None:
    """Write the HTML page again from what the folder holds; nothing is run."""
    with LiveNarrator(err()).stage("Writing the report"):
        page = recipes.rebuild_page(folder)
    typer.echo(f"report   {page}")
