"""Operators that compute every element from the elements at its place."""

from __future__ import annotations

import math
from typing import Any

import torch

from chipnet._rules.movement import expand, split
from chipnet._rules.table import rule
from chipnet._trace import Labels, Tracer


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
