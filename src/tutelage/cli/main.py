"""`tutelage`: all words in one place. Nothing heavy is imported until a word needs it."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

# Read by torch's CPU allocator when it is first imported: huge pages for large tensors.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import typer

from tutelage.cli import compare, doctor, evaluate, listing, report, show, train
from tutelage.cli.console import DEBUG_VARIABLE, EXIT_CODES
from tutelage.cli.making import prune, reroute, upcycle
from tutelage.cli.teachers import cache, serve

_EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES) + "."

app = typer.Typer(
    name="tutelage",
    help="Distil large language models: exact losses, no full logits, runs that resume.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("train")(train.train)
app.command("demo")(train.demo)
app.command("cache")(cache.cache)
app.command("serve")(serve.serve)
app.command("upcycle")(upcycle.upcycle)
app.command("reroute")(reroute.reroute)
app.command("prune")(prune.prune)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.command("show")(show.show)
app.command("doctor")(doctor.doctor)
app.command("list")(listing.list_all)


def _say_version(asked: bool | None) -> None:  # noqa: FBT001 - typer hands the flag over by place
    if asked:
        typer.echo(f"tutelage {version('tutelage')}")
        raise typer.Exit


@app.callback()
def _every_word(
    *,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Goes anywhere.")
    ] = False,
    _version: Annotated[
        bool | None,
        typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True),
    ] = None,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def main() -> None:
    """The entry point of the `tutelage` command."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *(text for text in arguments if text != "--debug")]
    app(args=arguments)


if __name__ == "__main__":
    main()
