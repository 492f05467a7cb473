"""`tutelage upcycle`: a dense model's neurons as a mixture of experts."""

from enum import StrEnum
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
from tutelage.cli.making.tables import fidelity_table, load_table, upcycle_lines
from tutelage.cli.progress import LiveNarrator
from tutelage.core.errors import ConfigError


class Split(StrEnum):
    """Names of ways to divide neurons."""

    clustered = "clustered"
    co_activation = "co_activation"
    random = "random"
    contiguous = "contiguous"
    copies = "copies"
    drop_copies = "drop_copies"


class RowsOf(StrEnum):
    """Names of what neurons are compared by."""

    gate_proj = "gate_proj"
    up_proj = "up_proj"
    concat = "concat"


class Router(StrEnum):
    """Names of first routers."""

    centroids = "centroids"
    fitted = "fitted"
    zeros = "zeros"
    random = "random"


class Gates(StrEnum):
    """Names of what becomes of the chosen gates."""

    renormalised = "renormalised"
    softmax = "softmax"


@told_in_one_line
def upcycle(  # noqa: PLR0913 - the options of a word
    model: From,
    experts: Annotated[
        int, typer.Option("--experts", min=2, help="Experts a router chooses from (N).")
    ],
    active: Annotated[int, typer.Option("--active", min=1, help="Experts a token uses (K).")],
    output: Out,
    *,
    shared: Annotated[
        int,
        typer.Option(
            "--shared", min=0, help="As many experts' neurons used by every token (Qwen2 only)."
        ),
    ] = 0,
    split: Annotated[
        Split, typer.Option("--split", help="Which neurons share an expert.")
    ] = Split.clustered,
    cluster_on: Annotated[
        RowsOf | None,
        typer.Option("--cluster-on", help="Weights to cluster by. [default: gate_proj]"),
    ] = None,
    size_tolerance: Annotated[
        float,
        typer.Option(
            "--size-tolerance", help="How uneven clusters may be, as a fraction.", min=0, max=1
        ),
    ] = 0.0,
    router: Annotated[
        Router | None,
        typer.Option("--router", help="How routers begin. [default: centroids; random for copies]"),
    ] = None,
    gates: Annotated[
        Gates, typer.Option("--gates", help="Divide the chosen gates by their sum, or leave them.")
    ] = Gates.renormalised,
    keep_layers: KeepLayers = None,
    calibration: Calibration = DEFAULT_CALIBRATION,
    rows: Rows = DEFAULT_ROWS,
    seed: Seed = 0,
    dtype: Keep = None,
    overwrite: Overwrite = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH=VALUE]...",
            help="Other settings of an upcycled student, such as split.num_starts=4.",
        ),
    ] = None,
) -> None:
    """Make a mixture of experts of a dense model, and say how near the two are.

    With all experts active and equal gates it computes what the dense model does. The folder is an
    ordinary one: transformers loads it and generates with it, and `student: FOLDER` trains it.
    """
    tree: dict[str, Any] = {
        "experts": experts,
        "active": active,
        "shared": shared,
        "split": _split(split, cluster_on, size_tolerance),
        "gates": gates.value,
    }
    if router is not None:
        tree["router"] = {"kind": router.value}
    with named_as_options():
        outcome = recipes.upcycle_model(
            recipes.Source(
                model=model,
                output=output,
                overwrite=overwrite,
                calibration=calibration,
                num_rows=rows,
                dtype=None if dtype is None else dtype.value,
                seed=seed,
            ),
            recipes.student_of("upcycled", tree, overrides or []),
            keep_layers=keep_layers,
            narrator=LiveNarrator(err()),
        )
    console = out()
    console.print(fidelity_table(outcome))
    console.print(load_table(outcome))
    for line in upcycle_lines(outcome):
        typer.echo(line)


def _split(split: Split, cluster_on: RowsOf | None, size_tolerance: float) -> dict[str, Any]:
    tree: dict[str, Any] = {"kind": split.value}
    if cluster_on is not None:
        tree["rows"] = cluster_on.value
    if size_tolerance:
        tree["size_tolerance"] = size_tolerance
    if len(tree) > 1 and split != Split.clustered:
        option = "--cluster-on" if cluster_on is not None else "--size-tolerance"
        raise ConfigError(
            f"{option} is given and --split is {split.value}, which clusters no weights; it must "
            "be left out. Remove it, or use --split clustered."
        )
    return tree
