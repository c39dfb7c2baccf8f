"""What is known of the values of channels: which are functions of one channel, and which are never zero?"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from chipnet.graph.labels import Labels, Value


class Values:
    """The slot that each slot is an elementwise function of, and whether it is zero where that is."""

    def __init__(self) -> None:
        self._origin: dict[int, int] = {}
        self._shifted: set[int] = set()
        """Slots that are functions of their origin, and not zero where it is."""
        self._never: set[int] = set()
        """Slots that are not zero whatever the masks."""

    def origin(self, slot: int) -> int:
        """The slot that ``slot`` is an elementwise function of."""
        return self._origin.get(slot, slot)

    def mapped(self, rows: Iterable[tuple[int, ...]], kind: str) -> None:
        """Remember slots that are computed element by element. Each of ``rows`` is a slot and its sources."""
        for slot, *sources in rows:
            origins = {self.origin(s) for s in sources}
            if len(origins) == 1:
                self._origin[slot] = origins.pop()
                several = all if kind == "and" else any
                if kind in ("const", "place") or several(s in self._shifted for s in sources):
                    self._shifted.add(slot)
            if kind == "const" or (kind == "and" and self._never.issuperset(sources)):
                self._never.add(slot)

    def never_zero(self, x: Labels) -> bool:
        """Is ``x`` non-zero whatever the masks, such as ``x.abs() + eps``?"""
        return self._never.issuperset(x.core.reshape(-1).tolist())

    def keeps_zeros(self, x: Labels) -> bool:
        """Is ``x`` zero wherever the channel is that it is a function of?"""
        return self._shifted.isdisjoint(x.core.reshape(-1).tolist())

    def is_function(self, x: Value, of: Value) -> bool:
        """Is every element of ``x`` a function of the same element of ``of`` and of nothing else?"""
        if not isinstance(x, Labels) or not isinstance(of, Labels) or len(x.shape) != len(of.shape):
            return False
        if any(x.shape[a] != of.shape[a] for a in {*x.varying, *of.varying}):
            return False
        a, b = torch.broadcast_tensors(x.core, of.core)
        pairs = zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True)
        return all(self.origin(i) == self.origin(j) for i, j in pairs)
