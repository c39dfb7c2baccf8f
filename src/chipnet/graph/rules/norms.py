"""Normalisations."""

from __future__ import annotations

from typing import Any

from torch import nn

from chipnet.graph.attributes import claim
from chipnet.graph.facts import PinCode
from chipnet.graph.labels import Labels, Value, along
from chipnet.graph.operator import Operator
from chipnet.graph.rules.table import aten, rule
from chipnet.graph.standard import STANDARD_NORM
from chipnet.graph.weights import norm


@rule(*aten("batch_norm"))
def batch_norm(
    op: Operator,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    *args: Any,
) -> Labels:
    """Every channel is normalised by itself."""
    src = op.channels(x, 1)
    if src is None:
        return op.barrier([x], "channels lie along another axis")
    dst = norm(op, src, weight, bias, [mean, var], 1)
    return along(dst, 1, op.shape)


@rule(*aten("instance_norm"))
def instance_norm(op: Operator, x: Value, weight: Any, bias: Any, mean: Any, var: Any, *args: Any) -> Labels:
    """Every channel is normalised by itself. Without parameters zeros stay zero."""
    if weight is bias is mean is None and not isinstance(op.owner, STANDARD_NORM):
        return op.labelled(x)
    return batch_norm(op, x, weight, bias, mean, var)


@rule(*aten("rms_norm"))
def rms_norm(op: Operator, x: Value, normalized: list[int], weight: Any = None, *args: Any) -> Labels:
    """As layer norm, without a bias."""
    return layer_norm(op, x, normalized, weight)


@rule(*aten("layer_norm"))
def layer_norm(
    op: Operator, x: Value, normalized: list[int], weight: Any = None, bias: Any = None, *args: Any
) -> Labels:
    """Statistics mix all channels: those that are read are pinned, those that are written may be gated."""
    x = op.labelled(x)
    first = len(x.shape) - len(normalized)
    mixed = [a for a in x.varying if a >= first]
    if not mixed:
        return op.map([x], "const") if x.varying else op.barrier([x], "layer norm")
    if len(mixed) > 1 or len(x.varying) > 1 or len(normalized) > 1:
        return op.barrier([x], "layer norm over several axes")
    src = op.channels(x, mixed[0])
    assert src is not None
    why = op.why("layer norm mixes channels", PinCode.READ_WHOLE)
    dst = norm(op, src, weight, bias, [], mixed[0], groups=1, mixes=why)
    return along(dst, mixed[0], op.shape)


@rule(*aten("group_norm"))
def group_norm(
    op: Operator, x: Value, groups: int, weight: Any = None, bias: Any = None, *args: Any
) -> Labels:
    """Statistics mix the channels of a group. A group remains or goes as one; a single group is pinned."""
    src = op.channels(x, 1)
    if src is None:
        return op.barrier([x], "channels lie along another axis")
    mixes = op.why("group norm mixes channels", PinCode.READ_WHOLE) if groups == 1 else None
    module = op.owner
    if not isinstance(module, nn.GroupNorm) and groups > 1:
        op.risk(src)
        named = claim(op, op.given("num_groups", 1), src.reshape(groups, -1)[:, 0])
        reason = op.forward.literal.get(op.key, "" if named else "group norm with a fixed number of groups")
        mixes = op.why(reason, PinCode.FIXED_WIDTH) if reason else None
    for group in src.reshape(groups, -1) if groups < len(src) else ():
        op.draft.tie_all(group)
    if 1 < groups < len(src):
        op.note_tie(src)
    dst = norm(op, src, weight, bias, [], 1, groups=groups if groups < len(src) else 0, mixes=mixes)
    return along(dst, 1, op.shape)
