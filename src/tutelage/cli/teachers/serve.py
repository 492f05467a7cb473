"""`tutelage serve`: a teacher behind HTTP, for students on other machines."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tutelage import recipes
from tutelage.cli.console import err, told_in_one_line
from tutelage.cli.progress import LiveNarrator

if TYPE_CHECKING:
    # Only for its type: importing it would import torch before `--help` is out.
    from tutelage.teachers.remote import Served


@told_in_one_line
def serve(  # noqa: PLR0913  an option each
    model: Annotated[
        str, typer.Argument(help="A hub name, a folder, a .gguf file or package:NAME.")
    ],
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8077,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="TUTELAGE_TOKEN",
            show_default=False,
            help="Who has it may ask. Better in the variable: a command line is seen by others.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the weights; auto keeps what they were saved in."),
    ] = "auto",
    name: Annotated[
        str | None,
        typer.Option("--served-name", help="What to call it; by default MODEL itself."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="Read rows side by side up to so many tokens, for a GPU; 0: one by one, so that "
            "the same row has the same bits every time.",
        ),
    ] = 0,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run Python code that comes with the model."),
    ] = False,
) -> None:
    """Serve a model as a teacher: exact token ids in; hidden states, top-k or logits out.

    Needs `pip install 'tutelage[serve]'`. Ctrl-C ends it.
    """
    plan = recipes.ServePlan(
        model=model,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        served_name=name,
        host=host,
        port=port,
        token=token,
        batch_tokens=batch_tokens,
    )

    def ready(served: "Served", url: str) -> None:
        typer.echo(
            f"serving {served.model} ({served.num_entries:,} entries, {served.dtype}) at {url}, "
            f"{'with' if token else 'without'} a token"
        )

    recipes.serve_model(plan, ready=ready, narrator=LiveNarrator(err()))
