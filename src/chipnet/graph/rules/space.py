"""Operators over space. They compute every channel by itself."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from chipnet.graph.facts import PinCode
from chipnet.graph.labels import Labels, Value
from chipnet.graph.operator import Operator
from chipnet.graph.rules.table import aten, rule
from chipnet.graph.standard import STANDARD_POOL


@rule(*aten("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"))
def pool(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Labels:
    """Pooling. These operators refuse tensors without channels."""
    out = adaptive(op, x)
    assert isinstance(out, Labels)
    if out.varying:
        if out.varying == [1] and type(op.owner) in STANDARD_POOL and len(out.shape) > 2:
            op.draft.pools[op.module] = out.slots()
        else:
            op.keep(out.slots()[:1], f"'{op.node.name}' needs at least one channel", PinCode.ONE_STAYS)
    return out


@rule(
    *aten(
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
        "adaptive_max_pool2d adaptive_max_pool3d"
    )
)
def adaptive(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Pooling to a given size."""
    x = op.labelled(x)
    over = int(re.findall(r"([123])d", op.name)[-1])  # the last axes
    if any(a >= len(x.shape) - over for a in x.varying):
        return op.barrier([x], "pools over channels")
    out = Labels(x.core, op.shape)
    return out if isinstance(op.outputs, Tensor) else (out, op.places(out))


@rule(*aten("max_pool2d_with_indices max_pool3d_with_indices max_pool1d_with_indices"))
def pool_with_places(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Pooling with indices, which belong to channels as the values do."""
    return adaptive(op, x)


@rule(*aten("max_unpool2d max_unpool3d"))
def unpool(op: Operator, x: Value, places: Value, *args: Any) -> Labels:
    """Values go back to the places that another tensor gives. Both have the same channels."""
    out = adaptive(op, x)
    return op.map([Labels(out.core, op.shape), Labels(op.labelled(places).core, op.shape)], "and")


@rule(*aten("grid_sampler grid_sampler_2d grid_sampler_3d"))
def grid_sampler(op: Operator, x: Value, grid: Value, *args: Any) -> Labels:
    """Samples at places that another tensor gives. That one is pinned."""
    x = op.labelled(x)
    if any(a != 1 for a in x.varying):
        return op.barrier([x, grid], "samples over channels")
    return Labels(op.with_kept(x, [grid], "the grid of a sampler").core, op.shape)


@rule(*aten("affine_grid_generator"))
def affine_grid(op: Operator, theta: Value, *args: Any) -> Labels:
    """The grid for a sampler. Its sizes are not those of channels."""
    return op.barrier([theta], "the grid of a sampler")


@rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(op: Operator, x: Value, boxes: Value, *args: Any) -> Any:
    """Pooling in boxes that another tensor gives. That one is pinned."""
    x = op.labelled(x)
    if any(a != 1 for a in x.varying):
        return op.barrier([x, boxes], "pools over channels")
    out = Labels(op.with_kept(x, [boxes], "boxes to pool in").core, op.shape)
    return out if isinstance(op.outputs, Tensor) else (out, op.places(out))


@rule(*aten("im2col"))
def im2col(op: Operator, x: Value, kernel: list[int], *args: Any) -> Labels:
    """Every channel becomes as many channels as a window has places."""
    x, axis = op.labelled(x), len(op.shape) - 2
    if any(a != axis for a in x.varying):
        return op.barrier([x], "windows over channels")
    core = x.core.squeeze(-1)
    return Labels(core.repeat_interleave(math.prod(kernel), axis) if x.varying else core, op.shape)


@rule(*aten("col2im"))
def col2im(op: Operator, x: Value, size: Any, kernel: list[int], *args: Any) -> Labels:
    """As many channels as a window has places become one channel. They remain or go together."""
    x, axis = op.labelled(x), len(op.shape) - 3
    if any(a != axis for a in x.varying):
        return op.barrier([x], "windows over channels")
    if not x.varying:
        return Labels(x.core.unsqueeze(-1), op.shape)
    blocks = Labels(x.core.unflatten(axis, (-1, math.prod(kernel))), (*op.shape[:-2], *kernel))
    for block in x.slots().reshape(-1, math.prod(kernel)):
        op.draft.tie_all(block)
    return Labels(op.merged(blocks, [axis + 1], "or").core, op.shape)


@rule(
    *aten(
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
        "upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
    )
)
def upsample(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Labels:
    """Interpolation. These operators refuse tensors without channels."""
    out = adaptive(op, x)
    assert isinstance(out, Labels)
    if out.varying in ([1], []):  # several channels, or one
        op.keep(out.slots()[:1], f"'{op.node.name}' needs at least one channel", PinCode.ONE_STAYS)
    return out


@rule(
    *aten("reflection_pad1d reflection_pad2d reflection_pad3d"),
    *aten("replication_pad1d replication_pad2d replication_pad3d _pad_circular"),
)
def pad_with_neighbours(op: Operator, x: Value, widths: list[int]) -> Labels:
    """Padding of space with values of the same channel."""
    return pad(op, x, widths, "neighbours")


@rule(*aten("pad constant_pad_nd"))
def pad(op: Operator, x: Value, widths: list[int], mode: Any = "constant", value: Any = None) -> Labels:
    """Padding with a number.

    In space, a number other than 0 makes all channels non-zero. Along channels it adds channels, as many as the
    user's code says.
    """
    x = op.labelled(x)
    fill = value if isinstance(mode, str) else mode
    pairs = {len(x.shape) - 1 - i // 2: (widths[i], widths[i + 1]) for i in range(0, len(widths), 2)}
    core, live = x.core, bool(fill)
    for axis, (before, after) in pairs.items():
        if before == after == 0:
            continue
        if min(before, after) < 0 and core.shape[axis] > 1:
            return op.barrier([x], "crops channels")
        if core.shape[axis] > 1:
            if mode not in ("constant", 0, 0.0):
                return op.barrier([x], "pads channels with channels")
            slots = op.draft.new(before + after)
            op.source(slots, live, False, "padding of a fixed width", PinCode.FIXED_WIDTH)
            zeros = torch.from_numpy(slots).reshape([-1 if a == axis else 1 for a in range(core.ndim)])
            sizes = [1 if a == axis else n for a, n in enumerate(core.shape)]
            ends = (
                zeros.narrow(axis, 0, before).repeat(sizes),
                zeros.narrow(axis, before, after).repeat(sizes),
            )
            core = torch.cat([ends[0], core, ends[1]], axis)
    out = Labels(core, op.shape)
    return op.map([out], "const") if live and out.varying else out
