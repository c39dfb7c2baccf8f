"""Runs as pages to look at: one HTML file each, with everything in it. Reads run folders, trains nothing."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chipnet._util.files import write_atomically
from chipnet._util.given import new_file
from chipnet._util.text import amount
from chipnet.analysis.kinds import KINDS
from chipnet.errors import ConfigError
from chipnet.lab.runs import charts as draw
from chipnet.lab.runs.folder import Run, percent
from chipnet.lab.runs.page import (
    NAMES,
    STATES,
    Cell,
    Chart,
    PageTable,
    Section,
    Tile,
    chart,
    limited_kinds,
    page,
    share,
)
from chipnet.lab.runs.record import REPORT
from chipnet.lab.runs.single import single


def report(*runs: Run | str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write one self-contained HTML page: of one run, or a comparison of several.

    Args:
        runs: folders of finished runs.
        path: where to; by default `report.html` in the run's folder, `comparison.html` in the folder that holds all
            of them.

    Returns:
        The file.

    Raises:
        LoadError: there is no finished run, or the only one is a rival's, without a plan.
        ConfigError: no run was given, ``path`` is in no folder that exists, or matplotlib is missing.
        OSError: the file cannot be written.
    """
    if not runs:
        raise ConfigError("give the folder of at least one run.")
    wanted = None if path is None else new_file("path", path)
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    if len(opened) == 1:
        out = wanted or opened[0].folder / REPORT
        content = single(opened[0])
    else:
        parent = os.path.commonpath([run.folder.resolve().parent for run in opened])
        out = wanted or Path(parent) / "comparison.html"
        content = _several(opened, out.resolve().parent)
    write_atomically(out, page(**content).encode())
    return out


def _several(runs: Sequence[Run], base: Path) -> dict[str, Any]:
    names = _distinct(runs)
    kinds = [k for k in KINDS if any(k in limited_kinds(run.result) for run in runs)]
    tasks = {(run.result["model"], run.result["data"]) for run in runs}
    texts = []
    if len(tasks) > 1:
        texts.append("These runs are of different networks or data sets: compare with care.")
    top = max(range(len(runs)), key=lambda i: runs[i].result["compact"]["accuracy"])
    leanest = min(range(len(runs)), key=lambda i: runs[i].left(kinds[0]))
    tiles = [
        Tile("runs", str(len(runs)), ", ".join(sorted({run.result["method"] for run in runs}))),
        Tile("most accurate", f"{runs[top].result['compact']['accuracy']:.2f} %", names[top]),
        Tile(f"fewest {NAMES[kinds[0]]}", share(runs[leanest].left(kinds[0])), names[leanest]),
    ]
    return {
        "title": f"Comparison of {amount(len(runs), 'run')}",
        "lead": "Accuracies are in percent, on the test images; costs are parts of each run's dense network.",
        "tiles": tiles,
        "sections": [
            Section(
                "Accuracy and budget", texts, [_front(runs, names, kind, len(kinds) == 1) for kind in kinds]
            ),
            Section("Runs", tables=[_rows(runs, names, base)]),
            Section(
                "Commands", code=[f"{n}: {run.result['command']}" for n, run in zip(names, runs, strict=True)]
            ),
        ],
    }


def _front(runs: Sequence[Run], names: Sequence[str], kind: str, wide: bool) -> Chart:
    points = [
        (100 * run.left(kind), run.result["compact"]["accuracy"], name)
        for run, name in zip(runs, names, strict=True)
    ]
    groups: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for run, point in zip(runs, points, strict=True):
        groups[run.result["method"]].append(point)
    best = pareto([(x, y) for x, y, _ in points])
    on = [n for x, y, n in points if (x, y) in best]
    return chart(
        draw.front,
        f"Accuracy against {NAMES[kind]} left",
        f"No other run has more accuracy for as little: {', '.join(on)}.",
        groups,
        best,
        x=f"{NAMES[kind]} left, %",
        y="test accuracy, %",
        wide=wide,
    )


def _rows(runs: Sequence[Run], names: Sequence[str], base: Path) -> PageTable:
    rows = []
    for run, name in zip(runs, names, strict=True):
        r = run.result
        page = run.folder / REPORT
        link = Path(os.path.relpath(page, base)).as_posix() if page.exists() else ""
        row = [
            Cell(name, link=link),
            Cell(r["model"]),
            Cell(r["data"]),
            Cell(r["method"]),
            Cell(str(r["seed"]), r["seed"]),
        ]
        known = [r[s]["accuracy"] if s in r else None for s in STATES]
        row += [Cell(percent(accuracy, ""), accuracy) for accuracy in known]
        row += [Cell(share(run.left(k)), run.left(k)) for k in KINDS]
        rows.append(row)
    columns = [("run", False), ("network", False), ("data", False), ("method", False), ("seed", True)]
    columns += [(s, True) for s in STATES] + [(f"{NAMES[k]} left", True) for k in KINDS]
    return PageTable(columns, rows, "Click a heading to sort")


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (cost, accuracy) that no other beats: none is as cheap and better, or cheaper and as good.

    Example:
        >>> pareto([(50, 90.0), (25, 91.0), (10, 80.0), (25, 85.0)])
        [(10, 80.0), (25, 91.0)]
    """
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def _distinct(runs: Sequence[Run]) -> list[str]:
    """Folder names, with as many parents as tell them apart."""
    folders = [run.folder.resolve() for run in runs]
    for depth in range(1, max(len(f.parts) for f in folders) + 1):
        names = ["/".join(f.parts[-depth:]) for f in folders]
        if len(set(names)) == len(set(folders)):
            return names
    return [str(f) for f in folders]
