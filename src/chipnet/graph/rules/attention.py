"""Attention: queries and keys are kept whole, values are mixed over tokens only."""

from __future__ import annotations

import math

from chipnet.graph.rules.table import rule
from chipnet.graph.tracer import Labels, Tracer


@rule("scaled_dot_product_attention")
def attention(
    t: Tracer,
    q: Labels,
    k: Labels,
    v: Labels,
    mask: Labels | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Labels:
    """``softmax(q k / sqrt(width)) v``: the width of queries is a number in it. The channels of values stay apart;
    heads stay whole, as many as queries have."""
    v, last = t.labelled(v), len(v.shape) - 1
    heads = {a for a in v.varying if a != last}
    whole = [x for x in (q, k, mask) if x is not None]
    if enable_gqa or last - 1 in heads or last not in v.varying or (heads and not t.fixed(v, heads)):
        return t.barrier([*whole, v], "attention")
    t.graph.pin(
        v.slots()[:1], t.why("attention keeps one channel of values: without any it computes no scores")
    )
    t.count(v.slots(), math.prod(t.shape[:-1]) * k.shape[-2] * v.shape[-1] // len(v.slots()))
    return Labels(t.beside(v, whole, "queries and keys of attention").core, t.shape)
