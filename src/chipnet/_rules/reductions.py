"""Operators that reduce axes, or mix what lies along one."""

from __future__ import annotations

import math
from typing import Any

import torch

from chipnet._rules.table import operator_name, rule
from chipnet._trace import Labels, Tracer


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
