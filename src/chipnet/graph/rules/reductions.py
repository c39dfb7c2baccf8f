"""Operators that reduce axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from chipnet.graph.rules.elementwise import add
from chipnet.graph.rules.table import operator_name, rule
from chipnet.graph.tracer import Labels, Tracer

_ADDS = frozenset(["sum", "nansum", "linalg_vector_norm", "norm", "count_nonzero", "any"])
"""What zeros add nothing to."""
_AVERAGES = frozenset(["mean", "nanmean", "var", "std", "var_mean", "std_mean"])
_SHIFTS = frozenset(["logsumexp"])
"""Not zero where all that is read is."""


def axes_of(x: Labels, dims: Any) -> list[int]:
    """Axes of a tensor, counted from the first; all where none are named."""
    named = [dims] if isinstance(dims, int) and not isinstance(dims, bool) else dims
    named = list(named) if isinstance(named, Sequence) and len(named) else range(len(x.shape))
    return [d % len(x.shape) for d in named]


def results(t: Tracer, x: Labels) -> Any:
    """The current operator's outputs: values labelled as ``x``, and the places of those where it gives them too."""
    name, outputs = operator_name(t.node), t.node.meta["val"]
    if not isinstance(outputs, (tuple, list)):
        return t.places(x) if name in ("argmax", "argmin", "argsort") else x
    return (x, x if name in ("aminmax", "var_mean", "std_mean") else t.places(x))


@rule(
    *("mean", "sum", "amax", "amin", "logsumexp", "prod", "nanmean", "nansum", "any", "all", "count_nonzero"),
    *("aminmax", "median", "nanmedian", "mode", "argmax", "argmin"),
)
def reduce(t: Tracer, x: Labels, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """A reduction over axes without channels keeps channels apart; a sum over channels reads all of them."""
    x = t.labelled(x)
    assert x.core is not None
    name, dims, shape = operator_name(t.node), axes_of(x, dim), t.shape
    over = [d for d in dims if d in x.varying]
    if len(x.varying) > len(over) > 0 and t.fixed(x, set(over)):
        x = t.across(x, over, "or")
    elif over:
        if len(x.varying) > 1 or not (name in _ADDS or t.rescales(x)):
            return t.barrier([x], f"{'averages' if name in _AVERAGES else 'reduces'} over channels")
        x = Labels(torch.from_numpy(t.total(x.slots())).reshape([1] * len(x.shape)), x.shape)
    core = x.core
    assert core is not None
    for d in sorted(dims, reverse=True) if len(shape) < len(x.shape) else ():
        core = core.squeeze(d)
    out = Labels(core, shape)
    return results(t, t.map([out], "const") if name in _SHIFTS and out.varying else out)


@rule("max", "min")
def extremum(t: Tracer, x: Labels, dim: Any = None, *args: Any) -> Any:
    """Of everything, over one axis (with places), or of two tensors."""
    return add(t, x, dim) if isinstance(dim, Labels) else reduce(t, x, dim)


@rule("kthvalue")
def kth_value(t: Tracer, x: Labels, k: int, dim: int = -1, *args: Any) -> Any:
    """One of the values along an axis, by rank."""
    return reduce(t, x, dim)


@rule("quantile", "nanquantile")
def quantile(t: Tracer, x: Labels, q: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """A value along an axis, by rank; several ranks lie along a new first axis."""
    x, shape = t.labelled(x), t.shape
    dims = axes_of(x, dim)
    if any(d in x.varying for d in dims) or not t.is_constant(q):
        return t.barrier([v for v in (x, q) if isinstance(v, Labels)], "reduces over channels")
    assert x.core is not None
    several = isinstance(q, Labels) and len(q.shape) > 0
    core = x.core if len(shape) == len(x.shape) + several else x.core.squeeze(dims if dim is not None else [])
    if len(core.shape) + several > len(shape):  # over everything
        core = core.reshape([1] * (len(shape) - several))
    return Labels(core.unsqueeze(0) if several else core, shape)


@rule("linalg_vector_norm", "norm", "linalg_norm", "frobenius_norm")
def norm_of(t: Tracer, x: Labels, order: Any = 2, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """A norm is a sum of powers: zeros add nothing to it (those of order 0 and below, and infinity, are kept)."""
    name = operator_name(t.node)
    if name == "frobenius_norm":
        order, dim = 2, order
    matrix = name == "linalg_norm" and order is not None and len(axes_of(x, dim)) > 1
    order = 2 if order is None else order
    if matrix or not isinstance(order, (int, float)) or not 0 < order < math.inf:
        return t.barrier([x], "a norm of this order")
    return reduce(t, x, dim)


@rule("cosine_similarity")
def cosine(t: Tracer, a: Labels, b: Labels, dim: int = 1, *args: Any) -> Labels:
    """A product, summed, over two norms: zeros add nothing to any. Over space it is zero where either side is."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    dim %= len(shape)
    either = t.map([a, b], "or", shape)
    if dim not in either.varying:
        both = t.map([a, b], "and", shape)
        assert both.core is not None
        return Labels(both.core.squeeze(dim), t.shape)
    if len(either.varying) > 1:
        return t.barrier([a, b], "reduces over channels")
    return t.uniform(int(t.total(either.slots())[0]), t.shape)


@rule("dist")
def distance(t: Tracer, a: Labels, b: Labels, order: Any = 2) -> Labels:
    """The norm of a difference."""
    either = t.map([a, b], "or", torch.broadcast_shapes(a.shape, b.shape))
    if len(either.varying) > 1 or not 0 < order < math.inf:
        return t.barrier([a, b], "a norm of this order")
    return t.uniform(int(t.total(either.slots())[0]), t.shape)


@rule("pairwise_distance")
def pairwise_distance(t: Tracer, a: Labels, b: Labels, *args: Any) -> Labels:
    """Every channel adds an ``eps``, also where both sides are zero: their number shows."""
    return t.barrier([a, b], "adds an eps for every channel")


@rule("var", "std", "var_mean", "std_mean")
def variance(t: Tracer, x: Labels, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Over space every channel by itself; over channels the mean knows how many there are."""
    return reduce(t, x, dim)
