"""Layers with a weight: convolutions and linear layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chipnet._util.torch_private import ConvNd
from chipnet.graph.attributes import claim, pin_literal
from chipnet.graph.facts import Layer, Map, Number, PinCode, Slots
from chipnet.graph.groups import small_groups
from chipnet.graph.labels import Labels, Param, Value, along
from chipnet.graph.operator import Operator
from chipnet.graph.rules.table import aten, rule
from chipnet.graph.weights import COMPUTED, mix

LAYERS = frozenset(
    ["linear", *(f"conv{k}{n}d" for k in ("", "_transpose") for n in (1, 2, 3))]
)  # operators with a weight


def _firsts(slots: Slots, groups: int) -> Slots:
    """The first slot of every group; none where few wide groups all remain."""
    return slots.reshape(groups, -1)[:, 0] if small_groups(groups, len(slots)) else slots[:0]


def _convolution(
    op: Operator,
    x: Value,
    weight: Value,
    bias: Value | None,
    groups: int,
    *,
    transposed: bool = False,
    counted: bool = True,
) -> Labels:
    axis = 1 if len(x.shape) == len(weight.shape) else 0
    kept = [v for v in (x, weight, bias) if v is not None]
    if isinstance(weight, Labels) and min(weight.varying, default=0) > 1 and op.draft.is_data(weight):
        weight = op.without_channels(weight, "a kernel")
    wide = weight.varying == [0]  # made as wide as an attribute says
    blurs = bias is None and groups == x.shape[axis] > 1 and (wide or op.is_constant(weight))
    if not blurs and not (isinstance(weight, Param) and isinstance(bias, Param | None)):
        return op.barrier(kept, COMPUTED, PinCode.COMPUTED)
    src = op.channels(x, axis)
    if (
        src is None
        and isinstance(weight, Param)
        and groups == math.prod(weight.shape[2:]) == 1
        and not transposed
    ):
        return _across(op, op.labelled(x), weight, bias, axis)
    if src is None:
        return op.barrier(kept, "channels lie along another axis")
    if groups > 1 and not isinstance(op.owner, ConvNd):  # a number in the call
        if op.is_literal:
            pin_literal(op, x, "a convolution with a fixed number of groups")
        op.risk(src)
        claim(op, op.given("groups", 6), _firsts(src, groups))
    if not isinstance(weight, Param) or not isinstance(bias, Param | None):
        return _blur(op, src, axis, weight)
    shape = op.shape
    kernel = math.prod(weight.shape[2:])
    area = math.prod(shape) // shape[axis]
    positions = math.prod(x.shape) // x.shape[axis] if transposed else area
    dst = mix(
        op,
        src,
        weight,
        bias,
        groups=groups,
        transposed=transposed,
        rows=shape[axis],
        axis=axis,
        macs_per=positions * kernel * counted,
        area=area,
    )
    return along(dst, axis, shape)


def _across(op: Operator, x: Labels, weight: Param, bias: Value | None, axis: int) -> Labels:
    """A layer over an axis without channels, which lie along another: it mixes tokens. Each channel is computed by
    itself, with the same weight: a zero stays one without a bias."""
    if op.name != "linear":
        op.keep(x.slots()[:1], "a convolution needs at least one point", PinCode.ONE_STAYS)
    out = Labels(x.core, op.shape)
    if bias is not None:
        out = op.map([out], "const")
    rows, cols = (np.full(n, op.draft.constant) for n in (op.shape[axis], x.shape[axis]))
    area = math.prod(op.shape) // (len(rows) * len(x.slots())) if op.forward.counting else 0
    name = weight.name.rpartition(".")[0] or weight.name
    op.draft.layers.append(Layer(-1, name, weight.name, rows, cols, area, area, out.slots()))
    return out


def _blur(op: Operator, src: Slots, axis: int, weight: Value) -> Labels:
    """A convolution with one constant kernel for every channel (blur pooling, Sobel filters)."""
    op.keep(src[:1], "a convolution of every channel needs at least one", PinCode.ONE_STAYS)
    dst = np.repeat(src, op.shape[axis] // len(src))
    if isinstance(weight, Labels) and weight.varying:
        rows = np.repeat(weight.slots(), len(dst) // len(weight.slots()))
        read, dst = dst, op.draft.new(len(dst))
        op.emit(Map(dst, (read, rows), "and"))
        op.draft.tie(dst, read)
        op.draft.tie(dst, rows)
    op.count(dst)
    return along(dst, axis, op.shape)


@rule(*aten("conv1d conv2d conv3d"))
def conv(
    op: Operator,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Labels:
    """A convolution, grouped or not."""
    return _convolution(op, x, weight, bias, groups)


@rule(*aten("conv_transpose1d conv_transpose2d conv_transpose3d"))
def conv_transpose(
    op: Operator,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Labels:
    """A transposed convolution, grouped or not."""
    return _convolution(op, x, weight, bias, groups, transposed=True)


@rule("torchvision::deform_conv2d")
def deform_conv(
    op: Operator, x: Value, weight: Value, offset: Value, mask: Value, bias: Value | None, *numbers: Any
) -> Labels:
    """A convolution at places that another tensor gives. That one is pinned; it has ``offset_groups`` groups of
    channels.

    PyTorch's counter counts nothing for it.
    """
    *_, groups, offset_groups, _ = numbers
    x = op.labelled(x)
    if offset_groups > 1 and x.varying == [1]:
        for column in x.slots().reshape(offset_groups, -1).T:
            op.draft.tie_all(column)
        op.note_tie(x.slots())
    x = op.with_kept(x, [offset, mask], "where a deformable convolution reads")
    if str(getattr(op.node.args[4], "target", "")) == "aten.zeros.default":  # torchvision's, for no bias
        bias = None
    out = _convolution(op, x, weight, bias, groups, counted=False)
    module = op.owner
    first = x.slots().reshape(groups, -1)[:, 0] if x.varying else x.slots()
    for name, slots in (("in_channels", x.slots()), ("out_channels", out.slots()), ("groups", first)):
        if getattr(module, name, 0) == len(slots) > 1:
            op.draft.numbers[op.module, name, None] = Number(op.module, name, None, slots)
    return out


@rule(*aten("linear"))
def linear(op: Operator, x: Value, weight: Value, bias: Value | None = None) -> Labels:
    """A linear layer over the last axis."""
    if not isinstance(weight, Param) or not isinstance(bias, Param | None):
        return op.barrier([v for v in (x, weight, bias) if v is not None], COMPUTED, PinCode.COMPUTED)
    src = op.channels(x, -1)
    if src is None:
        return _across(op, op.labelled(x), weight, bias, -1)
    shape = op.shape
    area = math.prod(shape[:-1])
    dst = mix(op, src, weight, bias, rows=shape[-1], axis=-1, macs_per=area, area=area)
    return along(dst, -1, shape)
