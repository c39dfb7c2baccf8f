"""The command `chipnet` itself: its help and what stands before a command. Part of `chipnet.lab.cli`."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from chipnet import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Budget-aware structured pruning of PyTorch networks.",
    epilog="Exit codes: 0 done; 1 it broke while training; 2 it cannot be done as asked, and nothing was trained; "
    "130 stopped by Ctrl-C or SIGTERM.",
)


def _version(show: bool) -> None:
    if show:
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
