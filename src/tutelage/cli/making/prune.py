"""`tutelage prune`: a model with fewer layers, or narrower ones."""

from typing import Annotated, Any

import typer

from tutelage import recipes
from tutelage.cli.console import err, out, told_in_one_line
from tutelage.cli.making.options import (
    DEFAULT_CALIBRATION,
    DEFAULT_ROWS,
    Calibration,
    From,
    Keep,
    KeepLayers,
    Out,
    Overwrite,
    Rows,
    Seed,
    named_as_options,
)
from tutelage.cli.making.tables import prune_table
from tutelage.cli.progress import LiveNarrator


@told_in_one_line
def prune(  # noqa: PLR0913 - the options of a word
    model: From,
    output: Out,
    *,
    keep_layers: KeepLayers = None,
    keep_neurons: Annotated[
        int | None,
        typer.Option(
            "--keep-neurons", min=1, help="Neurons that stay in each layer: those that add most."
        ),
    ] = None,
    calibration: Calibration = DEFAULT_CALIBRATION,
    rows: Rows = DEFAULT_ROWS,
    seed: Seed = 0,
    dtype: Keep = None,
    overwrite: Overwrite = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH=VALUE]...",
            help="Other settings of a pruned student, such as choose=uniform.",
        ),
    ] = None,
) -> None:
    """Cut layers or neurons out of a model by what they do on rows; what is left stays dense."""
    tree: dict[str, Any] = {"keep_layers": keep_layers, "keep_neurons": keep_neurons}
    with named_as_options():
        outcome = recipes.prune_model(
            recipes.Source(
                model=model,
                output=output,
                overwrite=overwrite,
                calibration=calibration,
                num_rows=rows,
                dtype=None if dtype is None else dtype.value,
                seed=seed,
            ),
            recipes.student_of("pruned", tree, overrides or []),
            narrator=LiveNarrator(err()),
        )
    out().print(prune_table(outcome))
    typer.echo(f"kept     {outcome.what}")
    typer.echo(f"model    {outcome.folder}")
