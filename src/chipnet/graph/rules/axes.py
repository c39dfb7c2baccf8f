"""Operators that mix what lies along an axis and keep the axis."""

from __future__ import annotations

from typing import Any

from chipnet.graph.labels import Labels, Value, axes_of, values_in
from chipnet.graph.operator import Operator
from chipnet.graph.rules.reductions import results
from chipnet.graph.rules.table import aten, rule

_SHIFTS = "softmax _softmax log_softmax _log_softmax logcumsumexp"
"""Not zero where all that is read is."""


@rule(*aten(_SHIFTS), *aten("cumsum cumprod cummax cummin"))
def cumulative(op: Operator, x: Value, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """Along space every channel is computed by itself; along channels all are pinned."""
    x = op.labelled(x)
    kind: Any = "const" if op.name in _SHIFTS.split() else "or"
    if (dim := dim % len(x.shape)) in x.varying:
        if not op.keeps_length(x, dim):
            return op.barrier([x], f"'{op.name}' mixes channels")
        x = op.merged(x, [dim], kind)
    elif kind == "const":
        x = op.map([x], "const")
    return results(op, Labels(x.core, op.shape))


@rule(*aten("sort argsort msort"))
def sort(op: Operator, x: Value, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """Along space every channel is sorted by itself."""
    return cumulative(op, x, 0 if op.name == "msort" else dim)


@rule(*aten("topk"))
def topk(op: Operator, x: Value, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """Along space every channel has its own largest values."""
    return cumulative(op, x, dim)


@rule(*aten("diff"))
def diff(op: Operator, x: Value, n: int = 1, dim: int = -1, before: Any = None, after: Any = None) -> Any:
    """Differences of neighbours along space."""
    if before is not None or after is not None:
        return op.barrier(values_in(x, before, after), "differences with given ends")
    return cumulative(op, x, dim)


@rule(
    *aten("fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft"),
    *aten("fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2"),
    *aten("fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn"),
)
def fourier(op: Operator, x: Value, n: Any = None, dim: Any = None, *args: Any, **kwargs: Any) -> Labels:
    """A Fourier transform along space is linear, and takes every channel by itself."""
    x = op.labelled(x)
    if dim is None:
        last = {"t": 1, "2": 2, "n": len(n) if isinstance(n, (list, tuple)) else len(x.shape)}[op.name[-1]]
        dim = range(-last, 0)
    if any(d in x.varying for d in axes_of(len(x.shape), dim)):
        return op.barrier([x], "a Fourier transform over channels")
    return Labels(x.core, op.shape)
