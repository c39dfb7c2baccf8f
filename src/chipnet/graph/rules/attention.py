"""Attention: queries and keys are kept whole; values are mixed over tokens only."""

from __future__ import annotations

import math

from chipnet.graph.facts import PinCode
from chipnet.graph.labels import Labels, Value
from chipnet.graph.operator import Operator
from chipnet.graph.rules.table import aten, rule


@rule(*aten("scaled_dot_product_attention"))
def attention(
    op: Operator,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Labels:
    """``softmax(q k / sqrt(width)) v``.

    The width of queries and keys is a number in it, so both are pinned. Channels of values stay separate. Heads
    stay, as many as queries have.
    """
    v, last = op.labelled(v), len(v.shape) - 1
    heads = {a for a in v.varying if a != last}
    whole = [x for x in (q, k, mask) if x is not None]
    if enable_gqa or last - 1 in heads or last not in v.varying or (heads and not op.tied_along(v, heads)):
        return op.barrier([*whole, v], "attention")
    reason = "attention keeps one channel of values: without any it computes no scores"
    op.keep(v.slots()[:1], reason, PinCode.ONE_STAYS)
    op.count(v.slots(), math.prod(op.shape[:-1]) * k.shape[-2] * v.shape[-1] // len(v.slots()))
    return Labels(op.with_kept(v, whole, "queries and keys of attention").core, op.shape)
