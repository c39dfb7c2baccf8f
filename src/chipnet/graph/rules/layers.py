"""Layers with a weight: convolutions and linear layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import nn

from chipnet.graph.channels import Map, Number, Slots
from chipnet.graph.rules.table import rule
from chipnet.graph.tracer import Labels, Tracer

LAYERS = frozenset(
    ["linear", *(f"conv{k}{n}d" for k in ("", "_transpose") for n in (1, 2, 3))]
)  # operators with a weight


COMPUTED = "a weight that is computed: what is left of it need not be what it would be made of less"


def _firsts(slots: Slots, groups: int) -> Slots:
    """The first slot of every group; of few wide groups all remain."""
    per = len(slots) // groups
    return slots.reshape(groups, per)[:, 0] if groups > per else slots[:0]


def _convolution(
    t: Tracer,
    x: Labels,
    weight: Labels,
    bias: Labels | None,
    groups: int,
    *,
    transposed: bool = False,
    counted: bool = True,
) -> Labels:
    axis = 1 if len(x.shape) == len(weight.shape) else 0
    kept = [v for v in (x, weight, bias) if v is not None]
    if weight.param is None and weight.varying and min(weight.varying) > 1 and t.is_data(weight):
        weight = t.whole(weight, "a kernel")
    along = weight.varying == [0]  # made as wide as an attribute says
    blurs = bias is None and groups == x.shape[axis] > 1 and (along or t.is_constant(weight))
    if not blurs and (weight.param is None or (bias is not None and bias.param is None)):
        return t.barrier(kept, COMPUTED)
    src = t.channels(x, axis)
    if src is None:
        return t.barrier(kept, "channels lie along another axis")
    if groups > 1 and not isinstance(
        t.modules.get(t.module), nn.modules.conv._ConvNd
    ):  # a number in the call
        if t.is_literal:
            t.pin_literal(x, "a convolution with a fixed number of groups")
        t.risk(src)
        t.claim(t.given("groups", 6), _firsts(src, groups))
    if blurs:
        return _blur(t, src, axis, weight)
    shape = t.shape
    kernel = math.prod(weight.shape[2:])
    area = math.prod(shape) // shape[axis]
    positions = math.prod(x.shape) // x.shape[axis] if transposed else area
    dst = t.mix(
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
    return t.along(dst, axis, shape)


def _blur(t: Tracer, src: Slots, axis: int, weight: Labels) -> Labels:
    """One constant kernel for every channel, as wide as they are (blur pooling, Sobel filters)."""
    t.graph.pin(src[:1], t.why("a convolution of every channel needs at least one"))
    dst = np.repeat(src, t.shape[axis] // len(src))
    if weight.varying:
        rows = np.repeat(weight.slots(), len(dst) // len(weight.slots()))
        read, dst = dst, t.graph.new(len(dst))
        t.graph.facts.append(Map(dst, (read, rows), "and"))
        t.graph.tie(dst, read)
        t.graph.tie(dst, rows)
    t.count(dst)
    return t.along(dst, axis, t.shape)


@rule("conv1d", "conv2d", "conv3d")
def conv(
    t: Tracer,
    x: Labels,
    weight: Labels,
    bias: Labels | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Labels:
    """Convolution, grouped or not."""
    return _convolution(t, x, weight, bias, groups)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    t: Tracer,
    x: Labels,
    weight: Labels,
    bias: Labels | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Labels:
    """Transposed convolution: the weight's first axis reads."""
    return _convolution(t, x, weight, bias, groups, transposed=True)


@rule("torchvision::deform_conv2d")
def deform_conv(
    t: Tracer, x: Labels, weight: Labels, offset: Labels, mask: Labels, bias: Labels | None, *numbers: Any
) -> Labels:
    """A convolution at places that another tensor gives, whole, in ``offset_groups`` parts of its channels.
    (PyTorch counts nothing for it.)"""
    *_, groups, offset_groups, _ = numbers
    x = t.labelled(x)
    if offset_groups > 1 and x.varying == [1]:
        for column in x.slots().reshape(offset_groups, -1).T:
            t.graph.tie_all(column.tolist())
        t.meet(x.slots())
    x = t.beside(x, [offset, mask], "where a deformable convolution reads")
    if str(getattr(t.node.args[4], "target", "")) == "aten.zeros.default":  # torchvision's, for no bias
        bias = None
    out = _convolution(t, x, weight, bias, groups, counted=False)
    module = t.modules.get(t.module)
    first = x.slots().reshape(groups, -1)[:, 0] if x.varying else x.slots()
    for name, slots in (("in_channels", x.slots()), ("out_channels", out.slots()), ("groups", first)):
        if getattr(module, name, 0) == len(slots) > 1:
            t.graph.numbers[t.module, name, None] = Number(t.module, name, None, slots)
    return out


@rule("linear")
def linear(t: Tracer, x: Labels, weight: Labels, bias: Labels | None = None) -> Labels:
    """A linear layer over the last axis."""
    if weight.param is None or (bias is not None and bias.param is None):
        return t.barrier([v for v in (x, weight, bias) if v is not None], COMPUTED)
    src = t.channels(x, -1)
    if src is None:
        return t.barrier([x], "channels lie along another axis")
    shape = t.shape
    area = math.prod(shape[:-1])
    dst = t.mix(src, weight, bias, rows=shape[-1], axis=-1, macs_per=area, area=area)
    return t.along(dst, -1, shape)
