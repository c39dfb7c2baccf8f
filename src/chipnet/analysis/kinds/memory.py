"""Bytes of activations that are alive at once, at the most, in eager inference on the example inputs.

The convention: what counts is the memory that operators of the forward take for their results. It is taken when the
operator starts and given back after the last operator that reads it, or a view of it. Outputs are kept to the end.
Views and operators that work in place take none. Inputs, parameters and buffers are no activations, and what an
operator needs for itself while it runs is not counted.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from chipnet.analysis.kinds.base import Counts, Kind, Term
from chipnet.graph.facts import Activation

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*(?:(k|m|g|ki|mi|gi)b|(k|m|g|ki|mi|gi)?\s*bytes?)", re.IGNORECASE)


class Memory(Kind):
    name = "memory"
    about = "bytes of activations that are alive at once, at the most, for the example inputs"
    unit_hint = "a size needs its unit: write '64MB', '512KiB' or '2000 bytes'"
    unit = " bytes"

    def parts(self, counts: Counts) -> Iterable[Iterable[Term]]:
        size = {id(a): (a.bytes, (counts.count(a.slots),)) for a in counts.graph.activations}
        return [[size[id(a)] for a in together] for together in moments(counts.graph.activations)]

    def dense(self, counts: Counts) -> int:
        together = moments(counts.graph.activations)
        return max((sum(a.bytes * len(a.slots) for a in group) for group in together), default=0)

    def read(self, text: str) -> tuple[str, int] | None:
        match = _SIZE.fullmatch(text)
        return (match[1], _UNITS[(match[2] or match[3] or "").lower()]) if match else None

    def write(self, value: int) -> str:
        return f"{value} bytes"

    def show(self, value: float) -> str:
        return f"{value / 1e6:.4g} MB"


def moments(activations: Sequence[Activation]) -> Iterator[list[Activation]]:
    """What is alive together: only where no other moment has all of it and more."""
    births = sorted(activations, key=lambda a: a.first)
    alive: list[Activation] = []
    grown, taken = False, 0
    for now in sorted({a.last for a in activations}):
        while taken < len(births) and births[taken].first <= now:
            alive.append(births[taken])
            grown, taken = True, taken + 1
        if grown:
            yield list(alive)
        alive = [a for a in alive if a.last > now]
        grown = False


KIND = Memory()
