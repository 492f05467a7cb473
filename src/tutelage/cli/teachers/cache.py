"""`tutelage cache`: a teacher's answers for the rows of a recipe, on disk."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from tutelage import recipes
from tutelage.cli.console import err, out, told_in_one_line
from tutelage.cli.progress import LiveNarrator
from tutelage.cli.train import Overrides

if TYPE_CHECKING:
    # Only for its type: importing it would import torch before `--help` is out.
    from tutelage.recipes.caching.make import CacheMade

_MEGABYTE = 2**20


@told_in_one_line
def cache(  # noqa: PLR0913  an option each
    recipe: Annotated[str, typer.Argument(help="A preset or a YAML file with a live teacher.")],
    overrides: Overrides = None,
    *,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the cache.")],
    answer: Annotated[
        Literal["hidden", "top_k", "sampled"],
        typer.Option(help="hidden is exact for every objective; the others are smaller."),
    ] = "hidden",
    k: Annotated[int, typer.Option(min=1, help="top_k: likeliest entries kept.")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="sampled: ids drawn at a position.")] = 50,
    proposal_temperature: Annotated[
        float, typer.Option(min=0.01, help="sampled: draw flatter (above 1) or sharper.")
    ] = 1.0,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="auto keeps hidden states as they are, log-probabilities in float16."),
    ] = "auto",
    batch_tokens: Annotated[
        int,
        typer.Option(min=0, help="Read rows side by side up to so many tokens; 0: one by one."),
    ] = 0,
) -> None:
    """Write a teacher's answers for a recipe's rows to disk; killed, it goes on where it was.

    Held-out rows are always kept as hidden states, so that students are measured exactly.
    """
    console = err()
    with console.status("Reading the recipe"):
        settings = recipes.load(recipe, overrides or [])
    plan = recipes.CachePlan(
        answer=answer,
        num_entries=k,
        num_samples=samples,
        proposal_temperature=proposal_temperature,
        dtype=dtype,
        batch_tokens=batch_tokens,
    )
    made = recipes.make_cache(settings, folder, plan, narrator=LiveNarrator(console))
    for line in made.repaired:
        typer.echo(f"note: {line}; it was written anew", err=True)
    out().print(_table(made))
    typer.echo(f"head     {made.head_bytes / _MEGABYTE:.1f} MB, kept once")
    typer.echo(f"cache    {made.folder}")
    words = [recipe, *(overrides or []), f"teacher={{kind: cached, folder: {folder}}}"]
    typer.echo(f"Train with: tutelage train {shlex.join(words)}")


def _table(made: "CacheMade") -> Table:
    table = Table(title=f"{made.identity.answers.answer} answers", title_justify="left")
    for name in ("", "rows", "new", "tokens", "bytes/token", "MB", "tokens/s"):
        table.add_column(name, justify="right" if name else "left")
    for part in made.parts:
        pace = part.new_tokens / part.seconds if part.new_tokens else 0.0
        table.add_row(
            part.part.replace("_", "-"),
            f"{part.num_rows:,}",
            f"{part.num_new_rows:,}",
            f"{part.num_tokens:,}",
            f"{part.bytes_per_token:,.1f}",
            f"{part.num_bytes / _MEGABYTE:.2f}",
            f"{pace:,.0f}" if pace else "-",
        )
    return table
