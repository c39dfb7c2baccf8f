"""What the command line shows of a run: progress, the table at the end, its files. Part of `chipnet.cli`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from chipnet import _cli_runs
from chipnet._budget import shown
from chipnet._cli_errors import first

_FILES = (
    "result.json", "plan.json", "masks.json", "model.safetensors", "dense.safetensors", "metrics.csv",
    "metrics.jsonl", "split.json", "config.yaml", "report.html",
)  # fmt: skip


class _Saying(logging.Handler):
    """What the library logs: facts like other output, warnings on stderr; the same text once."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console, self.before = console, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not first() or text in self.before:
            return
        self.before.add(text)
        if record.levelno >= logging.WARNING:
            print(f"warning: {text}", file=sys.stderr)
        else:
            self.console.print(text, soft_wrap=True, markup=False)


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

    def end(self, text: str) -> None:
        if self.task is not None:
            self.progress.update(self.task, text=text)
        if not self.console.is_terminal and not self.quiet:
            self.console.print(f"{self.phase}: {text}")


def show_result(console: Console, result: Mapping[str, Any], out: Path) -> None:
    """The end of a run: its report, its table, its files."""
    if not first():
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
