"""What do fewer channels cost? Each site is narrowed by itself, what reads it is refitted, and the outputs are
compared with the dense network's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chipnet.analysis.analysis import Analysis
from chipnet.program.inputs import Inputs
from chipnet.repair.batches import first_images
from chipnet.repair.layers import LayerProduct, exact
from chipnet.repair.watch import calls
from chipnet.surgery.apply import compact
from chipnet.surgery.plan import Plan
from chipnet.surgery.planning import make_plan
from chipnet.widths.distance import Distance, between
from chipnet.widths.elimination import eliminate
from chipnet.widths.reads import Reads, layer_reads, usable

MEMORY = 2**30
"""Bytes that covariances of layers take at once; one layer with more columns than fit is not looked at."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One site: in which order its gates are needed, and what the others' end costs.

    Attributes:
        site: its place in ``analysis.sites``.
        gates: from the one that is needed most to the one that is needed least.
        losses: for every number of gates that stay, from none to all, ``[gates + 1]``: the distance of the outputs.
            It never rises with the number; infinity where the network would fall apart.
    """

    site: int
    gates: Tensor
    losses: NDArray[np.float64]


@torch.no_grad()
def measure_curves(
    model: nn.Module,
    analysis: Analysis,
    batches: Sequence[Inputs],
    distance: Distance = "error",
    progress: Callable[[int, int], None] | None = None,
) -> list[Curve]:
    """The curve of every site that has gates.

    Args:
        model: the dense network, in eval mode.
        analysis: of it.
        batches: inputs to measure on.
        distance: between outputs.
        progress: is called with the number of sites that are done, and of all.
    """
    most = int((MEMORY // 8) ** 0.5)
    seen = {c.name: c for c in calls(model, first_images(batches[0], analysis.inputs)) if usable(c, most)}
    layers = {name: call.layer for name, call in seen.items() if call.layer is not None}
    sites = [i for i, gates in enumerate(analysis.site_gates) if len(gates)]
    gone = {i: _gone(analysis, analysis.site_gates[i], layers) for i in sites}
    curves: list[Curve] = []
    for part in _parts(sites, lambda i: {name: 8 * layers[name].columns ** 2 for name in gone[i]}):
        reads = layer_reads(model, batches, {name: seen[name] for i in part for name in gone[i]})
        for i in part:
            mine = {name: reads[name] for name in gone[i]}
            curves.append(_curve(model, analysis, i, mine, gone[i], batches, distance))
            if progress is not None:
                progress(len(curves), len(sites))
    return curves


def _gone(analysis: Analysis, gates: Tensor, layers: Mapping[str, LayerProduct]) -> dict[str, Tensor]:
    """Layers that read a site -> which of their input channels vanish with each gate, ``[gates, channels]``."""
    found: dict[str, list[Tensor]] = {}
    present = analysis.present(torch.ones(analysis.gates, dtype=torch.bool))
    for some in gates.split(64):
        masks = torch.ones(len(some), analysis.gates, dtype=torch.bool)
        masks[torch.arange(len(some)), some] = False
        lost = present & ~analysis.present(masks)
        for name, layer in layers.items():
            slots = analysis.graph.axes.get(name, {}).get(0 if layer.transposed else 1)
            if slots is not None:
                found.setdefault(name, []).append(lost[:, torch.from_numpy(slots)])
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    return {name: rows for name, rows in joined.items() if bool(rows.any())}


def _parts(sites: Sequence[int], needs: Callable[[int], Mapping[str, int]]) -> Iterator[list[int]]:
    """Sites, so many at once as memory allows."""
    part: list[int] = []
    held: dict[str, int] = {}
    for i in sites:
        more = {**held, **needs(i)}
        if part and sum(more.values()) > MEMORY:
            yield part
            part, more = [], dict(needs(i))
        part, held = [*part, i], more
    if part:
        yield part


def _curve(
    model: nn.Module,
    analysis: Analysis,
    site: int,
    reads: Mapping[str, Reads],
    gone: Mapping[str, Tensor],
    batches: Sequence[Inputs],
    distance: Distance,
) -> Curve:
    gates = analysis.site_gates[site]
    count = len(gates)
    if reads:
        order, errors = eliminate([(reads[name], gone[name]) for name in reads], count)
    else:  # nothing tells: the first ones are as good as any
        order, errors = torch.arange(count), torch.arange(count, -1, -1, dtype=torch.float64)
    gates = gates[order]
    narrow: dict[int, nn.Module] = {}
    for kept in _measured(count):
        mask = torch.ones(analysis.gates, dtype=torch.bool)
        mask[gates[kept:]] = False
        if analysis.connected(mask):
            narrow[kept] = narrowed(model, make_plan(analysis, mask), reads)
    found = between(model, list(narrow.values()), batches, distance)
    return Curve(site, gates, _filled(dict(zip(narrow, found, strict=True)), errors.numpy()))


def _measured(count: int) -> list[int]:
    """Numbers of gates that are measured: two for each halving, down to one and none."""
    steps = range(1, 2 * count.bit_length() + 1)
    return sorted({round(count * 2 ** (-i / 2)) for i in steps} - {count} | {0}, reverse=True)


def narrowed(model: nn.Module, plan: Plan, reads: Mapping[str, Reads]) -> nn.Module:
    """The compact network, with the layers that read fewer channels refitted to what they read in the dense one."""
    small = compact(model, plan, verify=False).eval()
    weights = dict(small.named_parameters())
    tensors: dict[str, Tensor] = {**weights, **dict(small.named_buffers())}
    for name, mine in reads.items():
        keep, layer = plan.keep.get(name, {}), mine.layer
        axis = 0 if layer.transposed else 1
        if axis not in keep:
            continue
        weight, offset = mine.narrowed(torch.tensor(keep[axis], dtype=torch.int64, device=mine.mean.device))
        rows = layer.kept(keep)
        chosen = torch.arange(len(offset)) if rows is None else torch.tensor(rows, dtype=torch.int64)
        chosen = chosen.to(offset.device)
        old, place = weights.get(name), tensors.get(mine.place or "")
        if old is not None and old.numel() == weight[:, chosen].numel():
            there = replace(layer, shape=tuple(old.shape))
            old.copy_(there.weight(weight[None, :, chosen]).to(old))
        if place is not None and len(place) == len(chosen):
            place.copy_((exact(place) + mine.sign * offset[chosen]).to(place))
    return small


def _filled(measured: Mapping[int, float], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Losses for every number of gates from those that were measured: between two, the logarithm of the loss goes
    as that of the error that the layers reading the site are left with."""
    count = len(errors) - 1
    tiny = np.finfo(np.float64).tiny
    losses = np.full(count + 1, np.inf)
    losses[count] = 0.0
    above, last = count, 0.0
    for kept in sorted(measured, reverse=True):
        loss = max(measured[kept], last)
        inner = np.arange(kept + 1, above)
        low, high = max(errors[above], tiny), max(errors[kept], tiny)
        if not last:  # down to nothing: in proportion
            losses[inner] = loss * errors[inner] / high
        elif high > low:
            part = np.log(np.maximum(errors[inner], tiny) / low) / np.log(high / low)
            losses[inner] = last * (loss / last) ** part
        else:
            losses[inner] = loss
        losses[kept], above, last = loss, kept, loss
    return np.maximum.accumulate(losses[::-1])[::-1]
