"""What became of the runs of a grid: results.csv, with a row a run, made from the run folders."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from chipnet import Budget
from chipnet._util.files import write_atomically
from chipnet.analysis.kinds import KINDS, LATENCY
from chipnet.budget.landing import Landing
from chipnet.errors import LoadError
from chipnet.lab.runs.grid import Grid, GridRun, is_rival, runs_of
from chipnet.lab.runs.record import RESULT, read_json, read_metrics

RESULTS, ERROR = "results.csv", "error.json"
RECOVERY = (0, 1, 2, 5, 10)
"""Epochs of fine-tuning after which the accuracy is reported."""
COLUMNS = (
    "model", "data", "budget", "method", "seed", "status", "dense", "soft", "hard", "final",
    *KINDS, LATENCY, "above", *(f"after_{n}" for n in RECOVERY), "epochs", "seconds", "folder", "error",
)  # fmt: skip
"""The columns of results.csv: accuracies in percent on the test images (`hard` as cut, `final` after fine-tuning),
what remains of each cost as a fraction (of time, as measured, where that is the budget), the kinds in which it is
more than the budget (masks of another data set may be), validation accuracies after so many epochs of
fine-tuning."""


def status(grid: Grid, run: GridRun) -> str:
    """``done``, ``failed`` or ``open``."""
    folder = grid.out / run.folder
    return "done" if (folder / RESULT).exists() else "failed" if (folder / ERROR).exists() else "open"


def write_results(grid: Grid) -> list[dict[str, Any]]:
    """Write results.csv anew from the run folders; returns its rows. Runs that are still open have none."""
    rows = []
    for run in runs_of(grid):
        try:
            rows.append(row(grid, run))
        except FileNotFoundError:
            if status(grid, run) != "open":  # or is open again: another process took it for a retry just now
                raise
        except LoadError:
            if not is_rival(run.method):  # of a rival's another process has not judged yet
                raise
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    write_atomically(grid.out / RESULTS, text.getvalue().encode())
    return rows


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a results.csv, numbers as numbers."""
    texts = {"model", "data", "budget", "method", "status", "above", "folder", "error"}
    with open(path, newline="") as file:
        return [
            {k: v if k in texts or v == "" else int(v) if k == "seed" else float(v) for k, v in r.items()}
            for r in csv.DictReader(file)
        ]


def row(grid: Grid, run: GridRun) -> dict[str, Any]:
    """One row of results.csv, from the run's folder."""
    folder = grid.out / run.folder
    values: dict[str, Any] = {c: "" for c in COLUMNS}
    values |= {k: getattr(run, k) for k in ("model", "data", "budget", "method", "seed", "folder")}
    values["status"] = status(grid, run)
    if values["status"] == "failed":
        said = read_json(folder / ERROR, "Try the run again: --retry.").get("error")
        values["error"] = " ".join(str(said).split())
        return values
    try:
        result = json.loads((folder / RESULT).read_text())
        for name, part in (("dense", "dense"), ("soft", "soft"), ("hard", "hard"), ("final", "compact")):
            values[name] = "" if (known := result[part]["accuracy"]) is None else float(known)
        values |= {k: result["compact"][k] / max(result["dense"][k], 1) for k in KINDS}
        values["seconds"] = float(result["seconds"]["total"])
        limits = Budget.parse(run.budget).limits({**result["dense"], LATENCY: 0}) if run.budget else {}
        values["above"] = " ".join(k for k in KINDS if result["compact"][k] > limits.get(k, math.inf))
        values[LATENCY] = Landing(**landed).left if (landed := result.get(LATENCY)) is not None else ""
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise LoadError(
            f"{folder / RESULT} is damaged ({said}); remove it, and the run is done again"
        ) from error
    if run.anew:
        values |= {"dense": "", "soft": "", "hard": ""}
    rows = read_metrics(folder)
    tuned = {int(r["epoch"]): r for r in rows if r["phase"] == "finetune"}
    for epoch in RECOVERY:
        if epoch in tuned:
            values[f"after_{epoch}"] = float(tuned[epoch]["validation_accuracy"])
    values["epochs"] = sum(1 for r in rows if int(r["epoch"]) > 0)
    return values
