"""The README's plot and table, accuracy against the MACs that are left, drawn from rows that were measured.

    chipnet bench benchmarks/configs/extreme-budgets-small.yaml --data-dir DIR     # measures: hours of two cores
    cp runs/extreme-budgets-small/results.csv docs/results/extreme-budgets-small.csv
    python -m benchmarks.front                                                     # draws: docs/img/front.svg
    python -m benchmarks.front --check      # exit code 1 where the README's table is not what the rows say

The table stands between `<!-- front -->` and `<!-- end -->`. Means and standard deviations are over seeds (of the
sample: divided by their number less one).
"""

from __future__ import annotations

import argparse
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from chipnet._util.files import write_atomically
from chipnet.lab.runs.rows import read_results

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "docs" / "results" / "extreme-budgets-small.csv"
PLOT = ROOT / "docs" / "img" / "front.svg"
NETWORK = "resnet20"
METHODS = {
    "chipnet": ("chipnet (default)", "#4477aa", "o"),
    "uniform": ("uniform widths", "#228833", "s"),
    "benchmarks.rivals:torch_pruning": ("Torch-Pruning", "#ee6677", "D"),
}
"""Method of the rows -> how it is called, its colour and its marker."""
_TABLE = re.compile(r"(<!-- front -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Point:
    """One method at one budget: percent of the MACs left, and mean and deviation of the accuracy, in percent."""

    budget: str
    macs: float
    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.deviation:.1f}"


def points(method: str) -> list[Point]:
    """The method's points, one a budget, in the order of the rows."""
    rows = [r for r in read_results(ROWS) if r["model"] == NETWORK and r["method"] == method]
    found = []
    for budget in dict.fromkeys(r["budget"] for r in rows):
        mine = [r for r in rows if r["budget"] == budget]
        final = [r["final"] for r in mine]
        macs = 100 * statistics.mean(r["macs"] for r in mine)
        found.append(Point(budget, macs, statistics.mean(final), statistics.stdev(final)))
    return found


def table() -> str:
    """The README's table, in Markdown; a method's own MACs stand where they are not the budget's."""
    names = [name for name, _, _ in METHODS.values()]
    (dense,) = points("dense")
    lines = [f"| MACs that may remain | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    lines.append(f"| 100 %: the dense network | {' | '.join([str(dense)] * len(names))} |")
    for same_budget in zip(*map(points, METHODS), strict=True):
        allowed = 100 * float(same_budget[0].budget.removeprefix("macs="))
        cells = [
            str(p) if p.macs > 0.95 * allowed else f"{p} (took {p.macs:.2g} %)"
            for p in same_budget
        ]  # fmt: skip
        lines.append(f"| {allowed:g} % | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot() -> None:
    """Draw the picture."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    (dense,) = points("dense")
    axes.axhline(dense.mean, color="#777777", linestyle="--", linewidth=1, label="dense network")
    for method, (name, colour, marker) in METHODS.items():
        mine = points(method)
        axes.errorbar(
            [p.macs for p in mine], [p.mean for p in mine], [p.deviation for p in mine],
            color=colour, marker=marker, capsize=3, linewidth=1.6, label=name,
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = [1, 1.5, 3, 6.25, 12.5, 25]
    axes.set_xticks(ticks, [f"{t:g} %" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("MACs left")
    axes.set_ylabel("test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    with matplotlib.rc_context({"svg.hashsalt": "front"}):
        figure.savefig(PLOT, metadata={"Date": None})


def filled(text: str) -> str:
    """The README with its table made from the rows."""
    return _TABLE.sub(lambda m: f"{m[1]}\n{table()}\n{m[2]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where the table is not its rows'"
    )
    check, readme = parser.parse_args().check, ROOT / "README.md"
    was = readme.read_text()
    now = filled(was)
    if not check:
        write_atomically(readme, now.encode())
        plot()
    return int(check and now != was)


if __name__ == "__main__":
    raise SystemExit(main())
