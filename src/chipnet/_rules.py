"""One rule per operator: what it does to channels, as facts.

A rule reads labels of the operator's inputs and returns labels of its outputs. An operator without a rule is
not an error: its inputs are pinned, with the operator and the user's line as the reason.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from chipnet._graph import Number, Risk
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
    "softsign",
    "expm1",
    "log1p",
    "tan",
    "nan_to_num",
)
def unary(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Zero stays zero or it does not: the operator itself is asked."""
    if not isinstance(x, Labels):
        return t.barrier([a for a in args if isinstance(a, Labels)], "a scalar meets channels")
    others = [a for a in (*args, *kwargs.values()) if isinstance(a, Labels)]
    if others:
        return t.barrier([x, *others], "another tensor decides on its values")
    x = t.labelled(x)
    zero = t.node.target(torch.zeros((), dtype=t.dtype), *args, **kwargs)  # type: ignore[operator]
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


@rule("clamp", "clamp_min", "clamp_max")
def clamp(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Bounds are numbers or tensors; zero stays zero where they are zero too."""
    bounds = [a for a in (*args, *kwargs.values()) if isinstance(a, Labels)]
    return t.map([x, *bounds], "or") if bounds else unary(t, x, *args, **kwargs)


@rule("where")
def where(t: Tracer, condition: Labels, a: Any = None, b: Any = None) -> Any:
    """Non-zero where either side is; the condition must not differ between channels."""
    xs = [v for v in (a, b) if isinstance(v, Labels)]
    sides = [t.labelled(x) for x in xs]
    offset = len(t.shape) - len(condition.shape) if xs else 0
    axes = {v + len(t.shape) - len(x.shape) for x in sides for v in x.varying}
    fixed = any(v >= offset and condition.shape[v - offset] > 1 for v in axes)
    if not xs or fixed or t.labelled(condition).varying:
        return t.barrier([condition, *xs], "another tensor decides on its values")
    return t.map(xs, "const" if any(v for v in (a, b) if not isinstance(v, Labels)) else "or")


@rule("masked_fill")
def masked_fill(t: Tracer, x: Labels, mask: Labels, value: Any) -> Any:
    """A number, or a tensor of one, where the mask is true."""
    return where(t, mask, value, x)


@rule("glu")
def glu(t: Tracer, x: Labels, dim: int = -1) -> Labels:
    """The first half times the sigmoid of the second: the same positions remain in both."""
    halves = split(t, x, x.shape[dim] // 2, dim, follows=True)
    return t.map([halves[0], t.map([halves[1]], "const")], "and")


def _is_scalar(x: Any) -> bool:
    return not isinstance(x, Labels) or (math.prod(x.shape) == 1 and x.core is None)


def _binary(t: Tracer, a: Any, b: Any, kind: Any, scalar_kind: str) -> Labels:
    if _is_scalar(a) or _is_scalar(b):
        x = b if _is_scalar(a) else a
        if not isinstance(x, Labels):
            return t.uniform(int(t.constant[0]), t.shape)
        number = a if _is_scalar(a) else b
        same = scalar_kind == "same" or (not isinstance(number, Labels) and number == 0)
        return _broadcast(t, t.labelled(x)) if same else t.map([x], "const")
    return t.map([a, b], kind)


def _broadcast(t: Tracer, x: Labels) -> Labels:
    """``x`` at the current operator's shape: a tensor of one element may have more axes."""
    missing = len(t.shape) - len(x.shape)
    return expand(t, x) if missing else x


@rule("add", "sub", "maximum", "minimum", "rsub")
def add(t: Tracer, a: Any, b: Any, **kwargs: Any) -> Labels:
    """Non-zero where either side is."""
    return _binary(t, a, b, "or", "const")


@rule("addcmul")
def addcmul(t: Tracer, x: Labels, a: Labels, b: Labels, **kwargs: Any) -> Labels:
    """``x + a * b``."""
    return t.map([x, t.map([a, b], "and")], "or")


@rule("mul")
def mul(t: Tracer, a: Any, b: Any) -> Labels:
    """Non-zero where both sides are. ``x * f(x)``, as activations are written by hand, is a function of x."""
    if isinstance(a, Labels) and isinstance(b, Labels) and t.follows(a, b):  # f(x) * x is zero where x is
        return min(a, b, key=lambda x: not t.vanishes(x))
    return _binary(t, a, b, "and", "same")


@rule("div", "true_divide")
def div(t: Tracer, a: Any, b: Any, **kwargs: Any) -> Labels:
    """Zero where the numerator is; a channel divided by may become infinite and is kept."""
    if isinstance(b, Labels) and not _is_scalar(b) and t.labelled(b).varying:
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
    return out if isinstance(t.node.meta["val"], Tensor) else (out, out)  # values and indices


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


@rule("mean", "sum", "amax", "amin", "logsumexp", "prod")
def reduce(t: Tracer, x: Labels, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Labels:
    """A reduction over axes without channels keeps channels apart; a sum over channels reads all of them."""
    x = t.labelled(x)
    assert x.core is not None
    name = operator_name(t.node)
    dims = [dims] if isinstance(dims, int) else list(dims or range(len(x.shape)))
    dims = [d % len(x.shape) for d in dims]
    over = [d for d in dims if d in x.varying]
    core, squeezed = x.core, [d for d in dims if not keepdim]
    if len(x.varying) > len(over) > 0 and t.fixed(x, set(over)):
        x = t.across(x, over, "or")
        assert x.core is not None
        core = x.core
    elif over:
        if len(x.varying) > 1 or not (name in ("sum", "linalg_vector_norm") or t.rescales(x)):
            does = "averages" if name in ("mean", "var", "std") else "reduces"
            return t.barrier([x], f"{does} over channels")
        core = torch.from_numpy(t.total(x.slots())).reshape([1] * len(x.shape))
    for d in sorted(squeezed, reverse=True):
        core = core.squeeze(d)
    out = Labels(core, t.shape)
    return t.map([out], "const") if name == "logsumexp" and out.varying else out


@rule("linalg_vector_norm", "norm")
def norm_of(
    t: Tracer, x: Labels, order: Any = 2, dims: Any = None, keepdim: bool = False, **kw: Any
) -> Labels:
    """A norm is a sum of powers: zeros add nothing to it (those of order 0 and below, and infinity, are kept)."""
    if not isinstance(order, (int, float)) or not 0 < order < math.inf:
        return t.barrier([x], "a norm of this order")
    return reduce(t, x, dims, keepdim)


@rule("var", "std")
def variance(
    t: Tracer, x: Labels, dims: Any = None, *args: Any, keepdim: bool = False, **kwargs: Any
) -> Labels:
    """Over space every channel by itself; over channels the mean knows how many there are."""
    return reduce(t, x, dims, keepdim)


@rule("softmax", "_softmax", "cumsum")
def along_axis(t: Tracer, x: Labels, dim: int, *args: Any, **kwargs: Any) -> Labels:
    """Along space every channel by itself."""
    x = t.labelled(x)
    dim %= len(x.shape)
    if dim in x.varying:
        if operator_name(t.node) != "cumsum" and len(x.varying) > 1 and t.fixed(x, {dim}):
            return t.across(x, [dim], "const")
        return t.barrier([x], f"'{operator_name(t.node)}' mixes channels")
    return x if operator_name(t.node) == "cumsum" else t.map([x], "const")


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
_LITERAL = {"view", "reshape", "_unsafe_view", "unflatten", "repeat"}


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
    "unfold",
)
def move(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Elements change place: so do their labels."""
    x = t.labelled(x)
    if not x.varying:
        assert x.core is not None
        return t.uniform(int(x.core.reshape(-1)[0]), t.shape)
    literal = operator_name(t.node) in _LITERAL
    if literal and t.mode == "literal":
        t.pin(x, "is reshaped to sizes that do not follow its width")
    out = t.moved(t.node.target(x.full().contiguous(), *args, **kwargs))  # type: ignore[operator]
    if literal and t.mode != "literal":
        t.risk(x.slots(), *(out.shape[a] for a in out.varying))
        if t.mode == "attribute":
            for axis in out.varying:
                rows = out.core.movedim(axis, 0).reshape(out.shape[axis], -1)  # type: ignore[union-attr]
                for name, index in t.attributes(out.shape[axis]):
                    t.number(name, index, rows[:, 0].numpy().copy())
    return out


@rule("channel_shuffle")
def channel_shuffle(t: Tracer, x: Labels, groups: int) -> Labels:
    """The number of groups stays: the same positions remain in each."""
    x = t.labelled(x)
    if x.varying == [1]:
        for column in x.slots().reshape(groups, -1).T:
            t.graph.tie_all(column.tolist())
        t.meet(x.slots())
    return t.moved(t.node.target(x.full().contiguous(), groups))  # type: ignore[operator]


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
    """Axes of size one are repeated: labels stay. Where the result only meets other tensors, element by element,
    that is what broadcasting does: it follows their width (unless the sizes turn out to be fixed)."""
    x = t.labelled(x)
    assert x.core is not None
    shape = t.shape
    core = x.core.reshape((1,) * (len(shape) - x.core.ndim) + tuple(x.core.shape))
    before = (1,) * (len(shape) - len(x.shape)) + x.shape
    if (
        before != shape
        and t.mode != "literal"
        and all(operator_name(n) in _ELEMENTWISE for n in t.node.users)
    ):
        t.risk(x.slots())
        return Labels(core, before)
    sizes = args[0] if args and isinstance(args[0], (list, tuple)) else [-1] * len(shape)
    if t.mode == "literal" and any(sizes[a - len(x.shape)] != -1 for a in x.varying):
        t.pin(x, "is expanded to sizes that do not follow its width")
    return Labels(core, shape)


_ELEMENTWISE = {"add", "sub", "mul", "div", "maximum", "minimum"}


@rule("view_as", "reshape_as")
def view_as(t: Tracer, x: Labels, other: Labels) -> Labels:
    """A view whose sizes are another tensor's."""
    x = t.labelled(x)
    return t.moved(x.full().reshape(t.shape)) if x.varying else t.uniform(int(x.slots()[0]), t.shape)


@rule(
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like", "new_zeros", "new_ones"
)
def like(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """As wide as another tensor. Zeros are zero anyway; the rest is not zero where that tensor is."""
    x = t.labelled(x)
    same_shape = x.shape == t.shape
    if not same_shape and x.varying:
        return t.barrier([x], "a new tensor whose sizes are numbers")
    if not same_shape:
        return t.uniform(int(t.constant[0]), t.shape)
    if operator_name(t.node) in ("new_zeros", "new_ones", "full_like"):
        t.risk(x.slots())
    return x if "zeros" in operator_name(t.node) else t.map([x], "const")


@rule("fill", "zero")
def fill(t: Tracer, x: Labels, value: Any = 0) -> Labels:
    """Zeros leave zeros zero."""
    x = t.labelled(x)
    return x if t.is_zero(value) else t.map([x], "const")


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
def split(t: Tracer, x: Labels, size: Any, dim: int = 0, *, follows: bool = False) -> Any:
    """Pieces of an axis. Sizes in an attribute of the module are kept true; otherwise equal pieces keep equal
    widths (the same positions remain in each) and unequal ones are kept whole. ``follows``: no numbers."""
    x = t.labelled(x)
    dim %= len(x.shape)
    full = x.full()
    pieces = list(full.split(size, dim) if follows else t.node.target(full, size, dim))  # type: ignore[operator]
    sizes = tuple(p.shape[dim] for p in pieces)
    if dim not in x.varying or len(pieces) < 2:
        return tuple(t.moved(p) for p in pieces)
    first = [p.movedim(dim, 0).reshape(p.shape[dim], -1)[:, 0].numpy().copy() for p in pieces]
    equal, listed = len(set(sizes)) == 1, isinstance(size, (list, tuple))
    attributes = list(t.attributes(sizes)) if listed else []
    if t.mode == "literal" or not (equal or attributes):
        t.pin(x, f"is split into pieces of a fixed width ({', '.join(map(str, sizes))})")
    elif attributes:
        t.graph.risky[t.key] = Risk(t.line, False, x.slots())
        for name, index in attributes:  # pieces may be empty
            t.graph.number(Number(t.module, name, index, first[index]))  # type: ignore[index]
    else:
        whole = x.shape[dim]
        if not follows:
            t.risk(x.slots(), sizes[0], whole)
        if t.mode == "attribute":
            for name, index in t.attributes(sizes[0]):
                t.number(name, index, first[0])
            for name, index in t.attributes(whole):
                t.number(name, index, np.concatenate(first))
        flat = [p.movedim(dim, 0).reshape(p.shape[dim], -1) for p in pieces]
        for column in torch.cat(flat, 1).numpy():
            t.graph.tie_all(np.unique(column).tolist())
        t.meet(first[0])
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
LAYERS = frozenset(
    ["linear", *(f"conv{k}{n}d" for k in ("", "_transpose") for n in (1, 2, 3))]
)  # operators with a weight


def _convolution(
    t: Tracer, x: Labels, weight: Labels, bias: Labels | None, groups: int, transposed: bool
) -> Labels:
    if weight.param is None or (bias is not None and bias.param is None):
        return t.barrier([v for v in (x, weight, bias) if v is not None], "a weight that is computed")
    axis = 1 if len(x.shape) == len(weight.shape) else 0
    src = t.channels(x, axis)
    if src is None:
        return t.barrier([x], "channels lie along another axis")
    if groups > 1 and not isinstance(
        t.modules.get(t.module), nn.modules.conv._ConvNd
    ):  # a number in the call
        if t.mode == "literal":
            t.graph.pin(src, t.why("a convolution with a fixed number of groups"))
        else:
            t.risk(src, groups)
            for name, index in t.attributes(groups) if t.mode == "attribute" else ():
                t.number(name, index, src.reshape(groups, -1)[:, 0])
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


@rule("rms_norm")
def rms_norm(t: Tracer, x: Labels, normalized: list[int], weight: Any = None, *args: Any) -> Labels:
    """As layer norm, without a bias."""
    return layer_norm(t, x, normalized, weight)


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
    dst = t.norm(src, weight, bias, [], mixed[0], groups=1, mixes="layer norm mixes channels")
    return t.along(dst, mixed[0], t.shape)


@rule("group_norm")
def group_norm(t: Tracer, x: Labels, groups: int, weight: Any = None, bias: Any = None, *args: Any) -> Labels:
    """Statistics mix the channels of a group: a group remains or goes as a whole; the only one remains."""
    src = t.channels(x, 1)
    if src is None:
        return t.barrier([x], "channels lie along another axis")
    mixes = "group norm mixes channels" if groups == 1 else None
    module = t.modules.get(t.module)
    if not isinstance(module, nn.GroupNorm) and groups > 1:
        attributes = list(t.attributes(groups)) if t.mode != "literal" else []
        t.graph.risky[t.key] = Risk(t.line, False, src)
        for name, index in attributes:
            t.number(name, index, src.reshape(groups, -1)[:, 0])
        mixes = None if attributes else "group norm with a fixed number of groups"
    for group in src.reshape(groups, -1) if groups < len(src) else ():
        t.graph.tie_all(group.tolist())
    if 1 < groups < len(src):
        t.meet(src)
    dst = t.norm(src, weight, bias, [], 1, groups=groups if groups < len(src) else 0, mixes=mixes)
    return t.along(dst, 1, t.shape)
