"""Fake quantisation: values are rounded to multiples of a scale, and zero stays zero."""

from __future__ import annotations

from typing import Any

from torch import nn

from chipnet.graph.rules.table import rule
from chipnet.graph.tracer import Labels, Tracer

FAKE_QUANTISED = frozenset(
    [
        "fake_quantize_per_tensor_affine",
        "fake_quantize_per_channel_affine",
        "_fake_quantize_learnable_per_tensor_affine",
        "_fake_quantize_learnable_per_channel_affine",
        "fused_moving_avg_obs_fake_quant",
    ]
)


@rule("fake_quantize_per_tensor_affine", "_fake_quantize_learnable_per_tensor_affine")
def per_tensor(t: Tracer, x: Labels, *args: Any) -> Labels:
    """One scale for all: a weight is as good as itself."""
    return x


@rule("fake_quantize_per_channel_affine", "_fake_quantize_learnable_per_channel_affine")
def per_channel(t: Tracer, x: Labels, scale: Labels, zero: Labels, axis: int, *args: Any) -> Labels:
    """A scale for every channel of an axis: cut with it."""
    return _scaled(t, x, axis, [scale, zero])


@rule("fused_moving_avg_obs_fake_quant")
def observed(
    t: Tracer,
    x: Labels,
    observes: Labels,
    quantises: Labels,
    lowest: Labels,
    highest: Labels,
    scale: Labels,
    zero: Labels,
    speed: float,
    least: int,
    most: int,
    axis: int,
    per_row: bool = False,
    symmetric: bool = False,
) -> Any:
    """By an observer's extrema. While it observes, every call changes what the next computes."""
    module = t.modules.get(t.module)
    if not isinstance(module, nn.Module) or bool(getattr(module, "observer_enabled", True)):
        reason = "an observer that is still enabled changes with what it sees (apply disable_observer first)"
        return t.barrier([x, observes, quantises, lowest, highest, scale, zero], reason)
    return _scaled(t, x, axis, [scale, zero, lowest, highest]) if per_row else x


def _scaled(t: Tracer, x: Labels, axis: int, scales: list[Labels]) -> Labels:
    """``x``, with parameters or buffers that belong to the channels along ``axis``."""
    names = [s.param for s in scales if s.param is not None]
    axis %= max(len(x.shape), 1)
    if len(names) < len(scales) or any(s.shape != (x.shape[axis],) for s in scales):
        return t.barrier([x, *scales], "scales that are computed")
    if x.core is None and x.param is not None:  # a weight: they are cut where it is cut
        t.graph.along.setdefault((x.param, axis), []).extend(names)
        return x
    slots = t.channels(x, axis)
    if slots is None:
        return t.barrier([x, *scales], "scales that are not along channels")
    for name in names:
        t.graph.own(name, 0, slots)
    return x
