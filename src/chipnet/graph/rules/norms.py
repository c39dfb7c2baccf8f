"""Normalisations."""

from __future__ import annotations

from typing import Any

from torch import nn

from chipnet.graph.rules.table import rule
from chipnet.graph.tracer import STANDARD_NORM, Labels, Tracer


@rule("batch_norm")
def batch_norm(
    t: Tracer,
    x: Labels,
    weight: Labels | None,
    bias: Labels | None,
    mean: Labels | None,
    var: Labels | None,
    *args: Any,
) -> Labels:
    """Every channel by itself."""
    src = t.channels(x, 1)
    if src is None:
        return t.barrier([x], "channels lie along another axis")
    dst = t.norm(src, weight, bias, [s for s in (mean, var) if s is not None], 1)
    return t.along(dst, 1, t.shape)


@rule("instance_norm")
def instance_norm(t: Tracer, x: Labels, weight: Any, bias: Any, mean: Any, var: Any, *args: Any) -> Labels:
    """Every channel by itself; with no parameters zeros stay zero."""
    if weight is bias is mean is None and not isinstance(t.modules.get(t.module), STANDARD_NORM):
        return t.labelled(x)
    return batch_norm(t, x, weight, bias, mean, var)


@rule("rms_norm")
def rms_norm(t: Tracer, x: Labels, normalized: list[int], weight: Any = None, *args: Any) -> Labels:
    """As layer norm, without a bias."""
    return layer_norm(t, x, normalized, weight)


@rule("layer_norm")
def layer_norm(
    t: Tracer, x: Labels, normalized: list[int], weight: Any = None, bias: Any = None, *args: Any
) -> Labels:
    """Statistics mix channels: what is read stays whole, what is written may be gated."""
    x = t.labelled(x)
    first = len(x.shape) - len(normalized)
    mixed = [a for a in x.varying if a >= first]
    if not mixed:
        return t.map([x], "const") if x.varying else t.barrier([x], "layer norm")
    if len(mixed) > 1 or len(x.varying) > 1 or len(normalized) > 1:
        return t.barrier([x], "layer norm over several axes")
    src = t.channels(x, mixed[0])
    assert src is not None
    dst = t.norm(src, weight, bias, [], mixed[0], groups=1, mixes="layer norm mixes channels")
    return t.along(dst, mixed[0], t.shape)


@rule("group_norm")
def group_norm(t: Tracer, x: Labels, groups: int, weight: Any = None, bias: Any = None, *args: Any) -> Labels:
    """Statistics mix the channels of a group: a group remains or goes as a whole; the only one remains."""
    src = t.channels(x, 1)
    if src is None:
        return t.barrier([x], "channels lie along another axis")
    mixes = "group norm mixes channels" if groups == 1 else None
    module = t.modules.get(t.module)
    if not isinstance(module, nn.GroupNorm) and groups > 1:
        t.risk(src)
        named = t.claim(t.given("num_groups", 1), src.reshape(groups, -1)[:, 0])
        why = "" if named else "group norm with a fixed number of groups"
        mixes = t.literal.get(t.key, why) or None
    for group in src.reshape(groups, -1) if groups < len(src) else ():
        t.graph.tie_all(group.tolist())
    if 1 < groups < len(src):
        t.meet(src)
    dst = t.norm(src, weight, bias, [], 1, groups=groups if groups < len(src) else 0, mixes=mixes)
    return t.along(dst, 1, t.shape)
