"""The command line. Each command is in a file of its own; this one puts them together.

Exit codes: 0 done; 1 something broke while training; 2 a request that cannot be used, said before any training, in
one line for each mistake; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import sys

from chipnet.lab.cli import bench, inspect, prune, runs, transfer, val
from chipnet.lab.cli.root import app

__all__ = ["app", "main"]

for _part in (prune, val, transfer, bench, inspect, runs):
    app.add_typer(_part.app)


def main() -> None:
    """Entry point of the `chipnet` command."""
    try:
        app(prog_name="chipnet")
    except SystemExit as end:
        if not end.code and "torch" in sys.modules:
            from chipnet._util.distributed import leave

            leave()
        raise
