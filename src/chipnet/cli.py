"""The command line. Each command is in a file of its own, `_cli_*.py`; this one puts them together.

Exit codes: 0 done; 1 something broke while training; 2 a request that cannot be used, said in one line
before any training; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import sys

import typer

from chipnet import _cli_bench, _cli_inspect, _cli_prune, _cli_runs, _cli_transfer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Budget-aware structured pruning of PyTorch networks.",
)
for _part in (_cli_prune, _cli_transfer, _cli_bench, _cli_inspect, _cli_runs):
    app.add_typer(_part.app)


def main() -> None:
    """Entry point of the `chipnet` command."""
    try:
        app(prog_name="chipnet")
    except SystemExit as end:
        if not end.code and "torch" in sys.modules:
            from chipnet._distributed import leave

            leave()
        raise


if __name__ == "__main__":
    main()
