"""Operators that compute every element from the elements at its place."""

from __future__ import annotations

import math
from typing import Any

import torch

from chipnet.graph.rules.movement import expand, split
from chipnet.graph.rules.table import operator_name, rule
from chipnet.graph.tracer import Labels, Tracer


@rule(
    *(
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
    ),
    *(
        "elu",
        "celu",
        "selu",
        "mish",
        "softplus",
        "log_sigmoid",
        "threshold",
        "softshrink",
        "hardshrink",
        "rrelu",
    ),
    *(
        "softsign",
        "dropout",
        "feature_dropout",
        "fix",
        "absolute",
        "negative",
        "arctan",
        "arctan2",
        "special_expit",
    ),
    *("floor_divide", "complex", "polar", "clamp", "clamp_min", "clamp_max", "float_power"),
)
def pointwise(t: Tracer, *args: Any, **kwargs: Any) -> Labels:
    """Zeros give zero or they do not: the operator itself is asked. (It may give zero where only some are: where
    that matters it has a rule of its own.)"""
    inputs = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, Labels)]

    def zero_of(n: torch.fx.Node) -> Any:
        val = n.meta["val"]
        return torch.zeros((), dtype=val.dtype) if isinstance(val, torch.Tensor) else val

    nodes = torch.fx.node.map_arg((t.node.args, dict(t.node.kwargs)), zero_of)
    out = t.node.target(*nodes[0], **nodes[1])  # type: ignore[operator]
    kind: Any = "or" if bool(out == 0) else "const"
    if len(inputs) == 1 and kind == "or":
        x = t.labelled(inputs[0])
        return Labels(x.core, x.shape)
    return t.map(inputs, kind)


@rule("bernoulli", "alpha_dropout", "feature_alpha_dropout")
def random(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Drawn for every element: what is 0 stays 0 where it is the chance of a 1, or where nothing is dropped."""
    stays = not args if operator_name(t.node) == "bernoulli" else args[-1] is False
    return t.labelled(x) if stays else t.map([x], "const")


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
    "real",
    "imag",
    "conj",
    "_conj",
    "resolve_conj",
    "positive",
)
def same(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """The same values."""
    return x


@rule("view_as_complex")
def view_as_complex(t: Tracer, x: Labels) -> Labels:
    """The last axis of two becomes one number."""
    x = t.labelled(x)
    assert x.core is not None
    if len(x.shape) - 1 in x.varying:
        return t.barrier([x], "two channels become one number")
    return Labels(x.core.squeeze(-1), t.shape)


@rule("view_as_real")
def view_as_real(t: Tracer, x: Labels) -> Labels:
    """One number becomes a last axis of two."""
    x = t.labelled(x)
    assert x.core is not None
    return Labels(x.core.unsqueeze(-1), t.shape)


@rule("where")
def where(t: Tracer, condition: Labels, a: Any = None, b: Any = None) -> Any:
    """Non-zero where either side is, whatever the condition. One that is a function of the same channel, as in
    activations written by hand, decides nothing of its own."""
    sides = [v for v in (a, b) if isinstance(v, Labels)]
    if not sides:
        return t.barrier([condition], "another tensor decides on its values")
    values = t.map(sides, "const" if any(v for v in (a, b) if not isinstance(v, Labels)) else "or")
    if t.follows(condition, values):
        return values
    return t.map([values, condition if condition.core is None else t.places(condition)], "and")


@rule("masked_fill")
def masked_fill(t: Tracer, x: Labels, mask: Labels, value: Any) -> Any:
    """A number, or a tensor of one, where the mask is true."""
    return where(t, mask, value, x)


@rule("broadcast_tensors")
def broadcast_tensors(t: Tracer, xs: list[Labels]) -> Any:
    """Tensors of one shape already, as losses make sure."""
    same = all(x.shape == t.shape for x in xs)
    return tuple(xs) if same else t.barrier(xs, "tensors of several shapes are expanded")


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
        if same and x.core is None and x.param is not None and x.shape == t.shape and not _is_scalar(x):
            return x  # a weight times a number is that weight
        return _broadcast(t, t.labelled(x)) if same else t.map([x], "const")
    return t.map([a, b], kind)


def _broadcast(t: Tracer, x: Labels) -> Labels:
    """``x`` at the current operator's shape: a tensor of one element may have more axes."""
    missing = len(t.shape) - len(x.shape)
    return expand(t, x) if missing else x


@rule("add", "sub", "subtract", "maximum", "minimum", "rsub", "fmax", "fmin")
def add(t: Tracer, a: Any, b: Any, **kwargs: Any) -> Labels:
    """Non-zero where either side is."""
    return _binary(t, a, b, "or", "const")


@rule("copy")
def copy(t: Tracer, x: Labels, source: Labels, *args: Any) -> Labels:
    """``x`` is overwritten."""
    x, source = t.labelled(x), t.labelled(source)
    assert x.core is not None and source.core is not None
    if torch.equal(x.core, source.core):
        return x
    return source if source.shape == x.shape else t.map([x, source], "or")


@rule("addcmul")
def addcmul(t: Tracer, x: Labels, a: Labels, b: Labels, **kwargs: Any) -> Labels:
    """``x + a * b``."""
    return t.map([x, t.map([a, b], "and")], "or")


@rule("addcdiv")
def addcdiv(t: Tracer, x: Labels, a: Labels, b: Labels, **kwargs: Any) -> Labels:
    """``x + a / b``."""
    return t.map([x, div(t, a, b)], "or")


@rule("lerp")
def lerp(t: Tracer, x: Labels, y: Labels, weight: Any) -> Labels:
    """Between two tensors: non-zero where either is, whatever the weight."""
    between = t.map([x, y], "or")
    if _is_scalar(weight) or t.follows(weight, between):
        return between
    return t.map([between, t.map([weight], "const", weight.shape)], "and")


@rule("mul", "multiply")
def mul(t: Tracer, a: Any, b: Any) -> Labels:
    """Non-zero where both sides are. ``x * f(x)``, as activations are written by hand, is a function of x."""
    if isinstance(a, Labels) and isinstance(b, Labels) and t.follows(a, b):  # f(x) * x is zero where x is
        return Labels(min(a, b, key=lambda x: not t.vanishes(x)).core, t.shape)
    return _binary(t, a, b, "and", "same")


@rule("div", "true_divide", "divide")
def div(t: Tracer, a: Any, b: Any, **kwargs: Any) -> Labels:
    """Zero where the numerator is. A channel divided by that may be zero is kept; one that is shifted (``+ eps``)
    is not zero."""
    if isinstance(b, Labels) and not _is_scalar(b) and t.labelled(b).varying:
        if not t.stays(b):
            return t.barrier([x for x in (a, b) if isinstance(x, Labels)], "divides by channels")
        if isinstance(a, Labels) and t.follows(a, b):
            return Labels(a.core, t.shape)
    return _binary(t, a, b, "and", "same")


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
