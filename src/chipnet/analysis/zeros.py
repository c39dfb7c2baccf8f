"""What is zero where gates are shut, and what goes with it in a product?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chipnet.graph.channels import ChannelGraph
from chipnet.graph.facts import Barrier, Host, Map, Norm

Bools = NDArray[np.bool_]


def zero_when_shut(graph: ChannelGraph, held: Bools, refused: Callable[[Host], str]) -> Bools:
    """Per slot: is it zero where all gates that layers could hold are shut?

    Args:
        graph: the slots and facts.
        held: per slot: can it hold no gate, since it is kept whole?
        refused: why a layer must get no gates, or nothing.
    """
    zero = np.zeros(graph.slots, dtype=bool)
    for fact in graph.facts:
        if isinstance(fact, Map):
            srcs = [zero[s] for s in fact.srcs]
            if fact.kind in ("or", "and"):
                zero[fact.dst] = (np.all if fact.kind == "or" else np.any)(srcs, axis=0)
        elif isinstance(fact, Norm) and fact.statistics == "live":
            zero[fact.dst] = zero[fact.src]
        elif not isinstance(fact, Barrier):
            zero[fact.dst] = ~held[fact.dst] & (fact.host is not None and not refused(fact.host))
    return zero


def with_factors(fact: Map, k: int, data: Bools, held: Bools, shut: Bools, root: Any) -> tuple[Any, Any]:
    """Which slots of the ``k``-th factor of a product go with what they are multiplied by?

    Args:
        fact: the product.
        k: which factor.
        data: per slot: is it a parameter used as data?
        held: as for `zero_when_shut`.
        shut: what that gives.
        root: per slot: its class.

    Returns:
        Scales, which go with what they scale; and slots that are not zero where their gates are shut, but are
        multiplied by some of their class that are.
    """
    src, others = fact.srcs[k], [o for j, o in enumerate(fact.srcs) if j != k]
    scales = data[src] & np.any([~data[o] & ~held[o] for o in others], axis=0)
    return scales, ~shut[src] & np.any([shut[o] & (root[o] == root[src]) for o in others], axis=0)
