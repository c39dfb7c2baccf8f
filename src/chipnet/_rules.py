"""One rule per operator: what it does to channels, as facts.

A rule reads labels of the operator's inputs and returns labels of its outputs. An operator without a rule is
not an error: its inputs are pinned, with the operator and the user's line as the reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from chipnet._trace import STANDARD_POOL, Labels, Tracer

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators, by name without overload or in-place underscore."""

    def register(f: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for operator {name!r}")
            RULES[name] = f
        return f

    return register


def operator_name(node: Node) -> str:
    """``aten.add_.Tensor`` -> ``add``."""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else str(node.target)
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def apply(t: Tracer, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Labels of a node's output, given labels of its inputs."""
    t.node = node
    name = operator_name(node)
    inputs = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, Labels)]
    if name == "getitem":
        return args[0][args[1]]
    if name in RULES:
        return RULES[name](t, *args, **kwargs)
    if len(inputs) == 1 and isinstance(node.target, torch._ops.OpOverload) and _pointwise(node.target):
        return unary(t, *args, **kwargs)
    return t.barrier(inputs, f"no rule for operator '{name}'")


def _pointwise(op: torch._ops.OpOverload) -> bool:
    return torch.Tag.pointwise in op.tags


# -- elementwise ----------------------------------------------------------------------------------------
@rule(
    "relu",
    "relu6",
    "hardtanh",
    "silu",
    "gelu",
    "hardswish",
    "sigmoid",
    "hardsigmoid",
    "tanh",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "mish",
    "softplus",
    "exp",
    "log",
    "neg",
    "abs",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "square",
    "clamp",
    "clamp_min",
    "clamp_max",
    "erf",
    "sin",
    "cos",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "log_sigmoid",
    "threshold",
    "softshrink",
    "hardshrink",
    "round",
    "floor",
)
def unary(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Zero stays zero or it does not: the operator itself is asked."""
    if not isinstance(x, Labels):
        return t.barrier([a for a in args if isinstance(a, Labels)], "a scalar meets channels")
    others = [a for a in (*args, *kwargs.values()) if isinstance(a, Labels)]
    if others:
        return t.barrier([x, *others], "a bound that is a tensor")
    x = t.labelled(x)
    zero = t.node.target(torch.zeros(()), *args, **kwargs)  # type: ignore[operator]
    return Labels(x.core, x.shape) if float(zero) == 0.0 else t.map([x], "const")


@rule(
    "clone",
    "contiguous",
    "detach",
    "alias",
    "to",
    "_to_copy",
    "lift_fresh_copy",
    "type_as",
    "float",
    "double",
)
def same(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """The same values."""
    return x


def _is_scalar(x: Any) -> bool:
    return not isinstance(x, Labels) or (math.prod(x.shape) == 1 and x.core is None)


def _binary(t: Tracer, a: Any, b: Any, kind: Any, scalar_kind: str) -> Labels:
    if _is_scalar(a) or _is_scalar(b):
        x = b if _is_scalar(a) else a
        if not isinstance(x, Labels):
            return t.uniform(int(t.constant[0]), t.shape)
        return t.labelled(x) if scalar_kind == "same" else t.map([x], "const")
    return t.map([a, b], kind)


@rule("add", "sub", "maximum", "minimum", "rsub")
def add(t: Tracer, a: Any, b: Any, **kwargs: Any) -> Labels:
    """Non-zero where either side is."""
    return _binary(t, a, b, "or", "const")


@rule("mul")
def mul(t: Tracer, a: Any, b: Any) -> Labels:
    """Non-zero where both sides are."""
    return _binary(t, a, b, "and", "same")


@rule("div", "true_divide")
def div(t: Tracer, a: Any, b: Any, **kwargs: Any) -> Labels:
    """Zero where the numerator is; a channel divided by may become infinite and is kept."""
    if isinstance(b, Labels) and not _is_scalar(b):
        inputs = [x for x in (a, b) if isinstance(x, Labels)]
        return t.barrier(inputs, "divides by channels")
    return _binary(t, a, b, "and", "same")


@rule("pow")
def power(t: Tracer, a: Any, b: Any) -> Labels:
    """Zero stays zero for a positive exponent."""
    if isinstance(a, Labels) and not isinstance(b, Labels):
        return t.labelled(a) if b > 0 else t.map([a], "const")
    return t.barrier([x for x in (a, b) if isinstance(x, Labels)], "a power with channels as exponent")


@rule("prelu")
def prelu(t: Tracer, x: Labels, weight: Labels) -> Labels:
    """Zero stays zero; slopes belong to channels."""
    x = t.labelled(x)
    if math.prod(weight.shape) > 1:
        slots = t.channels(x, 1)
        if slots is None or weight.param is None:
            return t.barrier([x, weight], "slopes that are not along channels")
        t.graph.own(weight.param, 0, slots)
    return x


# -- per-channel operators over space ---------------------------------------------------------------------
@rule("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
def pool(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Every channel by itself; these operators refuse tensors without channels."""
    out = adaptive(t, x)
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
    "adaptive_max_pool2d",
)
def adaptive(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Every channel by itself."""
    x = t.labelled(x)
    over = int(operator_name(t.node)[-2])  # the last 1, 2 or 3 axes
    if any(a >= len(x.shape) - over for a in x.varying):
        return t.barrier([x], "pools over channels")
    val = t.node.meta["val"]
    if not isinstance(val, Tensor):
        return t.barrier([x], "returns indices")
    return Labels(x.core, t.shape)


@rule(
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
)
def upsample(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Every channel by itself; refuses tensors without channels."""
    out = adaptive(t, x)
    if out.varying == [1]:
        t.graph.pin(out.slots()[:1], t.why(f"'{t.node.name}' needs at least one channel"))
    return out


@rule("mean", "sum", "amax", "amin")
def reduce(t: Tracer, x: Labels, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Labels:
    """A reduction over axes without channels keeps channels apart."""
    x = t.labelled(x)
    assert x.core is not None
    dims = [dims] if isinstance(dims, int) else list(dims or range(len(x.shape)))
    dims = [d % len(x.shape) for d in dims]
    if any(d in x.varying for d in dims):
        return t.barrier([x], "reduces over channels")
    core = x.core
    for d in sorted(dims, reverse=True):
        core = core if keepdim else core.squeeze(d)
    return Labels(core, t.shape)


@rule("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")
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


# -- data movement ----------------------------------------------------------------------------------------
# The graph shows numbers, not where they came from: whether ``view(b, 64, -1)`` had the width as a literal or
# computed it is found out by running a compact copy (``_capture.py``).
_LITERAL = {"view", "reshape", "_unsafe_view", "unflatten", "repeat", "channel_shuffle"}


@rule(
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "permute",
    "transpose",
    "t",
    "unsqueeze",
    "squeeze",
    "movedim",
    "swapaxes",
    "flip",
    "repeat",
    "repeat_interleave",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "unfold",
)
def move(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Elements change place: so do their labels."""
    x = t.labelled(x)
    if not x.varying:
        assert x.core is not None
        return t.uniform(int(x.core.reshape(-1)[0]), t.shape)
    if operator_name(t.node) in _LITERAL:
        if t.node.name in t.literal:
            t.pin(x, "is reshaped to sizes that do not follow its width")
        else:
            t.graph.risky[t.node.name] = t.line
    return t.moved(t.node.target(x.full().contiguous(), *args, **kwargs))  # type: ignore[operator]


@rule("roll")
def roll(t: Tracer, x: Labels, shifts: Any, dims: Any = ()) -> Labels:
    """Rolled channels are other channels once some are gone: they are kept."""
    x = t.labelled(x)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims or any(d % len(x.shape) in x.varying for d in dims):
        t.pin(x, "is rolled along channels")
    return t.moved(t.node.target(x.full(), shifts, dims))  # type: ignore[operator]


@rule("expand", "expand_as", "broadcast_to")
def expand(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Axes of size one are repeated: labels stay."""
    x = t.labelled(x)
    assert x.core is not None
    shape = t.shape
    return Labels(x.core.reshape((1,) * (len(shape) - x.core.ndim) + tuple(x.core.shape)), shape)


@rule("cat", "concat", "concatenate")
def cat(t: Tracer, xs: list[Labels], dim: int = 0) -> Labels:
    """Labels side by side."""
    xs = [t.labelled(x) for x in xs if math.prod(x.shape) > 0]
    shape = t.shape
    dim %= len(shape)
    varying = {a for x in xs for a in x.varying}
    if any(a != dim for a in varying):
        cores = [x.core for x in xs]
        if dim not in varying and all(torch.equal(c, cores[0]) for c in cores):  # type: ignore[arg-type]
            return Labels(cores[0], shape)
        return t.barrier(xs, "concatenates along another axis than channels")
    parts = []
    for x in xs:
        assert x.core is not None
        sizes = [n if a == dim else 1 for a, n in enumerate(x.shape)]
        parts.append(x.core.expand(sizes))
    return Labels(torch.cat(parts, dim), shape)


@rule("stack")
def stack(t: Tracer, xs: list[Labels], dim: int = 0) -> Labels:
    """Labels side by side along a new axis."""
    shape = t.shape
    dim %= len(shape)
    full = torch.stack([t.labelled(x).full() for x in xs], dim)
    return t.moved(full)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(t: Tracer, x: Labels, size: Any, dim: int = 0) -> Any:
    """Equal pieces keep equal widths: the same positions remain in each. Unequal ones are kept whole."""
    x = t.labelled(x)
    dim %= len(x.shape)
    pieces = list(t.node.target(x.full(), size, dim))  # type: ignore[operator]
    if dim in x.varying and len(pieces) > 1:
        if len({p.shape[dim] for p in pieces}) > 1:
            t.pin(x, "is split into unequal pieces")
        elif t.node.name in t.literal:
            t.pin(x, "is split into pieces of a fixed width")
        else:
            t.graph.risky[t.node.name] = t.line
            flat = [p.movedim(dim, 0).reshape(p.shape[dim], -1) for p in pieces]
            for column in torch.cat(flat, 1).numpy():
                t.graph.tie_all(np.unique(column).tolist())
    return tuple(t.moved(p) for p in pieces)


@rule("unbind")
def unbind(t: Tracer, x: Labels, dim: int = 0) -> Any:
    """Pieces of one index each; along channels their number is fixed."""
    x = t.labelled(x)
    if dim % len(x.shape) in x.varying:
        t.pin(x, "is taken apart along channels")
    return tuple(t.moved(p) for p in x.full().unbind(dim))


@rule("slice", "select", "narrow", "index_select")
def take(t: Tracer, x: Labels, dim: int = 0, *args: Any, **kwargs: Any) -> Labels:
    """A part of an axis. Taken out of channels, its bounds are the user's literals: channels are kept."""
    x = t.labelled(x)
    dim %= len(x.shape)
    if any(isinstance(a, Labels) for a in args):
        return t.barrier([x], "indexes by a tensor")
    full = t.node.target(x.full(), dim, *args, **kwargs)  # type: ignore[operator]
    if dim in x.varying and tuple(full.shape) != x.shape:
        t.pin(x, "a fixed part of its channels is taken")
    return t.moved(full)


@rule("_assert_tensor_metadata", "_assert_async", "_assert_scalar")
def check(t: Tracer, *args: Any, **kwargs: Any) -> None:
    """What export leaves of dtype and value checks; nothing is computed."""


# -- layers -----------------------------------------------------------------------------------------------
def _convolution(
    t: Tracer, x: Labels, weight: Labels, bias: Labels | None, groups: int, transposed: bool
) -> Labels:
    if weight.param is None or (bias is not None and bias.param is None):
        return t.barrier([v for v in (x, weight, bias) if v is not None], "a weight that is computed")
    axis = 1 if len(x.shape) == len(weight.shape) else 0
    src = t.channels(x, axis)
    if src is None:
        return t.barrier([x], "channels lie along another axis")
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
        macs_per=positions * kernel,
        area=area,
    )
    return t.along(dst, axis, shape)


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
    return _convolution(t, x, weight, bias, groups, transposed=False)


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


@rule("linear")
def linear(t: Tracer, x: Labels, weight: Labels, bias: Labels | None = None) -> Labels:
    """A linear layer over the last axis."""
    if weight.param is None or (bias is not None and bias.param is None):
        return t.barrier([v for v in (x, weight, bias) if v is not None], "a weight that is computed")
    src = t.channels(x, -1)
    if src is None:
        return t.barrier([x], "channels lie along another axis")
    shape = t.shape
    area = math.prod(shape[:-1])
    dst = t.mix(src, weight, bias, rows=shape[-1], axis=-1, macs_per=area, area=area)
    return t.along(dst, -1, shape)


@rule("batch_norm")
def batch_norm(
    t: Tracer,
    x: Labels,
    weight: Labels | None,
    bias: Labels | None,
    mean: Labels | None,
    var: Labels | None,
    *args: Any,
) -> Labels:
    """Every channel by itself."""
    src = t.channels(x, 1)
    if src is None:
        return t.barrier([x], "channels lie along another axis")
    dst = t.norm(src, weight, bias, [s for s in (mean, var) if s is not None], 1)
    return t.along(dst, 1, t.shape)


@rule("instance_norm")
def instance_norm(t: Tracer, x: Labels, weight: Any, bias: Any, mean: Any, var: Any, *args: Any) -> Labels:
    """Every channel by itself."""
    return batch_norm(t, x, weight, bias, mean, var)


@rule("layer_norm")
def layer_norm(
    t: Tracer, x: Labels, normalized: list[int], weight: Any = None, bias: Any = None, *args: Any
) -> Labels:
    """Statistics mix channels: what is read stays whole, what is written may be gated."""
    x = t.labelled(x)
    first = len(x.shape) - len(normalized)
    mixed = [a for a in x.varying if a >= first]
    if not mixed:
        return t.map([x], "const") if x.varying else t.barrier([x], "layer norm")
    if len(mixed) > 1 or len(x.varying) > 1 or len(normalized) > 1:
        return t.barrier([x], "layer norm over several axes")
    src = t.channels(x, mixed[0])
    assert src is not None
    dst = t.norm(src, weight, bias, [], mixed[0], mixes="layer norm mixes channels")
    return t.along(dst, mixed[0], t.shape)


@rule("group_norm")
def group_norm(t: Tracer, x: Labels, groups: int, weight: Any = None, bias: Any = None, *args: Any) -> Labels:
    """Statistics mix the channels of a group: what is read stays whole unless a group is one channel."""
    src = t.channels(x, 1)
    if src is None:
        return t.barrier([x], "channels lie along another axis")
    mixes = None if groups == x.shape[1] else "group norm mixes channels"
    dst = t.norm(src, weight, bias, [], 1, mixes=mixes)
    return t.along(dst, 1, t.shape)
