"""`tutelage doctor`: look a recipe's models, tokenizers and rows over before training."""

from typing import Annotated

import typer
from rich.table import Table

from tutelage import recipes
from tutelage.cli.console import err, out, told_in_one_line
from tutelage.cli.train import Overrides

_STYLES = {"fine": "green", "note": "yellow", "wrong": "bold red"}


@told_in_one_line
def doctor(
    recipe: Annotated[str, typer.Argument(help="A preset or a YAML file.")],
    overrides: Overrides = None,
) -> None:
    """Check tokenizer, template, EOS, vocabulary, dtype and rows; say what to change.

    Exits with 1 when something is wrong.
    """
    settings = recipes.load(recipe, overrides or [])
    with err().status("Examining"):
        findings = recipes.examine(settings)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for finding in findings:
        style = _STYLES[finding.verdict]
        table.add_row(f"[{style}]{finding.verdict}[/{style}]", finding.subject, finding.text)
    out().print(table)
    num_wrong = sum(finding.verdict == "wrong" for finding in findings)
    typer.echo(f"{num_wrong} wrong" if num_wrong else "nothing is wrong")
    if num_wrong:
        raise typer.Exit(1)
