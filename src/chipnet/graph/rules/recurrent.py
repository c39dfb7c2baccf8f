"""Recurrent layers: they read features as a linear layer does; their hidden sizes stay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from chipnet.graph.channels import Mix
from chipnet.graph.rules.table import rule
from chipnet.graph.tracer import Labels, Tracer


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(t: Tracer, x: Labels, *args: Any) -> Any:
    """All layers and directions over a sequence, also a packed one; the weights of the first layer read ``x``."""
    packed = str(t.node.target).endswith(".data")
    sizes, args = (args[:1], args[1:]) if packed else ((), args)
    state, weights, _, layers, _, _, bidirectional = args[:7]
    per = len(weights) // (layers * (1 + bidirectional))
    return _reads(t, x, weights[: per * (1 + bidirectional) : per], weights, [*_tensors(state), *sizes])


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(t: Tracer, x: Labels, state: Any, weight: Labels, *others: Labels) -> Any:
    """One step."""
    return _reads(t, x, [weight], [weight, *others], _tensors(state))


def _tensors(state: Any) -> list[Labels]:
    return [state] if isinstance(state, Labels) else list(state)


def _reads(t: Tracer, x: Labels, first: list[Labels], weights: list[Labels], states: list[Labels]) -> Any:
    """What comes out is of a fixed size and needs all that is left of ``x``: weights ``first`` ``[rows, features]``
    lose columns with it."""
    src = t.channels(x, -1)
    weights = [w for w in weights if w is not None]
    if src is None or any(w.param is None for w in weights):
        return t.barrier([x, *weights, *states], "a recurrent layer")
    t.graph.pin(src[:1], t.why("a recurrent layer needs at least one channel"))
    for w in first:
        assert w.param is not None
        t.graph.own(w.param, 1, src)
    t.count(src, sum(w.shape[0] for w in first) * math.prod(x.shape[:-1]))
    held = t.hold([s for s in states if not t.is_constant(s)], "the state of a recurrent layer")
    dst = t.graph.new(1)
    t.graph.facts.append(Mix(dst, np.concatenate([src, held]), 1, True, None, t.module))
    t.graph.pin(dst, t.why("the hidden size of a recurrent layer"))
    outputs = t.node.meta["val"]
    if isinstance(outputs, Tensor):
        return t.uniform(int(dst[0]), tuple(outputs.shape))
    return tuple(t.uniform(int(dst[0]), tuple(v.shape)) for v in outputs)
