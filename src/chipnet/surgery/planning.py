"""From a hard mask to a plan: the third reading of liveness, as index sets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from chipnet.analysis.analysis import Analysis
from chipnet.analysis.vectors import read_mask
from chipnet.budget.budget import Budget
from chipnet.errors import PlanError
from chipnet.surgery.plan import Live, Plan, Remap, Rows, Scale, SitePlan, Size, StandIn

Indices = tuple[int, ...]


def make_plan(analysis: Analysis, mask: Tensor, budget: Budget | None = None) -> Plan:
    """What to cut for ``mask`` ``[gates]``.

    Raises:
        PlanError: under this mask the input does not reach every output.
    """
    mask = read_mask(mask, analysis.gates).cpu()
    cost = analysis.priced(budget.kinds if budget is not None else ()).cost
    if not analysis.connected(mask):
        raise PlanError("under this mask the input does not reach every output: open more gates")
    present = analysis.present(mask).numpy()
    opened = _opened(analysis, mask)
    keep = _kept_indices(analysis, present)
    zero, shut, moved = _closed(analysis, opened, present)
    return Plan(
        keep=keep,
        zero=zero,
        shut=shut,
        stand_ins=tuple(_stand_ins(analysis, mask, present)),
        remaps=(*moved, *_index_maps(analysis, present)),
        shapes={**analysis.shapes, **{n: s for n, s in analysis.unsaved.items() if n in keep}},
        dense=cost.dense,
        compact=cost.exact(mask),
        budget=str(budget) if budget is not None else "",
        sites=tuple(_sites(analysis, opened, present)),
        mask=tuple(mask.tolist()),
        realisation=analysis.options.realisation,
        sizes=tuple(_sizes(analysis, present)),
        scales=tuple(_scales(analysis, present)),
        frozen=tuple(analysis.graph.frozen.values()),
        live=tuple(_live(analysis, present)),
        rows=tuple(_rows(analysis, present)),
        outputs=analysis.inputs.outputs,
        inputs=analysis.inputs,
    )


def _opened(analysis: Analysis, mask: Tensor) -> list[NDArray[np.bool_]]:
    """Which channels of each site are open."""
    ends = np.cumsum([site.channels for site in analysis.sites])[:-1]
    return np.split(analysis.open(mask).numpy(), ends) if analysis.sites else []


def _kept_indices(analysis: Analysis, present: NDArray[np.bool_]) -> dict[str, dict[int, Indices]]:
    """Tensors that get smaller -> axis -> the indices that stay."""
    keep: dict[str, dict[int, Indices]] = {}
    for name, axes in analysis.graph.axes.items():
        for axis, slots in axes.items():
            stay = present[slots]
            if not stay.all():
                keep.setdefault(name, {})[axis] = tuple(np.flatnonzero(stay).tolist())
    for name, first in analysis.aliases.items():  # a tied tensor shrinks under all of its names
        if first in keep:
            keep[name] = keep[first]
    return keep


def _closed(
    analysis: Analysis, opened: list[NDArray[np.bool_]], present: NDArray[np.bool_]
) -> tuple[dict[str, tuple[int, Indices]], dict[str, tuple[int, Indices]], list[Remap]]:
    """What shut channels are in the masked network: parameter -> axis and rows that are zero; module -> axis and
    channels of its output that are; and index maps that write these zeros where another layer keeps the channel."""
    zero: dict[str, tuple[int, Indices]] = {}
    outputs: dict[str, tuple[int, Indices]] = {}
    remaps = []
    for site, is_open in zip(analysis.sites, opened, strict=True):
        shut = tuple(np.flatnonzero(~is_open).tolist())
        if not shut:
            continue
        if site.host.output is not None:
            outputs[site.host.module] = (site.host.output, shut)
        if not site.host.is_layer:
            stay = present[site.slots]
            if (stay & ~is_open).any():
                index = tuple(np.where(is_open[stay], np.arange(stay.sum()), -1).tolist())
                remaps.append(Remap(site.host.module, "output", site.host.output or 0, index))
            continue
        for name, axis in ((site.host.weight, site.host.axis), (site.host.bias, 0)):
            if name is not None:
                rows = {*shut, *zero.get(name, (0, ()))[1]}  # of several sites on one weight
                zero[name] = (axis, tuple(sorted(rows)))
    return zero, outputs, remaps


def _stand_ins(analysis: Analysis, mask: Tensor, present: NDArray[np.bool_]) -> Iterator[StandIn]:
    """What takes the place of modules that are dead, or that read nothing."""
    g = analysis.graph
    layer_of = {layer.fact: layer for layer in g.layers}
    known = zip(g.owners, analysis.alive(mask).tolist(), analysis.reading(mask).tolist(), strict=True)
    for module, value, reads in known:
        fact = g.owners[module][0]
        layer = layer_of.get(fact)
        width = int(present[g.facts[fact].dst].sum())
        if layer is None:
            if value < 0.5:
                yield StandIn(module, "norm", width)
        elif value < 0.5:
            yield StandIn(module, "dead", width)
        elif reads < 0.5:
            yield StandIn(module, "constant", width)
    for module, slots in g.pools.items():
        if not present[slots].any():
            yield StandIn(module, "pool", 0)


def _index_maps(analysis: Analysis, present: NDArray[np.bool_]) -> Iterator[Remap]:
    """Index maps of layers that read or write other channels than the tensor around them has."""
    for r in analysis.graph.resizes:
        src, dst = (r.outer, r.inner) if r.side == "input" else (r.inner, r.outer)
        at = np.cumsum(present[src]) - 1
        index = tuple(int(at[i]) if present[src[i]] else -1 for i in np.flatnonzero(present[dst]))
        if index != tuple(range(int(present[src].sum()))):
            yield Remap(r.module, r.side, r.axis, index)


def _sites(
    analysis: Analysis, opened: list[NDArray[np.bool_]], present: NDArray[np.bool_]
) -> Iterator[SitePlan]:
    for site, is_open in zip(analysis.sites, opened, strict=True):
        kept = int((is_open & present[site.slots]).sum())
        ties = str(site.ties[0]) if site.ties else ""
        yield SitePlan(
            site.name, kept, site.channels, analysis.tied_to(site), ties, site.reason, site.covered
        )


def _sizes(analysis: Analysis, present: NDArray[np.bool_]) -> Iterator[Size]:
    """Attributes that follow widths."""
    for n in analysis.graph.numbers.values():
        now = int(present[n.slots].sum()) + n.rest
        yield Size(n.module, n.name, n.index, max(now, n.minimum), len(n.slots) + n.rest)


def _scales(analysis: Analysis, present: NDArray[np.bool_]) -> Iterator[Scale]:
    """What makes up for a mean over fewer channels."""
    for r in analysis.graph.rescaled.values():
        if not present[r.slots].all():
            share = len(r.slots) / max(int(present[r.slots].sum()), 1)
            for name, power in r.numbers.items():
                yield Scale(r.module, name, share**power)


def _live(analysis: Analysis, present: NDArray[np.bool_]) -> Iterator[Live]:
    """Norms that mix channels, of which some go."""
    for norm, slots in analysis.graph.live.values():
        if not present[slots].all():
            yield Live(norm, len(slots), tuple(np.flatnonzero(present[slots]).tolist()))


def _rows(analysis: Analysis, present: NDArray[np.bool_]) -> Iterator[Rows]:
    """What makes up for a smaller width that attention divides by."""
    for q in analysis.graph.queries.values():
        stay = present[q.slots]
        if not stay.all():
            for name in q.names:
                kept = np.flatnonzero(present[analysis.graph.axes[name][0]])
                at = np.flatnonzero(np.isin(kept, q.at))
                yield Rows(name, tuple(at.tolist()), float((stay.sum() / len(stay)) ** 0.5))
