"""What a run writes down as it goes: metrics.csv (a row an epoch), metrics.jsonl (a line every few steps).

Both only ever grow, so that "how far" is a number of bytes: a run that continues cuts off what a killed one
wrote after its last checkpoint.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chipnet.analysis.kinds import KINDS
from chipnet.lab.runs.record import CSV, JSONL

LOSSES = ("task", "distillation", "pruning", "budget", "crispness")
"""Parts of the loss; `pruning` is all of the method's, `budget` and `crispness` are parts of it."""

COLUMNS = (
    "phase", "epoch", "lr", *(f"{part}_loss" for part in LOSSES), "train_accuracy", "validation_accuracy",
    "hard_validation_accuracy", *(f"soft_{k}" for k in KINDS), *KINDS, "gates", "seconds", "data_seconds",
)  # fmt: skip


class Metrics:
    """The files of one run.

    Args:
        out: the run folder.
        position: what `position` was when the run's checkpoint was written; None for a new run.
        tensorboard: write event files into OUT/tensorboard, too.
    """

    def __init__(
        self, out: Path, position: Mapping[str, int] | None = None, tensorboard: bool = False
    ) -> None:
        self.out = out
        for name in (CSV, JSONL):
            size = (position or {}).get(name, 0)
            with open(out / name, "ab") as file:
                file.truncate(min(size, os.fstat(file.fileno()).st_size))
        if not (out / CSV).stat().st_size:
            self._append(CSV, ",".join(COLUMNS) + "\n")
        self.board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out / "tensorboard"))

    @property
    def position(self) -> dict[str, int]:
        """Bytes written so far, by file."""
        return {name: (self.out / name).stat().st_size for name in (CSV, JSONL)}

    def epoch(self, **values: Any) -> None:
        """One row of metrics.csv."""
        unknown = set(values) - set(COLUMNS)
        assert not unknown, unknown
        text = io.StringIO()
        row = [values.get(c, "") for c in COLUMNS]
        csv.writer(text, lineterminator="\n").writerow(
            [f"{v:.6g}" if isinstance(v, float) else v for v in row]
        )
        self._append(CSV, text.getvalue())

    def step(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl: `step` counts the steps of the phase, from 1."""
        finite = {k: round(v, 8) for k, v in values.items() if math.isfinite(v)}
        self._append(JSONL, json.dumps({"phase": phase, "step": step, **finite}) + "\n")
        if self.board is not None:
            for name, value in finite.items():
                self.board.add_scalar(f"{phase}/{name}", value, step)

    def histogram(self, name: str, values: Any, step: int) -> None:
        """A histogram, on TensorBoard alone."""
        if self.board is not None:
            self.board.add_histogram(name, values, step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()

    def _append(self, name: str, text: str) -> None:
        with open(self.out / name, "a", encoding="utf-8", newline="") as file:
            file.write(text)
