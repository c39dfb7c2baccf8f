"""`chipnet bench`. Part of `chipnet.lab.cli`."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from chipnet._util.lock import claimed
from chipnet._util.text import amount
from chipnet.errors import ConfigError
from chipnet.lab.cli.console import Console
from chipnet.lab.cli.errors import failures, refusals, stop_signals
from chipnet.lab.cli.options import Command
from chipnet.lab.cli.show import Bars

app = typer.Typer()


@app.command(cls=Command, short_help="Run a grid of networks, data, budgets, methods and seeds.")
def bench(
    config: Annotated[
        str, typer.Argument(help="YAML file: models, data, budgets, methods, seeds; docs/bench.md")
    ],
    data_dir: Annotated[
        list[str] | None,
        typer.Option(help="folder of all data sets, or NAME=DIR for one of them; repeatable"),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="folder of all runs [default: the file's, or runs/FILE]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the runs and their states")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="do everything once, as briefly as possible")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="try failed runs again")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: PyTorch's]")] = None,
) -> None:
    """Run a grid of networks, data, budgets, methods and seeds, or resume it where it stopped.

    In the folder afterwards: results.csv (one row per run), tables.md, plots/, and one folder per run.
    """
    console = Console()
    with refusals():
        from chipnet.lab.devices import torchruns, use_threads
        from chipnet.lab.runs import bench as runner
        from chipnet.lab.runs import grid as grids
        from chipnet.lab.runs import tables
        from chipnet.lab.runs.rows import status

        if torchruns() > 1:
            raise ConfigError(
                "chipnet bench does not train one run on several processes. Start it without torchrun, as often as "
                "there is room: its processes share the runs among them."
            )
        grid = grids.read_grid(config, out)
        grid = grids.smoke(grid) if smoke else grid
        names = dict(grids.data_dir(text, grid.data) for text in data_dir or ())
        use_threads(threads)
        if dry_run:
            for run in grids.runs_of(grid):
                print(f"{status(grid, run)}\t{run.folder}")
            return
        runner.preflight(grid, names, retry)
    with failures(), stop_signals() as stop, Bars(console, quiet=True) as bars:

        def told(number: int, total: int, run: grids.GridRun, text: str) -> None:
            console.tell(f"{number}/{total} {run.folder}: {text}")

        command = shlex.join(["chipnet", *sys.argv[1:]])
        rows = runner.bench(grid, names, command=command, retry=retry, watcher=bars, stop=stop, told=told)
        console.tell(f"\n{tables.write_tables(grid, rows).read_text()}")
        with claimed(grid.out) as mine:
            text = f"another process draws the plots in {grid.out / 'plots'}"
            if mine:
                try:
                    text = f"{amount(len(tables.write_plots(grid, rows)), 'plot')} in {grid.out / 'plots'}"
                except ConfigError as error:
                    text = f"no plots: {error}"
            console.tell(text)
        if rows and all(row["status"] == "failed" for row in rows):
            raise typer.Exit(1)
