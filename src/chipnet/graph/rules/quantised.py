"""Fake quantisation: values are rounded to multiples of a scale. Zero stays zero."""

from __future__ import annotations

from typing import Any

from torch import nn

from chipnet.graph.facts import PinCode
from chipnet.graph.labels import Param, Value
from chipnet.graph.operator import Operator
from chipnet.graph.rules.table import aten, rule

FAKE_QUANTISED = frozenset(
    [
        "fake_quantize_per_tensor_affine",
        "fake_quantize_per_channel_affine",
        "_fake_quantize_learnable_per_tensor_affine",
        "_fake_quantize_learnable_per_channel_affine",
        "fused_moving_avg_obs_fake_quant",
    ]
)


@rule(*aten("fake_quantize_per_tensor_affine _fake_quantize_learnable_per_tensor_affine"))
def per_tensor(op: Operator, x: Value, *args: Any) -> Value:
    """One scale for all elements. A weight is still that weight."""
    return x


@rule(*aten("fake_quantize_per_channel_affine _fake_quantize_learnable_per_channel_affine"))
def per_channel(op: Operator, x: Value, scale: Value, zero: Value, axis: int, *args: Any) -> Any:
    """A scale for every channel along an axis. Scales are cut with the channels."""
    return _scaled(op, x, axis, [scale, zero])


@rule(*aten("fused_moving_avg_obs_fake_quant"))
def observed(
    op: Operator,
    x: Value,
    observes: Value,
    quantises: Value,
    lowest: Value,
    highest: Value,
    scale: Value,
    zero: Value,
    speed: float,
    quant_min: int,
    quant_max: int,
    axis: int,
    per_row: bool = False,
    symmetric: bool = False,
) -> Any:
    """Scales from the extrema that an observer has seen. While it observes, every call changes what the next one
    computes."""
    module = op.owner
    if not isinstance(module, nn.Module) or bool(getattr(module, "observer_enabled", True)):
        reason = "an observer that is still enabled changes with what it sees (apply disable_observer first)"
        return op.barrier([x, observes, quantises, lowest, highest, scale, zero], reason)
    return _scaled(op, x, axis, [scale, zero, lowest, highest]) if per_row else x


def _scaled(op: Operator, x: Value, axis: int, scales: list[Value]) -> Any:
    """``x``. The parameters or buffers ``scales`` belong to its channels along ``axis``."""
    names = [s.name for s in scales if isinstance(s, Param)]
    axis %= max(len(x.shape), 1)
    if len(names) < len(scales) or any(s.shape != (x.shape[axis],) for s in scales):
        return op.barrier([x, *scales], "scales that are computed", PinCode.COMPUTED)
    if isinstance(x, Param):  # a weight: they are cut where it is cut
        op.draft.along.setdefault((x.name, axis), []).extend(names)
        return x
    slots = op.channels(x, axis)
    if slots is None:
        return op.barrier([x, *scales], "scales that are not along channels")
    for name in names:
        op.draft.own(name, 0, slots)
    return x
