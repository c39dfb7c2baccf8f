"""One run as a page: its states, its progress, its channels and what was saved where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from chipnet._util.text import amount, few
from chipnet.analysis.kinds import KINDS
from chipnet.budget.landing import Landing
from chipnet.errors import ChipNetError, LoadError
from chipnet.lab.runs import charts as draw
from chipnet.lab.runs.folder import Run, loss_text, percent
from chipnet.lab.runs.page import NAMES, Cell, PageTable, Section, Tile, chart, limited_kinds, share
from chipnet.lab.runs.record import SHRINK, budget_text, output_error, states
from chipnet.lab.sanity import LOST_POINTS
from chipnet.timing import Part, parts


def single(run: Run) -> dict[str, Any]:
    result = run.result
    if "verify" not in result:
        raise LoadError(
            f"{run.folder} has no plan to report: it is a rival's run. Compare several runs instead."
        )
    dense, small = result["dense"], result["compact"]
    trained = dense["accuracy"] is not None
    change = small["accuracy"] - dense["accuracy"] if trained else 0.0
    kinds = limited_kinds(result)
    tiles = [
        Tile("accuracy, dense", percent(dense["accuracy"]), "test images" if trained else "never trained"),
        Tile(
            "accuracy, compact",
            percent(small["accuracy"]),
            f"{change:+.2f} points" if trained else "from new weights",
            ("good" if change >= 0 else "bad" if change < -LOST_POINTS else "") if trained else "",
        ),
    ]
    for kind in kinds:
        limit = result["limits"].get(kind)
        mood = "" if limit is None else "good" if small[kind] <= limit else "bad"
        note = f"{_words(small[kind])} of {_words(dense[kind])}"
        tiles.append(
            Tile(
                f"{NAMES[kind]} left",
                share(small[kind] / dense[kind]),
                note if limit is None else f"{note}; asked {_words(limit)}",
                mood,
            )
        )
    if "latency" in result:
        took = Landing(**result["latency"])
        note = f"shortest {took.compact / 1e6:.3g} of {took.dense / 1e6:.3g} ms; {took.device}"
        reached = took.measured <= took.asked
        tiles.append(Tile("latency left", share(took.left), note, "good" if reached else "bad"))
    tiles.append(
        Tile("time of the run", _duration(result["seconds"]["total"]), result["environment"]["device"])
    )
    how = _refit(result) if SHRINK in result else _progress(run, kinds)
    sections = [_states(result), how, *_channels(run), _kept_whole(run), _conditions(run)]
    return {
        "title": f"{result['model']} on {result['data']}: {run.name}",
        "lead": f"{_how(result)} a budget of {budget_text(result['budget'])}, seed {result['seed']}, "
        f"realisation {result['realisation']}.",
        "tiles": tiles,
        "warnings": result.get("warnings", []),
        "sections": sections,
    }


def _how(result: Mapping[str, Any]) -> str:
    if "masks" in result:
        return f"Masks that were given ({result['method']}), beside"
    if SHRINK in result:
        return "Cut and refitted, without training, to"
    return f"Pruned with {result['method']} to"


def _started(result: Mapping[str, Any]) -> str:
    """The sentence that says where a run that pruned further began."""
    start = result.get("start")
    return f"start: the compact network of {start['run']}, which was pruned further. " if start else ""


def _states(result: Mapping[str, Any]) -> Section:
    rows = []
    losses = "loss" in result["dense"]
    for state, called in states(result).items():
        values = result[state]
        row = [Cell(called), Cell(percent(values["accuracy"]), values["accuracy"])]
        row += [Cell(loss_text(values["loss"]), values["loss"])] if losses else []
        for k in KINDS:
            part = values[k] / max(result["dense"][k], 1)
            row.append(Cell(f"{round(values[k]):,} ({share(part)})", values[k]))
        rows.append(row)
    columns = [("state", False), ("test accuracy", True), *[("loss", True)] * losses]
    columns += [(NAMES[k], True) for k in KINDS]
    verify = result["verify"]
    words = (
        "soft: with the gates as the method uses them. hard: with the final masks, before the cut and before "
    )
    words += "fine-tuning. compact: the network that ships."
    if SHRINK in result:
        words = "as cut: before the refit. refitted: the network that ships."
    return Section(
        "The states",
        [
            "dense: as trained. " + _started(result) + words,
            "Masked and compact network computed the same: outputs differ by "
            f"{verify['max_abs_difference']:.1e} at most, at scale {verify['output_scale']:.3g}.",
        ],
        tables=[PageTable(columns, rows, "Accuracy and cost, and the part of the dense cost")],
    )


def _refit(result: Mapping[str, Any]) -> Section:
    """What the refit did to each layer."""
    rows = [
        [
            Cell(layer["layer"].removesuffix(".weight")),
            *(Cell("not finite" if e is None else share(e), e) for e in (layer["before"], layer["after"])),
        ]
        for layer in result[SHRINK]["layers"]
    ]
    columns = [("layer", False), ("error as cut", True), ("error refitted", True)]
    return Section(
        "The refit",
        [
            f"In all, {output_error(result)}.",
            "The error of a layer is the squared difference of its outputs from the dense network's, as a part of "
            "their variance; the layers before it are refitted already. Layers that are not listed stayed as cut.",
        ],
        tables=[PageTable(columns, rows, "Errors of layers")],
    )


def _progress(run: Run, kinds: Sequence[str]) -> Section:
    rows = run.metrics()
    at = list(range(1, len(rows) + 1))
    spans: dict[str, tuple[float, float]] = {}
    for i, row in zip(at, rows, strict=True):
        low, _ = spans.get(row["phase"], (i - 0.5, 0.0))
        spans[row["phase"]] = (low, i + 0.5)
    soft, hard = _series(rows, at, "validation_accuracy"), _series(rows, at, "hard_validation_accuracy")
    series = {"as it runs": soft} | ({"hard masks": hard} if hard[0] else {})
    last = soft[1][-1] if soft[1] else float("nan")
    text = f"On the held-out part of the training images. It ends at {last:.1f} %."
    charts = [
        chart(draw.lines, "Accuracy against progress", text, series, x="epoch", y="accuracy, %", spans=spans)
    ]
    dense, limits = run.result["dense"], run.result["limits"]
    for kind in kinds:
        total = dense[kind]
        costs = {}
        xs, ys = _series(rows, at, f"soft_{kind}")
        if xs:
            costs["soft"] = (xs, [100 * y for y in ys])
        xs, ys = _series(rows, at, kind)
        costs["hard"] = (xs, [100 * y / total for y in ys])
        level = ("budget", 100 * limits[kind] / total) if kind in limits else None
        lead = f"The budget is {level[1]:.4g} %, the" if level is not None else "The"
        charts.append(
            chart(
                draw.lines,
                f"{NAMES[kind].capitalize()} against progress" if kind != "macs" else "MACs against progress",
                f"As a part of the dense network's. {lead} shipped network has {share(run.left(kind))}.",
                costs,
                x="epoch",
                y="left, %",
                level=level,
                spans=spans,
            )
        )
    columns = [[int(n) for n in row["gates"].split()] for row in rows if row.get("gates")]
    texts = []
    if columns:
        first, final = (100 * (c[0] + c[-1]) / max(sum(c), 1) for c in (columns[0], columns[-1]))
        charts.append(
            chart(
                draw.shares,
                "Masks becoming crisp" if len(columns) > 1 else "Values of the gates",
                f"Share of the {amount(sum(columns[0]), 'gate')} by value, epoch by epoch. In the lowest or "
                "highest tenth: "
                + (f"{first:.0f} % after the first epoch of pruning, " if len(columns) > 1 else "")
                + f"{final:.0f} % after the last.",
                columns,
                x="epoch of pruning",
                y="value of the gate",
            )
        )
    else:
        texts.append("This run did not record the values of its gates: an older chipnet made it.")
    return Section("Progress", texts, charts)


def _channels(run: Run) -> list[Section]:
    plan = run.plan()
    sites = plan.sites
    layers = [s for s in sites if len(plan.shapes.get(f"{s.name}.weight", ())) > 1]
    kept, had = sum(s.kept for s in layers), sum(s.channels for s in layers)
    picture = chart(
        draw.bars,
        "Channels kept, layer by layer",
        f"{kept:,} of {amount(had, 'channel')} of {amount(len(layers), 'layer')}. Outlines: dense. Filled: kept.",
        [s.channels for s in layers],
        [s.kept for s in layers],
        [s.name for s in layers],
        y="channels",
        wide=True,
    )
    rows = [
        [
            Cell(s.name),
            Cell(str(s.kept), s.kept),
            Cell(str(s.channels), s.channels),
            Cell(share(s.kept / max(s.channels, 1), 0), s.kept / max(s.channels, 1)),
            Cell(few(s.tied_to)),
        ]
        for s in sites
    ]
    columns = [
        ("place", False),
        ("kept", True),
        ("of", True),
        ("left", True),
        ("shares its gates with", False),
    ]
    out = [Section("Channels", charts=[picture], tables=[PageTable(columns, rows, "Where gates act")])]
    try:
        dense, small = run.dense(), run.compact()
    except ChipNetError as error:
        out.append(
            Section(
                "Where it was saved", [f"The networks cannot be built here, so layers are not shown: {error}"]
            )
        )
        return out
    return [*out, _saved(run, dense, small)]


@torch.no_grad()
def _saved(run: Run, dense: nn.Module, small: nn.Module) -> Section:
    before, after = (parts(network, run.noise(1), passes=7) for network in (dense, small))
    params = [
        {n: sum(p.numel() for p in m.parameters()) for n, m in net.named_modules()} for net in (dense, small)
    ]
    names = [n for n, part in before.items() if part.macs or params[0].get(n)]
    nothing = Part("", 0, 0, 0, 0, 0.0)
    both = [(n, before[n], after.get(n, nothing)) for n in names]
    saved = sorted((n for n, *_ in both), key=lambda n: after.get(n, nothing).macs - before[n].macs)
    layers = [(n, a, b) for n, a, b in both if a.macs]
    most = ", ".join(saved[:3])
    charts = [
        chart(
            draw.bars,
            "MACs, layer by layer",
            f"Most were saved in {most}.",
            [a.macs for _, a, _ in layers],
            [b.macs for _, _, b in layers],
            [n for n, *_ in layers],
            y="MACs",
            wide=True,
        ),
        chart(
            draw.bars,
            "Parameters, layer by layer",
            f"{sum(params[1].get(n, 0) for n in names):,} of {sum(params[0][n] for n in names):,} are left.",
            [params[0][n] for n, *_ in layers],
            [params[1].get(n, 0) for n, *_ in layers],
            [n for n, *_ in layers],
            y="parameters",
            wide=True,
        ),
    ]
    rows = [
        [
            Cell(n),
            Cell(a.kind),
            Cell(f"{a.writes} → {b.writes}", b.writes),
            Cell(f"{a.macs:,}", a.macs),
            Cell(f"{b.macs:,}", b.macs),
            Cell(f"{params[0][n]:,}", params[0][n]),
            Cell(f"{params[1].get(n, 0):,}", params[1].get(n, 0)),
            Cell(f"{a.seconds * 1e6:.0f}", a.seconds),
            Cell(f"{b.seconds * 1e6:.0f}", b.seconds),
        ]
        for n, a, b in both
    ]
    columns = [("layer", False), ("kind", False), ("width", True), ("MACs", True), ("MACs left", True)]
    columns += [("parameters", True), ("parameters left", True), ("µs", True), ("µs, compact", True)]
    return Section(
        "Where it was saved",
        [
            "MACs and times for one image. Times are medians of 7 calls in eager mode on the machine that wrote "
            "this page, layer by layer; chipnet latency measures whole networks, in turns."
        ],
        charts,
        [PageTable(columns, rows, "Layers before and after")],
    )


def _kept_whole(run: Run) -> Section:
    plan = run.plan()
    reasons: dict[str, list[str]] = defaultdict(list)
    for s in plan.sites:
        if s.reason and not s.covered and s.kept == s.channels:
            reasons[s.reason].append(s.name)
    rows = [
        [Cell(why), Cell(str(len(names)), len(names)), Cell(", ".join(names))]
        for why, names in reasons.items()
    ]
    gone = [[Cell(s.module), Cell(s.kind)] for s in plan.stand_ins]
    tables = []
    if rows:
        tables.append(PageTable([("why", False), ("places", True), ("which", False)], rows, "Kept whole"))
    if gone:
        tables.append(PageTable([("module", False), ("how", False)], gone, "Removed altogether"))
    texts = [] if rows else ["Nothing had to be kept whole."]
    if plan.remaps:
        texts.append(f"Before or after modules: {amount(len(plan.remaps), 'index map')}.")
    return Section("What could not be pruned, and why", texts, tables=tables)


def _conditions(run: Run) -> Section:
    result = run.result
    flat = {
        f"{group}: {k}": v for group in ("environment", "images", "recipe") for k, v in result[group].items()
    }
    flat |= {f"seconds: {k}": v for k, v in result["seconds"].items()}
    rows = [[Cell(k), Cell(str(v))] for k, v in flat.items()]
    return Section(
        "Conditions",
        tables=[PageTable([("what", False), ("value", False)], rows, "Environment, recipe and times")],
        code=[result["command"]],
    )


def _series(
    rows: Sequence[Mapping[str, str]], at: Sequence[int], column: str
) -> tuple[list[float], list[float]]:
    """The places at which a column of metrics.csv has values, and the values."""
    found = [(float(i), float(row[column])) for i, row in zip(at, rows, strict=True) if row.get(column)]
    return [x for x, _ in found], [y for _, y in found]


def _words(count: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
