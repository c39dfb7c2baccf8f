"""Attention: a sum over features of queries and keys; values are mixed over tokens only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chipnet.graph.facts import PinCode, Slots
from chipnet.graph.heads import note_grids
from chipnet.graph.labels import Labels, Value, uniform
from chipnet.graph.operator import Operator
from chipnet.graph.queries import can_scale
from chipnet.graph.rules.contractions import totals
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

    A sum over the features of queries and keys, in which zeros do not show, and a mean over tokens of values. Heads
    stay, as many as queries have; the same features stay in each. ``enable_gqa``: each head of keys and values is
    that of several heads of queries, which lie next to each other.
    """
    if enable_gqa:
        k, v = (_repeated(op.labelled(x), q.shape[-3]) for x in (k, v))
    for x in (q, k, v) if op.forward.narrow and len(op.shape) > 3 else ():
        op.note_heads(op.labelled(x), q.shape[-3])
    v, last = op.labelled(v), len(v.shape) - 1
    heads = {a for a in v.varying if a != last}
    if len(heads) == 1 and last - 1 not in heads and last in v.varying:
        q, k, (axis,) = op.labelled(q), op.labelled(k), heads
        for x in (q, k, v):
            op.note_heads(x, v.core.shape[axis])
        note_grids(op, [q, k], axis, values=False)
        note_grids(op, [v], axis, values=True)
        if all(_has_whole_heads(op, x, axis) for x in (q, k, v)):
            return _of_whole_heads(op, q, k, v, mask)
        if all(_has_both(op, x, axis) for x in (q, k, v)):
            return _of_heads_and_features(op, q, k, v, mask, scale)
    kept = [x for x in (q, k, mask) if x is not None]
    if last - 1 in heads or last not in v.varying or (heads and not op.tied_along(v, heads)):
        return op.barrier([*kept, v], "attention")
    reason = "attention has at least one channel of values, be it zero"
    op.keep(v.slots()[:1], reason, PinCode.NEVER_EMPTY)
    pairs = math.prod(op.shape[:-1]) * k.shape[-2]
    more = []
    if (scores := _scores(op, q, k, scale)) is not None:
        product, total = scores
        more.append((product, pairs * q.shape[-1] // len(product)))
        kept = [total, *([mask] if mask is not None else [])]
    op.count(v.slots(), pairs * v.shape[-1] // len(v.slots()), *more)
    why = "queries and keys of attention" if scores is None else "scores of attention"
    return Labels(op.with_kept(v, kept, why).core, op.shape)


def _repeated(x: Labels, heads: int) -> Labels:
    """Labels of keys or values with a head for each of the queries'."""
    axis = len(x.shape) - 3
    core = x.core.repeat_interleave(heads // x.shape[axis], axis) if axis in x.varying else x.core
    return Labels(core, (*x.shape[:axis], heads, *x.shape[axis + 1 :]))


def _has_whole_heads(op: Operator, x: Labels, axis: int) -> bool:
    """Do heads go, along ``axis``, and features not?"""
    last = len(x.shape) - 1
    return set(x.varying) == {axis, last} and op.tied_along(x, {last}) and not op.tied_along(x, {axis})


def _has_both(op: Operator, x: Labels, axis: int) -> bool:
    """Do heads go, along ``axis``, and features do?"""
    last = len(x.shape) - 1
    return set(x.varying) == {axis, last} and not op.tied_along(x, {axis}) and not op.tied_along(x, {last})


def _of_whole_heads(op: Operator, q: Labels, k: Labels, v: Labels, mask: Value | None) -> Labels:
    """Attention whose heads go whole. Their width stays, and so does the scale. Weights of a head are not zero
    where its queries are, so a head goes where its values do."""
    last = len(v.shape) - 1
    op.keep(v.slots()[:1], "attention has at least one head, be it zero", PinCode.NEVER_EMPTY)
    product = op.map([_first(q), _first(k)], "and", (*q.shape[:-2], 1, q.shape[-1]))
    total = op.merged(product, [last], "or")
    scores = Labels(total.core, (*op.shape[:-1], k.shape[-2]))
    if mask is not None:  # it may have one for each head
        scores = op.map([scores, mask], "or", scores.shape)
    weights = op.map([scores], "const", scores.shape)
    pairs = math.prod(op.shape[:-1]) * k.shape[-2]
    more = (product.slots(), pairs * q.shape[-1] // len(product.slots()))
    op.count(v.slots(), pairs * v.shape[-1] // len(v.slots()), more)
    each = Labels(weights.core, (*op.shape[:-1], 1))
    return op.map([Labels(v.core, op.shape), each], "and", op.shape)


def _of_heads_and_features(
    op: Operator, q: Labels, k: Labels, v: Labels, mask: Value | None, scale: float | None
) -> Labels:
    """Attention whose heads go and whose features do."""
    last = len(v.shape) - 1
    (axis,) = (a for a in v.varying if a != last)
    if scale is None and (np.isin(q.slots(), k.slots()).any() or not _can_scale(op, q, op.lengths(q, last))):
        return op.barrier([x for x in (q, k, v, mask) if x is not None], "attention")
    op.keep(v.slots()[:1], "attention has at least one head and one feature, be it zero", PinCode.NEVER_EMPTY)
    product = op.map([_first(q), _first(k)], "and", (*q.shape[:-2], 1, q.shape[-1]))
    if scale is None:
        op.draft.divisions.scores.add(len(op.draft.facts) - 1)
    op.keep(
        product.slots()[:1], "attention has at least one feature of queries and keys", PinCode.NEVER_EMPTY
    )
    total = totals(op, product, [last], [axis])
    scores = Labels(total.core, (*op.shape[:-1], k.shape[-2]))
    if mask is not None:
        scores = op.map([scores, mask], "or", scores.shape)
    weights = op.map([scores], "const", scores.shape)
    pairs = math.prod(op.shape[:-1]) * k.shape[-2]
    more = (product.slots(), pairs * q.shape[-1] // len(product.slots()))
    op.count(v.slots(), pairs * v.shape[-1] // len(v.slots()), more)
    return op.map([Labels(v.core, op.shape), Labels(weights.core, (*op.shape[:-1], 1))], "and", op.shape)


def _scores(op: Operator, q: Value, k: Value, scale: float | None) -> tuple[Slots, Labels] | None:
    """The products of queries and keys, and labels of their sum; None where their features must stay."""
    q, k = op.labelled(q), op.labelled(k)
    last = len(q.shape) - 1
    for x in (q, k):
        heads = set(x.varying) - {last}
        if last not in x.varying or last - 1 in heads or not op.tied_along(x, heads):
            return None
    if scale is None and (np.isin(q.slots(), k.slots()).any() or not _can_scale(op, q, q.along(last))):
        return None
    product = op.map([_first(q), _first(k)], "and", (*q.shape[:-2], 1, q.shape[-1]))
    if scale is None:
        op.draft.divisions.scores.add(len(op.draft.facts) - 1)
    why = "attention has at least one feature of queries and keys, be it zero"
    op.keep(product.slots()[:1], why, PinCode.NEVER_EMPTY)
    return product.slots(), uniform(op.total(product.slots()), op.shape)


def _can_scale(op: Operator, q: Labels, features: Slots) -> bool:
    """Can surgery scale the queries, where attention divides by the root of the number of ``features``?"""
    node: Any = op.node.args[0] if op.node.args else op.node.kwargs["query"]
    return can_scale(op, node, q.slots(), features)


def _first(x: Labels) -> Labels:
    """Labels for one token: they are those of all."""
    return Labels(x.core, (*x.shape[:-2], 1, x.shape[-1]))
