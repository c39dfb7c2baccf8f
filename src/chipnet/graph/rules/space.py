"""Operators over space: every channel by itself."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from chipnet.graph.rules.table import operator_name, rule
from chipnet.graph.tracer import STANDARD_POOL, Labels, Tracer


@rule("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
def pool(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Every channel by itself; these operators refuse tensors without channels."""
    out = adaptive(t, x)
    assert isinstance(out, Labels)
    if out.varying:
        if out.varying == [1] and type(t.modules.get(t.module)) in STANDARD_POOL and len(out.shape) > 2:
            t.graph.pools[t.module] = out.slots()
        else:
            t.graph.pin(out.slots()[:1], t.why(f"'{t.node.name}' needs at least one channel"))
    return out


@rule(
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
)
def adaptive(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Any:
    """Every channel by itself."""
    x = t.labelled(x)
    over = int(re.findall(r"([123])d", operator_name(t.node))[-1])  # the last axes
    if any(a >= len(x.shape) - over for a in x.varying):
        return t.barrier([x], "pools over channels")
    out = Labels(x.core, t.shape)
    return out if isinstance(t.node.meta["val"], Tensor) else (out, t.places(out))


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d_with_indices")
def pool_with_places(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Any:
    """Every channel by itself; the places belong to channels as the values do."""
    return adaptive(t, x)


@rule("max_unpool2d", "max_unpool3d")
def unpool(t: Tracer, x: Labels, places: Labels, *args: Any) -> Labels:
    """Values go back to their places: those of another tensor, whose channels are the same."""
    out = adaptive(t, x)
    return t.map([Labels(out.core, t.shape), Labels(t.labelled(places).core, t.shape)], "and")


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(t: Tracer, x: Labels, grid: Labels, *args: Any) -> Labels:
    """Every channel by itself, at places that another tensor gives, whole."""
    x = t.labelled(x)
    if any(a != 1 for a in x.varying):
        return t.barrier([x, grid], "samples over channels")
    return Labels(t.beside(x, [grid], "the grid of a sampler").core, t.shape)


@rule("affine_grid_generator")
def affine_grid(t: Tracer, theta: Labels, *args: Any) -> Labels:
    """The grid of a sampler: its size is not that of any channels."""
    return t.barrier([theta], "the grid of a sampler")


@rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(t: Tracer, x: Labels, boxes: Labels, *args: Any) -> Any:
    """Every channel by itself, in boxes that another tensor gives, whole."""
    x = t.labelled(x)
    if any(a != 1 for a in x.varying):
        return t.barrier([x, boxes], "pools over channels")
    out = Labels(t.beside(x, [boxes], "boxes to pool in").core, t.shape)
    return out if isinstance(t.node.meta["val"], Tensor) else (out, t.places(out))


@rule("im2col")
def im2col(t: Tracer, x: Labels, kernel: list[int], *args: Any) -> Labels:
    """Every channel becomes as many as a window has places."""
    x, axis = t.labelled(x), len(t.shape) - 2
    if any(a != axis for a in x.varying):
        return t.barrier([x], "windows over channels")
    assert x.core is not None
    core = x.core.squeeze(-1)
    return Labels(core.repeat_interleave(math.prod(kernel), axis) if x.varying else core, t.shape)


@rule("col2im")
def col2im(t: Tracer, x: Labels, size: Any, kernel: list[int], *args: Any) -> Labels:
    """As many channels as a window has places become one: they remain or go together."""
    x, axis = t.labelled(x), len(t.shape) - 3
    if any(a != axis for a in x.varying):
        return t.barrier([x], "windows over channels")
    assert x.core is not None
    if not x.varying:
        return Labels(x.core.unsqueeze(-1), t.shape)
    blocks = Labels(x.core.unflatten(axis, (-1, math.prod(kernel))), (*t.shape[:-2], *kernel))
    for block in x.slots().reshape(-1, math.prod(kernel)):
        t.graph.tie_all(block.tolist())
    return Labels(t.across(blocks, [axis + 1], "or").core, t.shape)


@rule(
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
def upsample(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Every channel by itself; refuses tensors without channels."""
    out = adaptive(t, x)
    assert isinstance(out, Labels)
    if out.varying in ([1], []):  # several channels, or one
        t.graph.pin(out.slots()[:1], t.why(f"'{t.node.name}' needs at least one channel"))
    return out


@rule(*(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)), "_pad_circular")
def pad_with_neighbours(t: Tracer, x: Labels, widths: list[int]) -> Labels:
    """Padding of space changes no channel."""
    return pad(t, x, widths, "neighbours")


@rule("pad", "constant_pad_nd")
def pad(t: Tracer, x: Labels, widths: list[int], mode: Any = "constant", value: Any = None) -> Labels:
    """Padding of space changes no channel (a value other than 0 makes dead channels live); padding of channels
    adds zero ones, as many as the user's code says."""
    x = t.labelled(x)
    assert x.core is not None
    fill = value if isinstance(mode, str) else mode
    pairs = {len(x.shape) - 1 - i // 2: (widths[i], widths[i + 1]) for i in range(0, len(widths), 2)}
    core, live = x.core, bool(fill)
    for axis, (before, after) in pairs.items():
        if before == after == 0:
            continue
        if min(before, after) < 0 and core.shape[axis] > 1:
            return t.barrier([x], "crops channels")
        if core.shape[axis] > 1:
            if mode not in ("constant", 0, 0.0):
                return t.barrier([x], "pads channels with channels")
            slots = t.graph.new(before + after)
            t.source(slots, live, False, "padding of a fixed width")
            zeros = torch.from_numpy(slots).reshape([-1 if a == axis else 1 for a in range(core.ndim)])
            sizes = [1 if a == axis else n for a, n in enumerate(core.shape)]
            ends = (
                zeros.narrow(axis, 0, before).repeat(sizes),
                zeros.narrow(axis, before, after).repeat(sizes),
            )
            core = torch.cat([ends[0], core, ends[1]], axis)
    out = Labels(core, t.shape)
    return t.map([out], "const") if live and out.varying else out
