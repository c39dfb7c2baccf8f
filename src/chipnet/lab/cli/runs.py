"""Commands about finished runs: export, latency, report, ls. Part of `chipnet.lab.cli`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from chipnet._util.text import printable, shell_command
from chipnet.errors import LoadError, one_line
from chipnet.formats.runtimes import NAMES
from chipnet.lab.cli.console import Console
from chipnet.lab.cli.errors import refusals
from chipnet.lab.cli.inspect import TRUST
from chipnet.lab.cli.options import Command

if TYPE_CHECKING:
    from chipnet.lab.runs.folder import Run
    from chipnet.timing import Comparison

app = typer.Typer()

_RUN = "folder of a finished run"
_DATA_DIR = "folder of the run's data set, if it has moved"
_THREADS = "CPU threads [default: PyTorch's]"


@app.command("export", cls=Command, short_help="Write a run's network for another runtime, and check it.")
def export_run(
    run: Annotated[str, typer.Argument(help=_RUN)],
    format: Annotated[str, typer.Option(help=" or ".join(", ".join(NAMES).rsplit(", ", 1)))] = "onnx",
    output: Annotated[
        str | None, typer.Option(help="the file [default: model.SUFFIX in the run folder]")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="the dense network instead of the compact one")
    ] = False,
    opset: Annotated[int | None, typer.Option(help="of ONNX [default: PyTorch's]")] = None,
    static_batch: Annotated[
        int | None, typer.Option(help="batches of this size only [default: of any size]")
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="fold batch norms into the convolutions before them")
    ] = True,
    images: Annotated[int, typer.Option(help="test images on which outputs are compared")] = 64,
    data_dir: Annotated[str | None, typer.Option(help=_DATA_DIR)] = None,
    trust: Annotated[bool, typer.Option("--trust", help=TRUST)] = False,
) -> None:
    """Write a run's network for another runtime; load it there and compare on test images.

    A mismatch is an error and leaves no file. Budget, costs, accuracy, labels and preprocessing travel in the file.
    """
    with refusals():
        from chipnet import export
        from chipnet.formats.export import FORMATS
        from chipnet.lab.runs.folder import Run

        source = Run.open(run, trust)
        if format not in FORMATS:
            raise _config_error(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
        name = "dense" if dense else "model"
        done = export(
            source.dense() if dense else source.compact(),
            Path(output).expanduser() if output else source.folder / f"{name}{FORMATS[format].suffix}",
            source.images(static_batch or images, data_dir),
            format=format,
            dynamic_batch=static_batch is None,
            opset=opset,
            fold=fold,
            metadata=source.card(),
        )
    Console().tell(str(done))


@app.command(cls=Command, short_help="Measure a run's network and its dense one side by side.")
def latency(
    run: Annotated[str, typer.Argument(help=_RUN)],
    against: Annotated[
        str, typer.Option(help="dense: the run's own dense network; or another run's folder")
    ] = "dense",
    batch: Annotated[int, typer.Option(help="images per call")] = 1,
    threads: Annotated[int | None, typer.Option(help=_THREADS)] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="eager, compile or onnxruntime; repeatable [default: all]")
    ] = None,
    seconds: Annotated[float, typer.Option(help="of measurement per runtime")] = 3.0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    rows: Annotated[int, typer.Option(help="layers in the table")] = 12,
    trust: Annotated[bool, typer.Option("--trust", help=TRUST)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="everything, as JSON on stdout")] = False,
) -> None:
    """Measure a run's network and its dense one (or another run's) side by side, and say where the time went."""
    with refusals():
        import torch

        from chipnet.lab.runs.folder import Run
        from chipnet.lab.runs.record import DENSE, MODEL
        from chipnet.timing import RUNTIMES, compare

        if not 0 < seconds < math.inf:
            raise _config_error(f"--seconds must be above 0 and finite, not {seconds}.")
        if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
            raise _config_error(f"there is no device {device!r} here: cpu, or cuda where PyTorch finds one.")
        small = Run.open(run, trust)
        other = small if against == "dense" else Run.open(against, trust)
        if other.noise(1).shape != small.noise(1).shape:
            raise _config_error(f"{run} and {against} take images of different shapes.")
        names = ("dense" if against == "dense" else other.name, small.name)
        if names[0] == names[1]:
            names = (f"{names[0]} (against)", names[1])
        networks = (other.dense() if against == "dense" else other.compact(), small.compact())
        files = (other.folder / (DENSE if against == "dense" else MODEL), small.folder / MODEL)
        done = compare(
            {n: m.to(device) for n, m in zip(names, networks, strict=True)},
            small.noise(batch).to(device),
            runtimes=runtime or tuple(RUNTIMES),
            threads=threads,
            seconds=seconds,
        )
        sizes = {n: f.stat().st_size for n, f in zip(names, files, strict=True)}
    if as_json:
        print(json.dumps({**done.to_json(), "file_bytes": sizes}, indent=2))
        return
    _show(done, sizes, rows)


@app.command(cls=Command, short_help="Write one HTML page of a run, or of several.")
def report(
    runs: Annotated[list[str], typer.Argument(help="folders of finished runs, or folders that hold some")],
    output: Annotated[
        str | None,
        typer.Option(help="the page [default: report.html in the run, comparison.html above several]"),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help=TRUST)] = False,
) -> None:
    """Write one HTML page with everything in it: of one run, or a comparison of several."""
    with refusals():
        from chipnet.lab.runs.folder import find_runs
        from chipnet.lab.runs.report import report as write

        try:
            path = write(*find_runs(*runs, trust=trust), path=output)
        except OSError as error:
            raise _config_error(f"cannot write the report: {error}. Give another --output.") from error
    print(path)


@app.command("ls", cls=Command)
def list_runs(
    folders: Annotated[list[str], typer.Argument(help="folders of runs, or folders that hold some")],
    sort: Annotated[
        str, typer.Option(help="name, accuracy, params, macs, volume, channels or date")
    ] = "name",
    as_json: Annotated[bool, typer.Option("--json", help="every result.json, as one list on stdout")] = False,
) -> None:
    """List finished runs as a table."""
    keys: dict[str, Callable[[Run], Any]] = {
        "name": lambda run: str(run.folder),
        "accuracy": lambda run: -(run.result["compact"]["accuracy"] or 0.0),
        "date": lambda run: run.result["environment"]["date"],
        **{k: lambda run, k=k: run.left(k) for k in ("params", "macs", "volume", "channels")},  # type: ignore[misc]
    }
    with refusals():
        from chipnet.lab.runs.folder import find_runs, percent
        from chipnet.lab.runs.record import budget_text

        if sort not in keys:
            raise _config_error(f"--sort {sort!r}: give one of {', '.join(keys)}.")
        damaged: list[str] = []
        found = sorted(find_runs(*folders, damaged=lambda e: damaged.append(one_line(e))), key=keys[sort])
        if not found:
            raise LoadError("; ".join(damaged))
    for text in damaged:
        print(printable(f"left out: {text}"), file=sys.stderr)
    if as_json:
        print(json.dumps([{"folder": str(run.folder), **run.result} for run in found], indent=2))
        return
    table = Table("run", "network", "data", "method", "budget", "dense", "compact", "params", "MACs", "date")
    for run in found:
        r = run.result
        table.add_row(
            str(run.folder),
            r["model"],
            r["data"],
            r["method"],
            budget_text(r["budget"]),
            *(percent(r[s]["accuracy"], "") for s in ("dense", "compact")),
            *(f"{100 * run.left(k):.2f} %" for k in ("params", "macs")),
            r["environment"]["date"][:10],
        )
    console = Console()
    if not console.is_terminal:  # a pipe has no width: nothing is cut off
        console.width = 400
        table.box = None
    console.print(table)


def report_after(*folders: Path) -> Path | None:
    """The report at the end of a run, or the comparison of several; they are finished whatever becomes of it."""
    from chipnet.lab.runs.report import report as write

    try:
        return write(*folders)
    except Exception as error:
        print(
            f"no report: {type(error).__name__}: {error}. Later: {shell_command('report', *folders)}",
            file=sys.stderr,
        )
        return None


def _show(done: Comparison, sizes: Mapping[str, int], limit: int) -> None:
    console = Console()
    first, second = done.names
    versions = ", ".join(f"{k} {v}" for k, v in done.versions.items())
    console.tell(f"{done.device}, {done.threads} thread(s), batch {done.batch}, {done.dtype}, {versions}")
    table = Table(
        "", first, second, "left", title="ms a call, in turns: median (quartiles)", title_justify="left"
    )
    for runtime, timing in done.timings.items():
        cells = [f"{t.median * 1e3:.3f} ({t.low * 1e3:.3f}–{t.high * 1e3:.3f})" for t in timing.values()]
        table.add_row(runtime, *cells, f"{done.ratios[runtime][0]:.0%}")
    for name, values in (
        ("activations", done.memory),
        ("file", sizes),
        ("MACs a call", done.macs),
    ):
        a, b = values[first], values[second]
        unit = "" if name == "MACs a call" else " B"
        table.add_row(name, f"{a:,}{unit}", f"{b:,}{unit}", f"{b / max(a, 1):.0%}")
    console.print(table)
    for runtime, why in done.skipped.items():
        console.tell(f"{runtime}: not measured. {why}")
    for line in done.verdict():
        console.tell(line)
    if limit > 0:
        layers = Table("layer", "kind", "width", "MACs left", "µs", "left", "why", title_justify="left")
        layers.title = "In eager mode, where most time is left over"
        for row in done.rows[:limit]:
            before, after = row.first, row.second
            widths = [str(part.writes) if part else "" for part in (before, after)]
            times = [f"{part.seconds * 1e6:.0f}" if part else "" for part in (before, after)]
            layers.add_row(
                row.name,
                next(part.kind for part in (after, before) if part),
                " to ".join(widths),
                f"{after.macs / before.macs:.0%}" if before and after and before.macs else "",
                " to ".join(times),
                f"{after.seconds / before.seconds:.0%}" if before and after and before.seconds else "",
                str(row),
            )
        console.print(layers)


def _config_error(text: str) -> Exception:
    from chipnet.errors import ConfigError

    return ConfigError(text)
