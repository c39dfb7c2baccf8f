"""Operators that compute every element from the elements at the same place."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from chipnet._util.torch_private import value_of
from chipnet.graph.labels import Labels, Param, Value, values_in
from chipnet.graph.operator import Operator
from chipnet.graph.queries import note_factor
from chipnet.graph.rules.movement import expand, is_data
from chipnet.graph.rules.parts import split
from chipnet.graph.rules.table import aten, rule


@rule(
    *aten(
        "relu relu6 hardtanh silu gelu hardswish sigmoid hardsigmoid tanh leaky_relu elu celu selu mish "
        "softplus log_sigmoid threshold softshrink hardshrink rrelu dropout feature_dropout fix absolute "
        "negative arctan arctan2 special_expit floor_divide complex polar clamp clamp_min clamp_max "
        "float_power"
    )
)
def pointwise(op: Operator, *args: Any, **kwargs: Any) -> Value:
    """The operator itself says whether zeros give zero: it is run on zeros.

    It may give zero where only some inputs are zero. Operators for which that matters have rules of their own.
    """
    inputs = values_in(args, kwargs)

    def zero_of(n: torch.fx.Node) -> Any:
        val = value_of(n)
        return torch.zeros((), dtype=val.dtype) if isinstance(val, torch.Tensor) else val

    nodes = torch.fx.node.map_arg((op.node.args, dict(op.node.kwargs)), zero_of)
    out = op.node.target(*nodes[0], **nodes[1])  # type: ignore[operator]
    kind: Any = "or" if bool(out == 0) else "const"
    if len(inputs) == 1 and is_data(inputs[0], op):
        return replace(inputs[0], const=inputs[0].const or kind == "const")
    if len(inputs) == 1 and kind == "or":
        x = op.labelled(inputs[0])
        return Labels(x.core, x.shape)
    return op.map(inputs, kind)


@rule(*aten("bernoulli alpha_dropout feature_alpha_dropout"))
def random(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Labels:
    """Every element is drawn by itself. A zero stays zero where it is the chance of a 1, or where nothing is
    dropped."""
    stays = not args if op.name == "bernoulli" else args[-1] is False
    return op.labelled(x) if stays else op.map([x], "const")


@rule(
    *aten(
        "clone contiguous detach alias to _to_copy lift_fresh_copy type_as real imag conj _conj "
        "resolve_conj positive"
    )
)
def same(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Value:
    """The same values."""
    return x


@rule(*aten("view_as_complex"))
def view_as_complex(op: Operator, x: Value) -> Labels:
    """The last axis, of two, becomes one complex number."""
    x = op.labelled(x)
    if len(x.shape) - 1 in x.varying:
        return op.barrier([x], "two channels become one number")
    return Labels(x.core.squeeze(-1), op.shape)


@rule(*aten("view_as_real"))
def view_as_real(op: Operator, x: Value) -> Labels:
    """A complex number becomes a last axis of two."""
    x = op.labelled(x)
    return Labels(x.core.unsqueeze(-1), op.shape)


@rule(*aten("where"))
def where(op: Operator, condition: Value, a: Any = None, b: Any = None) -> Any:
    """Non-zero where either side is, whatever the condition.

    A condition that is a function of the same channel, as in activations written by hand, adds nothing.
    """
    sides = values_in(a, b)
    if not sides:
        return op.barrier([condition], "another tensor decides on its values")
    values = op.map(sides, "const" if any(v for v in (a, b) if not isinstance(v, Value)) else "or")
    if op.draft.values.is_function(condition, values):
        return values
    return op.map([values, op.places(condition) if isinstance(condition, Labels) else condition], "and")


@rule(*aten("masked_fill"))
def masked_fill(op: Operator, x: Value, mask: Value, value: Any) -> Any:
    """A number, or a tensor of one, stands where the mask is true."""
    return where(op, mask, value, x)


@rule(*aten("broadcast_tensors"))
def broadcast_tensors(op: Operator, xs: list[Value]) -> Any:
    """Tensors that have one shape already, as losses make sure."""
    same = all(x.shape == op.shape for x in xs)
    return tuple(xs) if same else op.barrier(xs, "tensors of several shapes are expanded")


@rule(*aten("glu"))
def glu(op: Operator, x: Value, dim: int = -1) -> Labels:
    """The first half times the sigmoid of the second. The same positions remain in both."""
    halves = split(op, x, x.shape[dim] // 2, dim, follows=True)
    return op.map([halves[0], op.map([halves[1]], "const")], "and")


def _is_scalar(x: Any) -> bool:
    return not isinstance(x, Value) or (math.prod(x.shape) == 1 and isinstance(x, Param))


def _binary(op: Operator, a: Any, b: Any, kind: Any, scalar_kind: str) -> Value:
    if _is_scalar(a) or _is_scalar(b):
        x = b if _is_scalar(a) else a
        if not isinstance(x, Value):
            return op.constant(op.shape)
        number = a if _is_scalar(a) else b
        same = scalar_kind == "same" or (not isinstance(number, Value) and number == 0)
        if same and isinstance(x, Param) and x.shape == op.shape and not _is_scalar(x):
            return x  # a weight times a number is that weight
        return _broadcast(op, op.labelled(x)) if same else op.map([x], "const")
    return op.map([a, b], kind)


def _broadcast(op: Operator, x: Labels) -> Labels:
    """``x`` at the operator's shape: a tensor of one element may have more axes."""
    missing = len(op.shape) - len(x.shape)
    return op.labelled(expand(op, x)) if missing else x


@rule(*aten("add sub subtract maximum minimum rsub fmax fmin"))
def add(op: Operator, a: Any, b: Any, **kwargs: Any) -> Value:
    """Non-zero where either side is."""
    if isinstance(a, Param) and a == b and is_data(a, op):
        return a
    return _binary(op, a, b, "or", "const")


@rule(*aten("copy"))
def copy(op: Operator, x: Value, source: Value, *args: Any) -> Labels:
    """``x`` is overwritten by ``source``."""
    x, source = op.labelled(x), op.labelled(source)
    if torch.equal(x.core, source.core):
        return x
    return source if source.shape == x.shape else op.map([x, source], "or")


@rule(*aten("addcmul"))
def addcmul(op: Operator, x: Value, a: Value, b: Value, **kwargs: Any) -> Labels:
    """``x + a * b``."""
    return op.map([x, op.map([a, b], "and")], "or")


@rule(*aten("addcdiv"))
def addcdiv(op: Operator, x: Value, a: Value, b: Value, **kwargs: Any) -> Labels:
    """``x + a / b``."""
    return op.map([x, div(op, a, b)], "or")


@rule(*aten("lerp"))
def lerp(op: Operator, x: Value, y: Value, weight: Any) -> Labels:
    """A number between those of two tensors: non-zero where either is, whatever the weight."""
    between = op.map([x, y], "or")
    if _is_scalar(weight) or op.draft.values.is_function(weight, between):
        return between
    return op.map([between, op.map([weight], "const", weight.shape)], "and")


@rule(*aten("mul multiply"))
def mul(op: Operator, a: Any, b: Any) -> Value:
    """Non-zero where both sides are. ``x * f(x)``, as activations are written by hand, is a function of ``x``."""
    values = op.draft.values
    if isinstance(a, Labels) and isinstance(b, Labels) and values.is_function(a, b):  # zero where x is
        return Labels(min(a, b, key=lambda x: not values.keeps_zeros(x)).core, op.shape)
    for x, factor in ((a, b), (b, a)):
        if isinstance(x, Labels) and isinstance(factor, float):
            note_factor(op, x, factor)
    return _binary(op, a, b, "and", "same")


@rule(*aten("div true_divide divide"))
def div(op: Operator, a: Any, b: Any, **kwargs: Any) -> Value:
    """Zero where the numerator is.

    Channels that are divided by are pinned, since they may be zero. Those that are shifted (``+ eps``) are not.
    """
    if isinstance(b, Value) and not _is_scalar(b) and op.labelled(b).varying:
        if not isinstance(b, Labels) or not op.draft.values.never_zero(b):
            return op.barrier(values_in(a, b), "divides by channels")
        if isinstance(a, Labels) and op.draft.values.is_function(a, b):
            return Labels(a.core, op.shape)
    if isinstance(a, Labels) and isinstance(b, float) and b:
        note_factor(op, a, 1 / b)
    return _binary(op, a, b, "and", "same")


@rule(*aten("prelu"))
def prelu(op: Operator, x: Value, weight: Value) -> Labels:
    """Zeros stay zero. Slopes belong to channels."""
    x = op.labelled(x)
    if math.prod(weight.shape) > 1:
        slots = op.channels(x, 1)
        if slots is None or not isinstance(weight, Param):
            return op.barrier([x, weight], "slopes that are not along channels")
        op.draft.own(weight.name, 0, slots)
    return x
