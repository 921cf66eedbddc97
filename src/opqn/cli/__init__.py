"""The command line: parse, call, print. What the verbs do stands in the modules they call."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer

from opqn._version import __version__
from opqn.cli.benchmarks import bench_app
from opqn.cli.finding import calibrate, identify, search
from opqn.cli.galleries import gallery_app
from opqn.cli.models import data_app, demo, embed, encode, evaluate, train
from opqn.console import errors, output
from opqn.errors import ConfigError, OpqnError

app = typer.Typer(
    name="opqn",
    help="Orthonormal Product Quantization Network: every face in a few bytes, found and named among millions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(gallery_app, name="gallery")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
for _verb in (demo, search, identify, calibrate, train, evaluate, encode, embed):
    app.command()(_verb)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with 0, 1 (failed), 2 (wrong usage) or 130 (stopped by Ctrl-C)."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    try:
        try:
            app(args=None if arguments is None else list(arguments))
        finally:
            sys.stdout.flush()
    except ConfigError as error:
        _fail(error, 2)
    except OpqnError as error:
        _fail(error, 130 if type(error).__name__ == "TrainingInterruptedError" else 1)
    except BrokenPipeError:  # the reader of our output, such as `head`, has enough; Python would complain at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _fail(error: object, status: int) -> NoReturn:
    errors.print(f"opqn: {error}", soft_wrap=True)
    sys.exit(status)


def _version(wanted: bool) -> None:
    if wanted:
        output.print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version
