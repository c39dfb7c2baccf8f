"""Recurrent layers. They read features as a linear layer does; their hidden sizes stay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from chipnet.graph.facts import Mix, PinCode
from chipnet.graph.labels import Param, Value, uniform
from chipnet.graph.operator import Operator
from chipnet.graph.rules.table import aten, rule


@rule(*aten("lstm gru rnn_tanh rnn_relu"))
def recurrent(op: Operator, x: Value, *args: Any) -> Any:
    """All layers and directions over a sequence, packed or not. The weights of the first layer read ``x``."""
    packed = getattr(op.node.target, "_overloadname", "") == "data"
    sizes, args = (args[:1], args[1:]) if packed else ((), args)
    state, weights, _, layers, _, _, bidirectional = args[:7]
    per = len(weights) // (layers * (1 + bidirectional))
    return _reads(op, x, weights[: per * (1 + bidirectional) : per], weights, [*_tensors(state), *sizes])


@rule(*aten("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"))
def cell(op: Operator, x: Value, state: Any, weight: Param, *others: Param) -> Any:
    """One step of a recurrent layer."""
    return _reads(op, x, [weight], [weight, *others], _tensors(state))


def _tensors(state: Any) -> list[Value]:
    return [state] if isinstance(state, Value) else list(state)


def _reads(op: Operator, x: Value, first: list[Param], weights: list[Param], states: list[Value]) -> Any:
    """Labels of the outputs. They do not shrink, and need all that is left of ``x``.

    The weights ``first`` (``[rows, features]``) lose columns with the channels of ``x``.
    """
    src = op.channels(x, -1)
    weights = [w for w in weights if w is not None]
    if src is None or not all(isinstance(w, Param) for w in weights):
        return op.barrier([x, *weights, *states], "a recurrent layer")
    op.keep(src[:1], "a recurrent layer needs at least one channel", PinCode.ONE_STAYS)
    for w in first:
        op.draft.own(w.name, 1, src)
    op.count(src, sum(w.shape[0] for w in first) * math.prod(x.shape[:-1]))
    held = op.read_all([s for s in states if not op.is_constant(s)], "the state of a recurrent layer")
    dst = op.draft.new(1)
    op.emit(Mix(dst, np.append(src, held), 1, True, None, op.module))
    op.keep(dst, "the hidden size of a recurrent layer", PinCode.WHOLE_TENSOR)
    outputs = op.outputs
    if isinstance(outputs, Tensor):
        return uniform(int(dst[0]), tuple(outputs.shape))
    return tuple(uniform(int(dst[0]), tuple(v.shape)) for v in outputs)
