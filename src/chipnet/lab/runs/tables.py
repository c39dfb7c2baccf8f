"""Tables and plots of a grid of runs, from results.csv's rows and the run folders."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from chipnet import Budget, Masks
from chipnet._util.files import replacing, write_atomically
from chipnet._util.text import amount
from chipnet.analysis.kinds import KINDS
from chipnet.errors import ConfigError
from chipnet.lab.runs.grid import DENSE, Grid, masks_from
from chipnet.lab.runs.record import MASKS, read_metrics
from chipnet.lab.runs.rows import RECOVERY

TABLES = "tables.md"
_STAGES = {
    "hard": "as cut",
    "after_1": "after 1 epoch (validation)",
    "after_2": "after 2 (validation)",
    "final": "fine-tuned",
}
_LEGEND = {"fontsize": 7, "handlelength": 3.5}  # so long that dashes show
Rows = Sequence[dict[str, Any]]


def write_tables(grid: Grid, rows: Rows) -> Path:
    """Write tables.md; returns its path."""
    path = grid.out / TABLES
    write_atomically(path, tables(rows).encode())
    return path


def tables(rows: Rows) -> str:
    """Markdown: per network and data set what every method reaches at every budget; per budget the methods by
    accuracy, with recovery; then how methods stand over all of it, and every failure.

    Means over seeds; a spread is max - min, of two seeds or more. A cell without numbers is empty.

    Example:
        >>> row = dict(
        ...     model="net", data="digits", budget="macs=0.25", status="done", error="", soft=90.0, macs=0.25
        ... )
        >>> row |= {"params": 0.3, "volume": 0.4, "channels": 0.4, "after_0": 89.0, "folder": "a"}
        >>> rows = [dict(row, method="random", seed=s, hard=90.0, final=95.0 + s) for s in (0, 1)]
        >>> print(tables(rows).splitlines()[6])
        | random | 2 | 95.5 | 1.0 | 90.0 | 0.0 | 25.00 % | 89.0 | 0 |
    """
    parts = []
    for model, data in dict.fromkeys((r["model"], r["data"]) for r in rows):
        mine = [r for r in rows if (r["model"], r["data"]) == (model, data)]
        dense = [r["final"] for r in mine if r["method"] == DENSE and r["status"] == "done"]
        said = f"; dense {_mean(dense)}" if dense else ""
        said += f", spread {_spread(dense)}, {amount(len(dense), 'seed')}" if len(dense) > 1 else ""
        parts.append(f"### {model} on {data}{said}\n")
        budgets = list(dict.fromkeys(r["budget"] for r in mine if r["method"] != DENSE))
        if len(budgets) > 1:
            parts.append(_overview(mine, budgets))
        for budget in budgets:
            parts.append(f"#### {budget}\n\n{_table([r for r in mine if r['budget'] == budget])}")
    if summary := standings(rows):
        parts.append(f"### Over all of it\n\n{summary}")
    failed = [r for r in rows if r["status"] == "failed"]
    parts.append(
        f"{len(failed)} of {amount(len(rows), 'run')} failed.\n"
        + "".join(f"* {r['folder']}: {r['error']}\n" for r in failed)
    )
    return "\n".join(parts)


def _overview(rows: Rows, budgets: Sequence[str]) -> str:
    """Accuracy after fine-tuning (spread of several seeds), a row a method, a column a budget; the best is bold."""
    methods = list(dict.fromkeys(r["method"] for r in rows if r["method"] != DENSE))
    found = {
        (m, b): _numbers([r for r in rows if (r["method"], r["budget"]) == (m, b)], "final")
        for m in methods
        for b in budgets
    }
    best = {b: max((_mean(found[m, b]) for m in methods), key=lambda v: float(v or 0)) for b in budgets}

    def cell(values: Sequence[float], budget: str) -> str:
        mean = _mean(values)
        shown = f"**{mean}**" if mean and mean == best[budget] else mean
        return f"{shown} ({_spread(values)})" if len(values) > 1 else shown

    methods.sort(
        key=lambda m: (
            sum(not found[m, b] for b in budgets),
            -sum(statistics.mean(found[m, b] or [0.0]) for b in budgets),
        )
    )
    lines = ["| method | " + " | ".join(budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    lines += ["| " + " | ".join([m, *(cell(found[m, b], b) for b in budgets)]) + " |" for m in methods]
    return "\n".join(lines) + "\n"


def standings(rows: Rows) -> str:
    """Markdown: how methods stand over all networks, data sets and budgets, as cut, on the way and fine-tuned.

    For each of those a method's mean over seeds is held against the best method's. A cell has how often it is the
    best, and how far behind the best it is, in the mean and at most, in points. Methods that have results at more
    budgets come first, then those that are less behind. Architectures trained anew and masks of other runs do
    not compete. Empty below three budgets, each network and data set counted for itself.

    Example:
        >>> row = dict(model="net", data="digits", seed=0, status="done", hard=90.0)
        >>> rows = [
        ...     dict(row, budget=b, method=m, final=v)
        ...     for b, m, v in (
        ...         ("macs=0.5", "a", 91.0),
        ...         ("macs=0.5", "b", 91.5),
        ...         ("macs=0.1", "a", 70.0),
        ...         ("macs=0.1", "b", 69.0),
        ...         ("params=0.1", "a", 81.0),
        ...         ("params=0.1", "b", 80.0),
        ...     )
        ... ]
        >>> print(standings(rows).splitlines()[-1])
        | b | 3 | 3 / 0.0 / 0.0 | 1 / 0.7 / 1.0 |
    """
    places: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for r in rows:
        if r["status"] == "done" and r["method"] != DENSE and not masks_from(r["method"]):
            places.setdefault((r["model"], r["data"], r["budget"]), []).append(r)
    behind: dict[tuple[str, str], list[float]] = {}
    for here, stage in itertools.product(places.values(), _STAGES):
        found = {
            m: _numbers([r for r in here if r["method"] == m], stage)
            for m in dict.fromkeys(r["method"] for r in here)
        }
        means = {m: statistics.mean(v) for m, v in found.items() if v}
        for method, mean in means.items() if len(means) > 1 else ():
            behind.setdefault((method, stage), []).append(max(means.values()) - mean)
    final = {m: far for (m, stage), far in behind.items() if stage == "final"}
    if max((len(far) for far in final.values()), default=0) < 3:
        return ""
    stages = [s for s in _STAGES if any(stage == s for _, stage in behind)]

    def cell(method: str, stage: str) -> str:
        far = behind.get((method, stage), [])
        return f"{sum(f < 1e-9 for f in far)} / {statistics.mean(far):.1f} / {max(far):.1f}" if far else ""

    lines = [
        "Of so many budgets: first / points behind the best in the mean / at most\n",
        "| method | budgets | " + " | ".join(_STAGES[s] for s in stages) + " |",
        "|---" * (len(stages) + 2) + "|",
        *(
            "| " + " | ".join([method, str(len(far)), *(cell(method, s) for s in stages)]) + " |"
            for method, far in sorted(
                final.items(), key=lambda item: (-len(item[1]), statistics.mean(item[1]))
            )
        ),
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Rows) -> str:
    """The methods of one network, data set and budget."""
    known = [n for n in RECOVERY if any(r.get(f"after_{n}", "") != "" for r in rows)]
    cells = [[r for r in rows if r["method"] == m] for m in dict.fromkeys(r["method"] for r in rows)]
    cells.sort(key=lambda runs: -statistics.mean(_numbers(runs, "final") or [0.0]))
    recovery = f"validation after {' / '.join(map(str, known))} epochs | " if known else ""
    head = f"| method | seeds | fine-tuned | spread | as cut | largest soft − hard | remains | {recovery}failed |\n"
    return head + "|---" * (head.count("|") - 1) + "|\n" + "".join(_row(runs, known) for runs in cells)


def _row(runs: Rows, known: Sequence[int]) -> str:
    done = [r for r in runs if r["status"] == "done"]
    final, gap = _numbers(done, "final"), [abs(r["soft"] - r["hard"]) for r in done if r["hard"] != ""]
    kinds = _kinds(runs[0]["budget"])
    recovery = " / ".join(_mean(_numbers(done, f"after_{n}")) or "–" for n in known)
    cells = [
        runs[0]["method"],
        str(len(done)),
        _mean(final),
        _spread(final),
        _mean(_numbers(done, "hard")),
        f"{max(gap):.1f}" if gap else "",
        ", ".join(_left(done, kind) for kind in kinds) if done else "",
        *([recovery] if known else []),
        str(len(runs) - len(done)),
    ]
    return f"| {' | '.join(cells)} |\n"


def _left(done: Rows, kind: str) -> str:
    """The most of a cost that is left in these runs, and whether that is more than was asked."""
    target = dict(Budget.parse(done[0]["budget"]).targets)[kind]
    most = max(_numbers(done, kind), default=None)
    if most is None:
        return ""
    # What a time comes to is measured, and what a count is of, not known here: those are not compared.
    far = kind in KINDS and isinstance(target, Fraction) and most > target + Fraction(1, 10**6)
    above = far or any(kind in r.get("above", "").split() for r in done)
    return f"{100 * most:.2f} %{' (above)' if above else ''}"


def _kinds(budget: str) -> tuple[str, ...]:
    return Budget.parse(budget).kinds


def _numbers(runs: Rows, column: str) -> list[float]:
    return [r[column] for r in runs if r.get(column, "") != ""]


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f}" if values else ""


def _spread(values: Sequence[float]) -> str:
    """The spread over seeds; of one seed there is none."""
    return f"{max(values) - min(values):.1f}" if len(values) > 1 else ""


# -- plots ------------------------------------------------------------------------------------------------


def write_plots(grid: Grid, rows: Rows) -> list[Path]:
    """Write plots/*.png; returns their paths.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'chipnet[report]'") from error
    matplotlib.use("Agg")
    folder = grid.out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    done = [r for r in rows if r["status"] == "done"]
    paths = []
    for model, data in dict.fromkeys((r["model"], r["data"]) for r in done):
        mine = [r for r in done if (r["model"], r["data"]) == (model, data) and r["method"] != DENSE]
        dense = [r["final"] for r in done if (r["model"], r["data"], r["method"]) == (model, data, DENSE)]
        kinds = dict.fromkeys(_kinds(r["budget"]) for r in mine)
        for kind in (k[0] for k in kinds if len(k) == 1):
            chosen = [r for r in mine if _kinds(r["budget"]) == (kind,) and r.get(kind, "") != ""]
            if len({r["budget"] for r in chosen}) > 1:  # one budget is no curve
                paths.append(_accuracy(folder, f"{model} on {data}", kind, chosen, dense))
        for budget in dict.fromkeys(r["budget"] for r in mine):
            chosen = [r for r in mine if r["budget"] == budget]
            title = f"{model} on {data}, {budget}"
            paths.append(_recovery(folder, title, chosen))
            first = [r for r in chosen if r["seed"] == min(c["seed"] for c in chosen)]
            own = [r for r in first if not masks_from(r["method"])]
            own = [r for r in own if (grid.out / r["folder"] / MASKS).exists()]
            paths += [_layers(grid, folder, title, own)] if own else []
            paths += _histograms(grid, folder, title, first)
    return paths


def _figure(width: float = 6.4, height: float = 4.2, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")
    for axis in axes.flat:  # colours are ten, methods may be more
        axis.set_prop_cycle(plt.cycler(linestyle=["-", "--", ":"]) * plt.rcParams["axes.prop_cycle"])
    return figure, axes


def _short(text: str, most: int = 40) -> str:
    """A label that leaves room for the plot."""
    return text if len(text) <= most else f"{text[: most - 9]}…{text[-8:]}"


def _saved(figure: Any, folder: Path, name: str) -> Path:
    import matplotlib.pyplot as plt

    path = folder / (re.sub(r"[^\w=.]+", "-", name).strip("-") + ".png")
    with replacing(path, path.suffix) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
    return path


def _accuracy(folder: Path, title: str, kind: str, rows: Rows, dense: Sequence[float]) -> Path:
    """Accuracy against what remains: mean and spread over seeds."""
    figure, axes = _figure()
    axis = axes[0, 0]
    for method in dict.fromkeys(r["method"] for r in rows):
        points = []
        for budget in dict.fromkeys(r["budget"] for r in rows):
            runs = [r for r in rows if (r["method"], r["budget"]) == (method, budget)]
            if runs:
                final = [r["final"] for r in runs]
                points.append(
                    (
                        100 * statistics.mean(r[kind] for r in runs),
                        statistics.mean(final),
                        min(final),
                        max(final),
                    )
                )
        x, mean, low, high = zip(*sorted(points), strict=True)
        (line,) = axis.plot(x, mean, marker="o", markersize=3, label=_short(method))
        axis.fill_between(x, low, high, alpha=0.15, color=line.get_color())
    if dense:
        axis.axhline(statistics.mean(dense), color="black", linestyle=":", linewidth=1, label=DENSE)
    axis.set(xscale="log", xlabel=f"{kind} left, %", ylabel="test accuracy, %", title=_short(title, 90))
    axis.legend(**_LEGEND)
    return _saved(figure, folder, f"accuracy {title} {kind}")


def _recovery(folder: Path, title: str, rows: Rows) -> Path:
    """Validation accuracy by epochs of fine-tuning."""
    figure, axes = _figure()
    axis = axes[0, 0]
    for method in dict.fromkeys(r["method"] for r in rows):
        runs = [r for r in rows if r["method"] == method]
        known = [(n, v) for n in RECOVERY if (v := _numbers(runs, f"after_{n}"))]
        x = [n for n, _ in known]
        (line,) = axis.plot(
            x, [statistics.mean(v) for _, v in known], marker="o", markersize=3, label=_short(method)
        )
        low, high = [min(v) for _, v in known], [max(v) for _, v in known]
        axis.fill_between(x, low, high, alpha=0.15, color=line.get_color())
    axis.set(xlabel="epochs of fine-tuning", ylabel="validation accuracy, %", title=_short(title, 90))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(**_LEGEND)
    return _saved(figure, folder, f"recovery {title}")


def _layers(grid: Grid, folder: Path, title: str, rows: Rows) -> Path:
    """Part of the channels that is kept, by site where gates act, one seed."""
    figure, axes = _figure(width=9.0)
    axis = axes[0, 0]
    names: list[str] = []
    for row in rows:
        masks = Masks.load(grid.out / row["folder"] / MASKS)
        names = list(masks.widths)
        kept = [100 * len(masks.kept[name]) / width for name, width in masks.widths.items()]
        axis.plot(range(len(names)), kept, marker=".", linewidth=1, label=_short(row["method"]))
    axis.set(ylabel="channels kept, %", title=_short(title, 90), ylim=(0, 105))
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
    axis.legend(**_LEGEND)
    return _saved(figure, folder, f"layers {title}")


def _histograms(grid: Grid, folder: Path, title: str, rows: Rows) -> list[Path]:
    """How gate values spread over [0, 1] as pruning goes on, one seed: a panel a method."""
    panels = []
    for row in rows:
        texts = [r["gates"] for r in read_metrics(grid.out / row["folder"]) if r["phase"] == "prune"]
        if texts:
            panels.append((row["method"], [[int(n) for n in text.split()] for text in texts]))
    if not panels:
        return []
    figure, axes = _figure(width=max(2.4 * len(panels) + 1, 6.0), height=3.0, columns=len(panels))
    for axis, (method, counts) in zip(axes[0], panels, strict=True):
        shares = [[n / max(sum(c), 1) for n in c] for c in counts]
        image = axis.imshow(
            list(zip(*shares, strict=True)), origin="lower", aspect="auto", vmin=0, vmax=1,
            extent=(0.5, len(shares) + 0.5, 0, 1), cmap="viridis",
        )  # fmt: skip
        axis.set_title(_short(method), fontsize=8)
        axis.set_xlabel("epoch of pruning")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("gate value")
    figure.colorbar(image, ax=list(axes[0]), label="part of all gates")
    figure.suptitle(_short(title, 90), fontsize=9)
    return [_saved(figure, folder, f"masks {title}")]
