"""Operators that mix what lies along an axis, and keep that."""

from __future__ import annotations

from typing import Any

from chipnet.graph.rules.reductions import axes_of, results
from chipnet.graph.rules.table import operator_name, rule
from chipnet.graph.tracer import Labels, Tracer

_SHIFTS = frozenset(["softmax", "_softmax", "log_softmax", "_log_softmax", "logcumsumexp"])
"""Not zero where all that is read is."""


@rule(*_SHIFTS, "cumsum", "cumprod", "cummax", "cummin")
def along(t: Tracer, x: Labels, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """Along space every channel by itself."""
    x, name = t.labelled(x), operator_name(t.node)
    kind: Any = "const" if name in _SHIFTS else "or"
    if (dim := dim % len(x.shape)) in x.varying:
        if not t.stays_as_long(x, dim):
            return t.barrier([x], f"'{name}' mixes channels")
        x = t.across(x, [dim], kind)
    elif kind == "const":
        x = t.map([x], "const")
    return results(t, Labels(x.core, t.shape))


@rule("sort", "argsort", "msort")
def sort(t: Tracer, x: Labels, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """Along space every channel by itself."""
    return along(t, x, 0 if operator_name(t.node) == "msort" else dim)


@rule("topk")
def topk(t: Tracer, x: Labels, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """Along space every channel by itself."""
    return along(t, x, dim)


@rule("diff")
def diff(t: Tracer, x: Labels, n: int = 1, dim: int = -1, before: Any = None, after: Any = None) -> Any:
    """Neighbours along space, subtracted."""
    if before is not None or after is not None:
        return t.barrier(
            [v for v in (x, before, after) if isinstance(v, Labels)], "differences with given ends"
        )
    return along(t, x, dim)


@rule(
    *(
        f"fft_{kind}{axes}"
        for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
        for axes in ("", "2", "n")
    )
)
def fourier(t: Tracer, x: Labels, n: Any = None, dim: Any = None, *args: Any, **kwargs: Any) -> Labels:
    """Linear along space, and every channel by itself."""
    x, name = t.labelled(x), operator_name(t.node)
    if dim is None:
        last = {"t": 1, "2": 2, "n": len(n) if isinstance(n, (list, tuple)) else len(x.shape)}[name[-1]]
        dim = range(-last, 0)
    if any(d in x.varying for d in axes_of(x, dim)):
        return t.barrier([x], "a Fourier transform over channels")
    return Labels(x.core, t.shape)
