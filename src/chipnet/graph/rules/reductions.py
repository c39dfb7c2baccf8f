"""Operators that reduce axes."""

from __future__ import annotations

import math
from typing import Any

import torch

from chipnet._util.torch_private import parameters_of
from chipnet.graph.facts import Rescaled
from chipnet.graph.labels import Labels, Value, axes_of, uniform, values_in
from chipnet.graph.operator import Operator
from chipnet.graph.rules.elementwise import add
from chipnet.graph.rules.table import aten, rule

_ADDS = frozenset(["sum", "nansum", "linalg_vector_norm", "norm", "count_nonzero", "any"])
"""What zeros add nothing to."""
_AVERAGES = frozenset(["mean", "nanmean", "var", "std", "var_mean", "std_mean"])
_SHIFTS = frozenset(["logsumexp"])
"""Not zero where all that is read is."""


def results(op: Operator, x: Labels) -> Any:
    """Labels of all outputs: ``x`` for values, and places of it for indices."""
    name, outputs = op.name, op.outputs
    if not isinstance(outputs, (tuple, list)):
        return op.places(x) if name in ("argmax", "argmin", "argsort") else x
    return (x, x if name in ("aminmax", "var_mean", "std_mean") else op.places(x))


@rule(
    *aten(
        "mean sum amax amin logsumexp prod nanmean nansum any all count_nonzero aminmax median nanmedian "
        "mode argmax argmin"
    )
)
def reduce(op: Operator, x: Value, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """A reduction over axes without channels takes every channel by itself. A sum over channels reads all of them;
    other reductions over channels pin them."""
    x = op.labelled(x)
    name, dims, shape = op.name, axes_of(len(x.shape), dim), op.shape
    over = [d for d in dims if d in x.varying]
    if len(x.varying) > len(over) > 0 and op.tied_along(x, set(over)):
        x = op.merged(x, over, "or")
    elif over:
        if len(x.varying) > 1 or not (name in _ADDS or _rescales(op, x)):
            return op.barrier([x], f"{'averages' if name in _AVERAGES else 'reduces'} over channels")
        x = uniform(op.total(x.slots()), x.shape)
    core = x.core
    for d in sorted(dims, reverse=True) if len(shape) < len(x.shape) else ():
        core = core.squeeze(d)
    out = Labels(core, shape)
    return results(op, op.map([out], "const") if name in _SHIFTS and out.varying else out)


def _rescales(op: Operator, x: Labels) -> bool:
    """Can surgery make up for fewer channels in a mean over all of them?

    It can where the mean only divides, after the module's ``eps`` was added, and the module has a weight to
    multiply by.
    """
    module = op.owner
    names = [n for n in ("weight", "gamma") if module is not None and n in parameters_of(module)]
    if (
        not names
        or not isinstance(getattr(module, "eps", None), float)
        or op.name != "mean"
        or not all(
            str(add.target) == "aten.add.Tensor"
            and add.args[1] == module.eps  # type: ignore[union-attr]
            and all(str(u.target) == "aten.div.Tensor" and u.args[1] is add for u in add.users)
            for add in op.node.users
        )
    ):
        return False
    op.draft.rescaled[op.module] = Rescaled(op.module, {names[0]: 1.0, "eps": 1.0}, x.slots())
    return True


@rule(*aten("max min"))
def extremum(op: Operator, x: Value, dim: Any = None, *args: Any) -> Any:
    """The largest or smallest of all elements, along one axis (with indices), or of two tensors."""
    return add(op, x, dim) if isinstance(dim, Value) else reduce(op, x, dim)


@rule(*aten("kthvalue"))
def kth_value(op: Operator, x: Value, k: int, dim: int = -1, *args: Any) -> Any:
    """One of the values along an axis, chosen by rank."""
    return reduce(op, x, dim)


@rule(*aten("quantile nanquantile"))
def quantile(op: Operator, x: Value, q: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """A value along an axis, chosen by rank. Several ranks lie along a new first axis."""
    x, shape = op.labelled(x), op.shape
    dims = axes_of(len(x.shape), dim)
    if any(d in x.varying for d in dims) or not op.is_constant(q):
        return op.barrier(values_in(x, q), "reduces over channels")
    several = isinstance(q, Value) and len(q.shape) > 0
    core = x.core if len(shape) == len(x.shape) + several else x.core.squeeze(dims if dim is not None else [])
    if len(core.shape) + several > len(shape):  # over everything
        core = core.reshape([1] * (len(shape) - several))
    return Labels(core.unsqueeze(0) if several else core, shape)


@rule(*aten("linalg_vector_norm norm linalg_norm frobenius_norm"))
def norm_of(op: Operator, x: Value, order: Any = 2, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """A norm is a sum of powers: zeros add nothing. For orders up to 0 and infinity, channels are pinned."""
    name = op.name
    if name == "frobenius_norm":
        order, dim = 2, order
    matrix = name == "linalg_norm" and order is not None and len(axes_of(len(x.shape), dim)) > 1
    order = 2 if order is None else order
    if matrix or not isinstance(order, (int, float)) or not 0 < order < math.inf:
        return op.barrier([x], "a norm of this order")
    return reduce(op, x, dim)


@rule(*aten("cosine_similarity"))
def cosine(op: Operator, a: Value, b: Value, dim: int = 1, *args: Any) -> Labels:
    """A sum of products over two norms: zeros add nothing to any of them. Over space it is zero where either side
    is."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    dim %= len(shape)
    either = op.map([a, b], "or", shape)
    if dim not in either.varying:
        both = op.map([a, b], "and", shape)
        return Labels(both.core.squeeze(dim), op.shape)
    if len(either.varying) > 1:
        return op.barrier([a, b], "reduces over channels")
    return uniform(op.total(either.slots()), op.shape)


@rule(*aten("dist"))
def distance(op: Operator, a: Value, b: Value, order: Any = 2) -> Labels:
    """The norm of a difference."""
    either = op.map([a, b], "or", torch.broadcast_shapes(a.shape, b.shape))
    if len(either.varying) > 1 or not 0 < order < math.inf:
        return op.barrier([a, b], "a norm of this order")
    return uniform(op.total(either.slots()), op.shape)


@rule(*aten("pairwise_distance"))
def pairwise_distance(op: Operator, a: Value, b: Value, *args: Any) -> Labels:
    """Every channel adds an ``eps``, even where both sides are zero. So their number shows, and they are pinned."""
    return op.barrier([a, b], "adds an eps for every channel")


@rule(*aten("var std var_mean std_mean"))
def variance(op: Operator, x: Value, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Over space every channel has its own. Over channels the mean depends on how many there are."""
    return reduce(op, x, dim)
