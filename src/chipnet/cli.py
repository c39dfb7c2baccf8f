"""The command line: `chipnet prune`, `chipnet inspect`, `chipnet models`, and those of `_cli_runs`.

Exit codes: 0 done; 1 something broke while training; 2 a request that cannot be used, said in one line
before any training; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from chipnet import _cli_runs
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
_METHOD = "chipnet, chipnet-paper, magnitude, random or uniform"
_IGNORE = (
    "modules that keep all channels: a pattern of names ('layer1.*') or types ('type:Linear'); repeatable"
)
_ONLY = "the only modules that are pruned, written as for --ignore; repeatable"


@app.command()
def prune(
    out: Annotated[str, typer.Option(help="run folder; made if missing")],
    model: Annotated[str, typer.Option(help=_MODEL)] = "resnet8",
    data: Annotated[
        str, typer.Option(help="digits, fashion-mnist, cifar10, ..., or module:callable")
    ] = "digits",
    budget: Annotated[
        list[str] | None,
        typer.Option(help="what remains: macs=0.25, params=2M, latency=3ms; repeatable [default: macs=0.25]"),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help=_DATA_DIR)] = None,
    weights: Annotated[
        str | None, typer.Option(help="trained dense weights; the training phase is then left out")
    ] = None,
    method: Annotated[str, typer.Option(help=_METHOD)] = "chipnet",
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    epochs: Annotated[
        str | None, typer.Option(help="of each phase: one number, or train,prune,finetune such as 20,15,10")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="a first look: few epochs and 6,000 training images")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="images per step; unless --lr is given, the rate scales with it")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="peak learning rate of the SGD phases, at this batch size")
    ] = None,
    realisation: Annotated[str, typer.Option(help=_REALISATION)] = "plain",
    ignore: Annotated[list[str] | None, typer.Option(help=_IGNORE)] = None,
    only: Annotated[list[str] | None, typer.Option(help=_ONLY)] = None,
    min_channels: Annotated[int, typer.Option(help="channels that every layer keeps at least")] = 0,
    round_to: Annotated[
        int, typer.Option(help="widths are multiples of this (8 suits most hardware), or whole")
    ] = 1,
    validation: Annotated[float, typer.Option(help="part of the training images that chooses epochs")] = 0.1,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="measure batch norm statistics anew after the cut")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: PyTorch's]")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed")] = "32-true",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a finished run in --out")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars, no table")] = False,
) -> None:
    """Train (or load) a network, prune it to a budget, fine-tune it and save it.

    In the run folder afterwards: result.json, plan.json, model.safetensors, dense.safetensors, metrics.csv,
    report.html.
    """
    console = Console(quiet=quiet, highlight=False)
    with _refusals():
        from chipnet import train
        from chipnet._latency import Landing

        recipe = train.recipe_for(data, quick)
        request = train.Request(
            model=model,
            data=data,
            budget=budget or ["macs=0.25"],
            out=out,
            recipe=_adapted(recipe, epochs, batch_size, lr, recalibrate),
            data_dir=data_dir,
            weights=weights,
            method=method,
            realisation=cast(Literal["plain", "indexed"], realisation),
            ignore=tuple(ignore or ()),
            only=tuple(only or ()),
            min_channels=min_channels,
            round_to=round_to,
            seed=seed,
            validation=validation,
            accelerator=accelerator,
            precision=precision,
            overwrite=overwrite,
        )
        _use_threads(threads)
        job = train.prepare(request)
    with _failures(), _sigterm_as_ctrl_c(), _Bars(console) as bars:
        result = train.run(job, bars)
    _cli_runs.report_after(job.out)
    console.print(summary(result))
    if "latency" in result:
        console.print(str(Landing(**result["latency"])), soft_wrap=True)
    console.print(f"{_verified(result)}\nIn {job.out}: {', '.join(_FILES)}", soft_wrap=True)


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
    app(prog_name="chipnet")


# -- what the options mean --------------------------------------------------------------------------------

_FILES = ("result.json", "plan.json", "model.safetensors", "dense.safetensors", "metrics.csv", "report.html")


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


def _adapted(
    recipe: Any, epochs: str | None, batch_size: int | None, lr: float | None, recalibrate: bool
) -> Any:
    """The data set's recipe with the user's changes."""
    changes: dict[str, Any] = {"recalibrate": recalibrate}
    if epochs is not None:
        changes["train"], changes["prune"], changes["finetune"] = parse_epochs(epochs)
    if batch_size is not None:
        if batch_size < 2:
            raise ConfigError(f"--batch-size must be at least 2, not {batch_size}.")
        # The noise of SGD stays the same where rate and batch size change together.
        ratio = batch_size / recipe.batch_size
        changes |= {
            "batch_size": batch_size,
            "train_lr": recipe.train_lr * ratio,
            "prune_lr": recipe.prune_lr * ratio,
        }
    if lr is not None:
        changes |= {"train_lr": lr, "prune_lr": lr}
    return dataclasses.replace(recipe, **changes)


def _use_threads(threads: int | None) -> None:
    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"--threads must be at least 1, not {threads}.")
    import torch

    torch.set_num_threads(threads)


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


def _say(error: BaseException) -> None:
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
        print(str(error) or "stopped", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Batch systems end jobs with SIGTERM: leave what is done on disk then, too."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        old = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


# -- what is shown ----------------------------------------------------------------------------------------


class _Bars:
    """A `Watcher` with one progress bar a phase; a plain line a phase where stdout is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
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
        if not self.console.is_terminal:
            self.console.print(f"{self.phase}: {text}")


def summary(result: Mapping[str, Any]) -> Table:
    """The table at the end of a run, from what result.json holds."""
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
        cells = [f"{values['accuracy']:.2f} %"]
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
