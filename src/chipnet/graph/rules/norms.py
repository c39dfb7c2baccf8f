"""Normalisations."""

from __future__ import annotations

from typing import Any

from torch import nn

from chipnet.graph.attributes import claim
from chipnet.graph.facts import LiveNorm, PinCode, Rescaled
from chipnet.graph.labels import Labels, Param, Value, along
from chipnet.graph.norm_modules import NormCall
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
    """As layer norm, without a mean and a bias."""
    return layer_norm(op, x, normalized, weight, centred=False)


@rule(*aten("layer_norm"))
def layer_norm(
    op: Operator,
    x: Value,
    normalized: list[int],
    weight: Any = None,
    bias: Any = None,
    *args: Any,
    centred: bool = True,
) -> Labels:
    """Statistics mix all channels: those that exist, if a module does nothing else; else what is read is pinned."""
    x = op.labelled(x)
    first = len(x.shape) - len(normalized)
    mixed = [a for a in x.varying if a >= first]
    if not mixed:
        return op.map([x], "const") if x.varying else op.barrier([x], "layer norm")
    if len(mixed) > 1 or (len(x.varying) > 1 and len(normalized) > 1):
        return op.barrier([x], "layer norm over several axes")
    over = tuple(range(-len(normalized), 0))
    return _in_each_head(op, x, mixed[0], over, weight, bias, centred=centred)


def norm_module(op: Operator, x: Value, call: NormCall) -> Labels:
    """A module that is a norm over channels, however its forward is written."""
    x = op.labelled(x)
    if call.axis not in x.varying:
        return op.map([x], "const") if x.varying else op.barrier([x], "a norm")
    if len(x.varying) > 1 and len(call.over) > 1:
        return op.barrier([x], "a norm over several axes")
    return _in_each_head(op, x, call.axis, call.over, call.weight, call.bias, centred=call.centred, call=call)


def _in_each_head(
    op: Operator,
    x: Labels,
    axis: int,
    over: tuple[int, ...],
    weight: Value | None,
    bias: Value | None,
    **how: Any,
) -> Labels:
    """A norm over features, which lie along ``axis``, in each of several heads. See `over_channels`.

    Where the same features remain in all heads, they are the channels of the norm: one slot stands for a feature in
    all heads. Where heads go whole, those that are left are normalised as they were.
    """
    heads = set(x.varying) - {axis}
    if heads and op.keeps_length(x, axis):
        return op.map([x], "const")
    if heads and not op.tied_along(x, heads):
        return op.barrier([x], "a norm over one of several axes")
    return over_channels(
        op, op.merged(x, sorted(heads), "or") if heads else x, axis, over, weight, bias, **how
    )


def over_channels(
    op: Operator,
    x: Labels,
    axis: int,
    over: tuple[int, ...],
    weight: Value | None,
    bias: Value | None,
    *,
    centred: bool,
    call: NormCall | None = None,
) -> Labels:
    """A norm whose statistics mix all channels.

    Args:
        op: the call.
        x: what it reads; its channels lie along ``axis``.
        axis: the axis of channels.
        over: the axes of the statistics, from the last.
        weight, bias: its affine parameters, over the last axes; or along channels only, of one axis.
        centred: it subtracts the mean.
        call: what is known of the module, where it is none of PyTorch's.
    """
    src, last = x.slots(), axis - len(x.shape)
    for inner in [op.at(node) for node in call.nodes] if call is not None else ():
        for number in inner.received.numbers(0) if inner.received is not None else ():
            if number == len(src):
                claim(inner, number, src, empty=isinstance(op.owner, STANDARD_NORM))
    given = [p for p in (weight, bias) if p is not None]
    of = max((len(p.shape) + last for p in given if len(p.shape) > 1), default=0)
    alone = call is not None or type(op.owner) in STANDARD_NORM
    live: LiveNorm | Rescaled | None = None
    mixes = None
    if alone and all(_is_own(op, p) for p in given) and (bias is None or weight is not None):
        scale, shift = (p.name.rpartition(".")[2] if isinstance(p, Param) else None for p in (weight, bias))
        eps = call.eps if call is not None else "eps"
        unit = call is not None and call.unit
        if not centred and scale and not unit and isinstance(getattr(op.owner, eps, None), float):
            live = Rescaled(op.module, {scale: 0.5, eps: 1.0}, src)
        else:
            added = call.added if call is not None else getattr(op.owner, "eps", None)
            live = LiveNorm(op.module, last, over, centred, None if unit else scale, shift, added)
    else:
        mixes = op.why("a norm over channels that is no module of its own", PinCode.READ_WHOLE)
    dst = norm(op, src, weight, bias, [], axis, groups=1, mixes=mixes, live=live, of=of)
    return along(dst, axis, op.shape)


def _is_own(op: Operator, p: Value) -> bool:
    """Is it a parameter of the module itself, as it is?"""
    if not isinstance(p, Param) or p.made is not None or p.frozen:
        return False
    return p.name.rpartition(".")[0] == op.module and p.name in op.forward.parameters


@rule(*aten("group_norm"))
def group_norm(
    op: Operator, x: Value, groups: int, weight: Any = None, bias: Any = None, *args: Any
) -> Labels:
    """Statistics mix the channels of a group. A group remains or goes as one; in a single one, channels do."""
    src = op.channels(x, 1)
    if src is None:
        return op.barrier([x], "channels lie along another axis")
    if groups == 1 and len(src) > 1:
        over = tuple(range(1 - len(op.shape), 0))
        return over_channels(op, along(src, 1, op.shape), 1, over, weight, bias, centred=True)
    mixes = None
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
