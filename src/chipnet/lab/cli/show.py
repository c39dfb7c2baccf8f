"""What the command line shows of a run: progress, the table at the end, its files. Part of `chipnet.lab.cli`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskID
from rich.table import Column, Table

from chipnet._util.text import amount
from chipnet.analysis.kinds import LATENCY
from chipnet.lab.cli import runs
from chipnet.lab.cli.console import Console, Text
from chipnet.lab.cli.errors import failures, first, stop_signals
from chipnet.lab.config import EPOCHS
from chipnet.lab.runs.record import FILES, MODEL, SHRINK, budget_text, output_error, states

if TYPE_CHECKING:
    from chipnet.lab.job import Job


class _Saying(logging.Handler):
    """What the library logs: facts like other output, warnings on stderr; the same text once in a command,
    however many runs it has."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not first() or text in self.console.said:
            return
        self.console.said.add(text)
        if record.levelno >= logging.WARNING:
            print(f"warning: {text}", file=sys.stderr)
        else:
            self.console.tell(text)


@contextmanager
def said(console: Console) -> Iterator[None]:
    """Show what the library logs on the way."""
    log, handler = logging.getLogger("chipnet"), _Saying(console)
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


class Bars:
    """A `Watcher` with one progress bar a phase; where stdout is no terminal, a plain line an epoch and a phase."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        """``quiet``: no lines where stdout is no terminal."""
        self.console, self.quiet = console, quiet
        # What is told, most important first, is cut where the terminal ends; the bar has what is left over.
        told = Column(no_wrap=True, overflow="ellipsis", ratio=4)
        self.progress = Progress(
            Text("{task.description}", Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            Text("{task.fields[text]}", told),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self.task: TaskID | None = None
        self.phase = ""

    def __enter__(self) -> Bars:
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

    def epoch(self, text: str) -> None:
        self._line(f"{self.phase} {text}")

    def end(self, text: str) -> None:
        if self.task is not None:
            self.progress.update(self.task, text=text)
        self._line(f"{self.phase}: {text}")

    def _line(self, text: str) -> None:
        if not self.console.is_terminal and not self.quiet:
            self.console.tell(text)


def carried_out(console: Console, job: Job) -> None:
    """Do the run, and show what it came to."""
    from chipnet.lab.train import run

    with said(console), failures(), stop_signals() as stop, Bars(console) as bars:
        result = run(job, bars, stop)
    show_result(console, result, job.out)


def show_result(console: Console, result: Mapping[str, Any], out: Path) -> None:
    """The end of a run: its report, its table, its files."""
    if not first():
        return
    runs.report_after(out)
    console.print(summary(result))
    if LATENCY in result:
        from chipnet.budget.landing import Landing

        console.tell(str(Landing(**result[LATENCY])))
    lines = [output_error(result)] if SHRINK in result else []
    there = ", ".join(name for name in FILES if (out / name).is_file())
    lines += [_verified(result), f"In {out}: {there}", *how_to_load(result, out)]
    console.tell("\n".join(lines))


def dry(job: Job) -> list[str]:
    """What a run would do."""

    structure, recipe, dense = job.structure, job.recipe, job.dense
    free = sum(bool(site.free) for site in structure.sites)
    limits, smallest = structure.limits(job.budget), structure.smallest()
    counts = ", ".join(f"{name} {count:,}" for name, count in job.data.counts().items() if count is not None)
    if job.request.no_train:
        how = [f"without training: curves and a refit, on {amount(job.request.images, 'image')}"]
    else:
        batches = len(job.data.loader("train", recipe.batch_size // job.fabric.world_size, train=True))
        epochs = [
            f"{n} {e} (of {amount(e * batches, 'step')})" for n, e in zip(EPOCHS, recipe.epochs, strict=True)
        ]
        how = [f"method: {job.request.method}"]
        how += [f"epochs: {', '.join(epochs)}; batches of {recipe.batch_size}"]
    lines = [
        f"images: {counts}",
        f"network: {free} of {amount(len(structure.sites), 'site')} can be pruned, "
        f"{amount(structure.gates, 'gate')}",
        "dense: " + ", ".join(f"{kind} {dense[kind]:,}" for kind in dense.to_json()),
    ]
    lines += [
        f"budget: {kind} at most {limit:,}; smallest reachable {smallest[kind]:,}"
        for kind, limit in limits.items()
    ]
    return [
        *lines,
        *how,
        f"device: {job.fabric.device}, {job.request.threads} CPU thread(s)",
        f"folder: {job.out}",
        "Nothing was trained or written (--dry-run).",
    ]


def how_to_load(result: Mapping[str, Any], out: Path) -> list[str]:
    """The place of the compact network, and three lines of Python that load it.

    >>> given = {"num_classes": 10, "in_channels": 1}
    >>> for line in how_to_load({"model": "nets:make", "input": given}, Path("runs/a")):
    ...     print(line)
    The compact network is runs/a/model.safetensors. In Python:
        import chipnet
        from chipnet.lab.models import get_model
        network = chipnet.load(lambda: get_model('nets:make', 10, 1), 'runs/a/model.safetensors')
    """
    file, model, given = str(out / MODEL), result["model"], result["input"]
    if ":" in model:  # a folder does not choose which code runs
        code = [
            "import chipnet",
            "from chipnet.lab.models import get_model",
            f"network = chipnet.load(lambda: get_model({model!r}, {given['num_classes']}, {given['in_channels']}), "
            f"{file!r})",
        ]
    else:
        size = given["image_size"]
        code = [
            "import chipnet.lab.runs.folder",
            f"network = chipnet.lab.runs.folder.from_pretrained({str(out)!r})",
            f"logits = network(images)  # float32 [N, {given['in_channels']}, {size}, {size}]",
        ]
    return [f"The compact network is {file}. In Python:", *(f"    {line}" for line in code)]


def summary(result: Mapping[str, Any]) -> Table:
    """The table at the end of a run, from what result.json holds."""
    from chipnet.lab.runs.folder import loss_text, percent

    budget = budget_text(result["budget"])
    table = Table(
        title=f"{result['model']} on {result['data']}, {result['method']}, budget {budget}",
        caption=f"start: the network of {result['start']['run']}" if "start" in result else None,
        caption_justify="left",
        title_justify="left",
        show_lines=True,
    )
    table.add_column("")
    for name in ("accuracy", "params", "MACs", "volume", "channels", "budget"):
        table.add_column(name, justify="right")
    dense = result["dense"]
    for row, called in states(result).items():
        values = result[row]
        cells = [
            percent(values["accuracy"]) + (f"\nloss {loss_text(values['loss'])}" if "loss" in dense else "")
        ]
        cells += [
            f"{round(values[k]):,}\n{values[k] / max(dense[k], 1):.2%}".replace("%", " %")
            for k in ("params", "macs", "volume", "channels")
        ]
        table.add_row(called, *cells, _within(result, row))
    return table


def _within(result: Mapping[str, Any], row: str) -> str:
    """Is a network within the budget? "—" where that is not known: soft and masked ones are not timed."""
    limits, costs = dict(result["limits"]), dict(result[row])
    if LATENCY in limits and LATENCY in result:  # the limit is of the model of time; what counts was measured
        from chipnet.budget.landing import Landing

        took = Landing(**result[LATENCY])
        limits[LATENCY] = took.asked
        costs |= {"dense": {LATENCY: took.dense_measured}, "compact": {LATENCY: took.measured}}.get(row, {})
    known = [costs[kind] <= limit for kind, limit in limits.items() if kind in costs]
    return "above" if not all(known) else "met" if len(known) == len(limits) else "—"


def _verified(result: Mapping[str, Any]) -> str:
    verify = result["verify"]
    return (
        f"masked and compact outputs differ by {verify['max_abs_difference']:.1e} at most "
        f"(scale {verify['output_scale']:.3g}); {result['seconds']['total']:.0f} s"
    )
