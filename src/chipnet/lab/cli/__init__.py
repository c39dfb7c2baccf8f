"""The command line. Each command is in a file of its own; this one puts them together.

Exit codes: 0 done; 1 something broke while training; 2 a request that cannot be used, said before any training, in
one line for each mistake; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import platform
import sys
from typing import Annotated

import typer

from chipnet import __version__
from chipnet.lab.cli import bench, inspect, prune, runs, transfer, val

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Budget-aware structured pruning of PyTorch networks.",
    epilog="Exit codes: 0 done; 1 it broke while training; 2 it cannot be done as asked, and nothing was trained; "
    "130 stopped by Ctrl-C or SIGTERM.",
)
for _part in (prune, val, transfer, bench, inspect, runs):
    app.add_typer(_part.app)


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        torch = metadata.version("torch")  # without the seconds of its import
        print(f"chipnet {__version__} (torch {torch}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a command."""


def main() -> None:
    """Entry point of the `chipnet` command."""
    try:
        app(prog_name="chipnet")
    except SystemExit as end:
        if not end.code and "torch" in sys.modules:
            from chipnet._util.distributed import leave

            leave()
        raise
