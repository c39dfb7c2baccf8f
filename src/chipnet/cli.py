"""The command line: `chipnet prune`, `transfer`, `bench`, `inspect`, `models`, and the commands of `_cli_runs`.

Exit codes: 0 done; 1 something broke while training; 2 a request that cannot be used, said in one line
before any training; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect as inspect_
import io
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from chipnet import _cli_runs, _config
from chipnet._budget import shown
from chipnet._errors import ChipNetError, ConfigError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Budget-aware structured pruning of PyTorch networks.",
)
app.add_typer(_cli_runs.app)

_MODEL = "a name (`chipnet models`; torchvision's and timm's too), or module:callable"
_DATA = "digits, fashion-mnist, cifar10, cifar100, image-folder and more, or module:callable"
_DATA_DIR = "folder of the data set; nothing is ever downloaded"
_REALISATION = "plain: dense layers only; indexed: layers may read or write a part of a tensor by index"
_IGNORE = (
    "modules that keep all channels: a pattern of names ('layer1.*') or types ('type:Linear'); repeatable"
)
_WHOSE = "the run's own on its data, else the data set's"
_ONLY = "the only modules that are pruned, written as for --ignore; repeatable"


def _flags(function: Callable[..., None]) -> Callable[..., None]:
    """Give `function` a flag for every option of a run, all None unless given, in place of `**options`."""
    signature = inspect_.signature(function, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for cls in (_config.Request, _config.Recipe):
        for name, (kind, text, default) in _config.options(cls).items():
            if name not in _config.EPOCHS:
                fixed = cls is _config.Request and kind in (str, int, float) and default != ""
                shown = f"{text} [default: {default}]" if fixed else text
                parameters.append(_flag(name, _FLAG_TYPES.get(kind, str), shown))
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


_FLAG_TYPES: dict[Any, Any] = {
    bool: bool, int: int, int | None: int, float: float, float | None: float,
    tuple[str, ...]: list[str], Any: list[str],
}  # fmt: skip


def _flag(name: str, kind: Any, text: str) -> inspect_.Parameter:
    annotation = Annotated[kind | None, typer.Option(help=text, show_default=False)]
    return inspect_.Parameter(name, inspect_.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


@app.command()
@_flags
def prune(
    *,
    config: Annotated[
        str | None, typer.Option(help="YAML file of options, such as a run's config.yaml; flags win")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="folder of a run that was stopped or killed: continue it"),
    ] = None,
    quick: Annotated[
        bool | None, typer.Option(help="a first look: few epochs and 6,000 training images")
    ] = None,
    epochs: Annotated[
        str | None, typer.Option(help="of each phase: one number, or train,prune,finetune such as 20,15,10")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="both peak learning rates of SGD, at this batch size")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars, no table")] = False,
    **options: Any,
) -> None:
    """Train (or load) a network, prune it to a budget, fine-tune it and save it.

    In the run folder afterwards: result.json, plan.json, masks.json, model.safetensors, dense.safetensors,
    metrics.csv, metrics.jsonl, split.json, config.yaml, report.html.
    """
    console = Console(quiet=quiet or not _first(), highlight=False)
    with _refusals():
        if resume is not None:
            others = {"config": config, "quick": quick, "epochs": epochs, "lr": lr, **options}
            request, finished = _continued(resume, [n for n, value in others.items() if value is not None])
            if finished:
                console.print(f"{resume} is finished already.", soft_wrap=True)
                console.print(summary(finished))
                return
        else:
            request = _asked(config, quick, epochs, lr, options)
        from chipnet import train

        job = train.prepare(request, resume=resume is not None)
    with _failures(), _stop_signals() as stop, _Bars(console) as bars:
        result = train.run(job, bars, stop)
    _show(console, result, job.out)


@app.command()
def transfer(
    source: Annotated[str, typer.Option("--from", help="a finished run, or a file of masks")],
    out: Annotated[str, typer.Option(help="run folder; made if missing")],
    data: Annotated[str, typer.Option(help=_DATA)],
    model: Annotated[str | None, typer.Option(help=f"{_MODEL} [default: the run's]")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="refuse masks that cost more here; repeatable [default: compare with the run's]"),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help=_DATA_DIR)] = None,
    weights: Annotated[
        str | None, typer.Option(help="dense weights of the target to start from [default: new ones]")
    ] = None,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    epochs: Annotated[
        str | None, typer.Option(help=f"in all: one number [default: those of all phases, {_WHOSE}]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="a first look: few epochs and 6,000 training images")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(help=f"images per step [default: {_WHOSE}]")] = None,
    lr: Annotated[
        float | None, typer.Option(help=f"peak learning rate, at this batch size [default: {_WHOSE}]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help=f"keep only so many training images [default: {_WHOSE}]")
    ] = None,
    limit_test: Annotated[
        int | None, typer.Option(help=f"keep only so many test images [default: {_WHOSE}]")
    ] = None,
    realisation: Annotated[str | None, typer.Option(help=f"{_REALISATION} [default: the run's]")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help=_IGNORE)] = None,
    only: Annotated[list[str] | None, typer.Option(help=_ONLY)] = None,
    validation: Annotated[float, typer.Option(help="part of the training images that chooses epochs")] = 0.1,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: PyTorch's]")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed")] = "32-true",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a finished run in --out")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars, no table")] = False,
) -> None:
    """Train the compact network of another run's masks: same architecture, other data, classes, channels.

    On the run's own data the recipe is the run's own, epochs and limits included, unless an option says otherwise:
    the same architecture from new weights, with the same effort.
    """
    console = Console(quiet=quiet, highlight=False)
    with _refusals():
        from chipnet import _transfer, train

        asked = {"batch_size": batch_size, "limit": limit, "limit_test": limit_test}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if lr is not None:
            changes |= {"train_lr": lr, "prune_lr": lr}
        recipe, image_size, whose = _transfer.recipe_of(source, data, data_dir, quick)
        recipe = recipe.changed(changes)
        if epochs is not None:
            total = parse_total(epochs)
            # All epochs of the recipe are trained; pruning has at least one by itself.
            recipe = dataclasses.replace(recipe, train=0, prune=1, finetune=total - 1)
        request = _transfer.request_for(
            source,
            data,
            model=model,
            budget=budget,
            out=out,
            recipe=recipe,
            data_dir=data_dir,
            image_size=image_size,
            weights=weights,
            realisation=realisation,
            ignore=tuple(ignore or ()),
            only=tuple(only or ()),
            seed=seed,
            validation=validation,
            accelerator=accelerator,
            precision=precision,
            overwrite=overwrite,
            threads=threads,
        )
        job = _transfer.prepare(request, strict=bool(budget))
    console.print(
        f"masks of {source} fit; on {data} they leave {_transfer.reached(job)}; "
        f"{sum(job.recipe.epochs)} epochs by {whose}",
        soft_wrap=True,
    )
    with _failures(), _stop_signals() as stop, _Bars(console) as bars:
        result = train.run(job, bars, stop)
    _show(console, result, job.out)


@app.command()
def bench(
    config: Annotated[
        str, typer.Argument(help="YAML file: models, data, budgets, methods, seeds; docs/bench.md")
    ],
    data_dir: Annotated[
        list[str] | None, typer.Option(help="DIR, or NAME=DIR where data sets lie apart; repeatable")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="folder of all runs [default: the file's, or runs/FILE]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the runs and how they stand")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="everything once, as short as can be")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="run what failed again")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: PyTorch's]")] = None,
) -> None:
    """Run a grid of networks, data, budgets, methods and seeds; goes on where it stopped.

    In the folder afterwards: results.csv (a row a run), tables.md, plots/, and a folder a run.
    """
    console = Console(highlight=False)
    with _refusals():
        from chipnet import _bench, _bench_report
        from chipnet._job import torchruns, use_threads

        if torchruns() > 1:
            raise ConfigError(
                "chipnet bench does not train one run on several processes. Start it without torchrun, as often as "
                "there is room: its processes share the runs among them."
            )
        grid = _bench.read_grid(config, out)
        grid = _bench.smoke(grid) if smoke else grid
        names = dict(_bench.data_dir(text, grid.data) for text in data_dir or ())
        use_threads(threads)
        if dry_run:
            for run in _bench.runs_of(grid):
                print(f"{_bench.status(grid, run)}\t{run.folder}")
            return
        _bench.preflight(grid, names, retry)
    with _failures(), _stop_signals() as stop, _Bars(console, quiet=True) as bars:

        def told(number: int, total: int, run: _bench.Run, text: str) -> None:
            console.print(f"{number}/{total} {run.folder}: {text}", soft_wrap=True, markup=False)

        command = shlex.join(["chipnet", *sys.argv[1:]])
        rows = _bench.bench(grid, names, command=command, retry=retry, watcher=bars, stop=stop, told=told)
        console.print(f"\n{_bench_report.write_tables(grid, rows).read_text()}", markup=False, soft_wrap=True)
        with _bench.claimed(grid.out) as mine:
            text = f"another process draws the plots in {grid.out / 'plots'}"
            if mine:
                try:
                    text = f"{len(_bench_report.write_plots(grid, rows))} plots in {grid.out / 'plots'}"
                except ConfigError as error:
                    text = f"no plots: {error}"
            console.print(text, soft_wrap=True, markup=False)  # a path may hold brackets
        if rows and all(row["status"] == "failed" for row in rows):
            raise typer.Exit(1)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    data: Annotated[str | None, typer.Option(help="a data set whose image size and classes to use")] = None,
    data_dir: Annotated[str | None, typer.Option(help=_DATA_DIR)] = None,
    input: Annotated[
        str | None,
        typer.Option(help="shape of the input, such as 1,3,224,224 [default: 32 or 224 pixels]"),
    ] = None,
    num_classes: Annotated[int, typer.Option(help="size of the output, without --data")] = 10,
    realisation: Annotated[str, typer.Option(help=_REALISATION)] = "plain",
    ignore: Annotated[list[str] | None, typer.Option(help=_IGNORE)] = None,
    only: Annotated[list[str] | None, typer.Option(help=_ONLY)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON on stdout")] = False,
) -> None:
    """List what can be pruned in a network, what is tied, what is kept whole and why, and what it costs."""
    with _refusals():
        chosen = {"ignore": tuple(ignore or ()), "only": tuple(only or ())}
        report = _inspected(model, data, data_dir, input, num_classes, realisation, chosen)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    console = Console(highlight=False)
    sites = Table("site", "status", "channels", "gates", "why", title=f"{model}, input {report['input']}")
    for site in report["sites"]:
        sites.add_row(site["name"], site["status"], f"{site['channels']:,}", f"{site['gates']:,}", _why(site))
    console.print(sites)
    if report["untraced"]:
        names = _few(report["untraced"])
        console.print(f"Read by no forward that could be traced, kept as they are: {names}", markup=False)
    if report["pins"]:
        console.print("Kept whole (groups of channels that exist together × why):")
        for pin in report["pins"]:
            console.print(f"  {pin['count']} × {pin['reason']}", markup=False)
    cost = ", ".join(f"{kind} {count:,}" for kind, count in report["cost"].items())
    console.print(f"{report['gates']:,} gates. Cost: {cost}", soft_wrap=True)


def _why(site: Mapping[str, Any]) -> str:
    tied = ""
    if site["tied_to"]:
        by = "; ".join(
            dict.fromkeys(f"{t['reason']} in '{t['module']}' ({t['line']})" for t in site["ties"][:2])
        )
        tied = f"with {_few(site['tied_to'])}" + (f": {by}" if by else "")
    return "; ".join(text for text in (tied, site["reason"]) if text)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@app.command()
def models() -> None:
    """List the names of the networks that chipnet defines."""
    from chipnet.models import list_models

    print("\n".join(list_models()))
    print("also: wrn-<depth>-<width>, tv/NAME (torchvision), timm/NAME, module:callable", file=sys.stderr)


def main() -> None:
    """Entry point of the `chipnet` command."""
    try:
        app(prog_name="chipnet")
    except SystemExit as end:
        if not end.code and "torch" in sys.modules:
            from chipnet._distributed import leave

            leave()
        raise


# -- what the options mean --------------------------------------------------------------------------------

_FILES = (
    "result.json", "plan.json", "masks.json", "model.safetensors", "dense.safetensors", "metrics.csv",
    "metrics.jsonl", "split.json", "config.yaml", "report.html",
)  # fmt: skip


def parse_epochs(text: str) -> tuple[int, int, int]:
    """Epochs of training, pruning and fine-tuning, from one number for all or three.

    Raises:
        ConfigError: it is neither.

    Example:
        >>> parse_epochs("5"), parse_epochs("20, 15,10")
        ((5, 5, 5), (20, 15, 10))
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or min(numbers) < 0:
        raise ConfigError(
            f"--epochs {text!r}: give one whole number for all phases, or three as train,prune,finetune, "
            "such as 20,15,10."
        )
    first, middle, last = numbers * 3 if len(numbers) == 1 else numbers
    return first, middle, last


def parse_total(text: str) -> int:
    """Epochs in all, where there are no phases.

    Raises:
        ConfigError: not one whole number, or less than 1.
    """
    try:
        total = int(text)
    except ValueError:
        total = 0
    if total < 1:
        raise ConfigError(f"--epochs {text!r}: give one whole number, of at least 1: nothing is pruned here.")
    return total


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape of an input, from numbers with commas.

    Raises:
        ConfigError: not whole numbers above 0.

    Example:
        >>> parse_shape("1,3,224,224")
        (1, 3, 224, 224)
    """
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise ConfigError(f"--input {text!r}: give the shape of a batch of one, such as 1,3,224,224.")
    return shape


def _asked(
    config: str | None,
    quick: bool | None,
    epochs: str | None,
    lr: float | None,
    options: Mapping[str, Any],
) -> _config.Request:
    """The request that a config file and the flags over it make."""
    given = {name: value for name, value in options.items() if value is not None}
    if "method" in given:  # of a run with masks it is only a name, but one that is typed is meant
        from chipnet.methods import read_method

        read_method(given["method"])
    recipe = {name: given.pop(name) for name in _config.options(_config.Recipe) if name in given}
    if epochs is not None:
        recipe |= dict(zip(_config.EPOCHS, parse_epochs(epochs), strict=True))
    if lr is not None:
        recipe = {"train_lr": lr, "prune_lr": lr} | recipe
    flags = {**given, "recipe": recipe, "quick": quick}
    if config is None:
        return _config.request_from(flags, source="the options")
    request = _config.request_from(_config.read_config(config), flags, source=config)
    if "out" not in given and not request.overwrite:
        request = dataclasses.replace(request, out=_config.unused(request.out))
    return request


def _continued(resume: str, others: list[str]) -> tuple[_config.Request, dict[str, Any] | None]:
    """The request of the run in `resume`; where it is finished, what its result.json holds."""
    if others:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ConfigError(f"a run that continues keeps the options it began with: leave out {flags}.")
    out = Path(os.path.expanduser(resume))
    if not os.path.isfile(out / _config.CONFIG):
        raise ConfigError(f"there is no run in {out}: it has no {_config.CONFIG}.")
    result = out / "result.json"
    finished = json.loads(result.read_text()) if result.is_file() else None
    path = out / _config.CONFIG
    return _config.request_from(_config.read_config(path), {"out": str(out)}, source=str(path)), finished


def _inspected(
    model: str,
    data: str | None,
    data_dir: str | None,
    shape: str | None,
    num_classes: int,
    realisation: str,
    chosen: Mapping[str, tuple[str, ...]],
) -> dict[str, Any]:
    from collections import Counter

    import torch

    from chipnet import Structure
    from chipnet.data import load_data
    from chipnet.models import get_model, list_models

    if data is not None:
        if shape is not None:
            raise ConfigError("give --data or --input, not both.")
        loaded = load_data(data, data_dir)
        num_classes = loaded.num_classes
        size = (1, loaded.in_channels, loaded.image_size, loaded.image_size)
    elif shape is not None:
        size = cast("tuple[int, int, int, int]", parse_shape(shape))
    else:
        own = model.lower().replace("_", "-") in list_models() or model.lower().startswith("wrn")
        size = (1, 3, 32, 32) if own else (1, 3, 224, 224)
    network = get_model(model, num_classes, size[1])
    structure = Structure(
        network,
        torch.zeros(size),
        realisation=cast(Literal["plain", "indexed"], realisation),
        ignore=chosen["ignore"],
        only=chosen["only"],
    )
    pins = Counter(str(pin) for pin in structure.graph.pins.values())
    return {
        "model": model,
        "input": list(size),
        "realisation": realisation,
        "gates": structure.gates,
        "cost": structure.cost.dense.to_json(),
        "sites": structure.report(),
        "untraced": list(structure.untraced),
        "pins": [{"reason": reason, "count": count} for reason, count in pins.most_common()],
    }


# -- errors and signals -----------------------------------------------------------------------------------


def _one_line(error: BaseException) -> str:
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    ended = [line if line[-1] in ".:;,?!" else f"{line}." for line in lines[:-1]]
    return " ".join([*ended, *lines[-1:]])


def _first() -> bool:
    """Is this the first of the processes that Lightning or torchrun have started?"""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _say(error: BaseException) -> None:
    if _first() or not isinstance(error, ConfigError):  # the others refuse the same request
        print(f"error: {_one_line(error)}", file=sys.stderr)


@contextmanager
def _refusals() -> Iterator[None]:
    """A request that cannot be used: one line and exit code 2."""
    # torch.export logs, and prints as whole graphs, what it is about to raise; the error says it better.
    logging.getLogger("torch.fx.experimental.symbolic_shapes").setLevel(logging.ERROR)
    held = io.StringIO()
    try:
        with contextlib.redirect_stderr(held):
            yield
    except ChipNetError as error:
        _say(error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("stopped before training", file=sys.stderr)
        raise typer.Exit(130) from None
    except BaseException:
        sys.stderr.write(held.getvalue())
        raise
    sys.stderr.write(held.getvalue())


@contextmanager
def _failures() -> Iterator[None]:
    """What goes wrong while training: one line and exit code 1, or 130 where the user stopped it."""
    try:
        yield
    except (ChipNetError, OSError) as error:
        _say(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as error:
        if _first():
            print(str(error) or "stopped", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM (how batch systems end jobs) ask the run to save and stop; a second one ends it."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        if _first():
            print("stopping after this step; once more stops at once", file=sys.stderr)

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        old = [signal.signal(number, ask) for number in signals]
    except ValueError:  # only the main thread may set handlers
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in zip(signals, old, strict=True):
            signal.signal(number, handler)


# -- what is shown ----------------------------------------------------------------------------------------


class _Bars:
    """A `Watcher` with one progress bar a phase; a plain line a phase where stdout is no terminal."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        """``quiet``: no lines where stdout is no terminal."""
        self.console, self.quiet = console, quiet
        self.progress = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None
        self.phase = ""

    def __enter__(self) -> _Bars:
        self.progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.progress.stop()

    def start(self, phase: str, steps: int) -> None:
        self.phase = phase
        self.task = self.progress.add_task(phase, total=steps, text="")

    def tick(self, text: str) -> None:
        if self.task is not None:
            self.progress.update(self.task, text=text)

    def advance(self, steps: int) -> None:
        if self.task is not None:
            self.progress.advance(self.task, steps)

    def end(self, text: str) -> None:
        if self.task is not None:
            self.progress.update(self.task, text=text)
        if not self.console.is_terminal and not self.quiet:
            self.console.print(f"{self.phase}: {text}")


def _show(console: Console, result: Mapping[str, Any], out: Path) -> None:
    """The end of a run: its report, its table, its files."""
    if not _first():
        return
    _cli_runs.report_after(out)
    console.print(summary(result))
    if "latency" in result:
        from chipnet._latency import Landing

        console.print(str(Landing(**result["latency"])), soft_wrap=True)
    console.print(f"{_verified(result)}\nIn {out}: {', '.join(_FILES)}", soft_wrap=True)


def summary(result: Mapping[str, Any]) -> Table:
    """The table at the end of a run, from what result.json holds."""
    from chipnet.runs import percent

    budget = shown(result["budget"])
    table = Table(
        title=f"{result['model']} on {result['data']}, {result['method']}, budget {budget}",
        title_justify="left",
        show_lines=True,
    )
    table.add_column("")
    for name in ("accuracy", "params", "MACs", "volume", "channels", "budget"):
        table.add_column(name, justify="right")
    dense = result["dense"]
    for row in ("dense", "soft", "hard", "compact"):
        values = result[row]
        cells = [percent(values["accuracy"])]
        cells += [
            f"{round(values[k]):,}\n{values[k] / max(dense[k], 1):.2%}".replace("%", " %")
            for k in ("params", "macs", "volume", "channels")
        ]
        table.add_row(row, *cells, _within(result["limits"], values))
    return table


def _within(limits: Mapping[str, int], values: Mapping[str, Any]) -> str:
    """Is a row within the largest integer costs that the budget allows?"""
    return "met" if all(values[k] <= limit for k, limit in limits.items() if k in values) else "above"


def _verified(result: Mapping[str, Any]) -> str:
    verify = result["verify"]
    return (
        f"masked and compact outputs differ by {verify['max_abs_difference']:.1e} at most "
        f"(scale {verify['output_scale']:.3g}); {result['seconds']['total']:.0f} s"
    )


if __name__ == "__main__":
    main()
