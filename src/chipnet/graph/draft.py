"""What has one walk found so far: the graph, and what its rules must know of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chipnet.graph.channels import Barrier, ChannelGraph, Mix, Norm, Pin, Slots, Source
from chipnet.graph.labels import Labels
from chipnet.graph.numbers import Claim
from chipnet.graph.values import Values


@dataclass(frozen=True)
class Mark:
    """Where a draft stood before a rule was called: how many slots, facts, layers, products and index maps it had,
    what it had counted, and which modules and nodes stood in its tables."""

    slots: int
    facts: int
    layers: int
    products: int
    resizes: int
    macs: int
    tables: tuple[frozenset[str], ...]


class Draft:
    """A channel graph in the making."""

    def __init__(self) -> None:
        self.graph = graph = ChannelGraph()
        self.values = Values()
        self.claims: list[Claim] = []
        """What operators received as numbers of slots."""
        self.alike: list[tuple[Slots, Slots, Pin]] = []
        """Slots of which there are equally many, as an operator received the size of one tensor for another."""
        self.foreign: set[str] = set()
        """Parameters that a module reads which does not own them: no gate can be folded into these."""
        self.results: dict[tuple[bool, int], Any] = {}
        """By the graph (is it the one whose operators count?) and the number of a call of a function: what stands
        for its result."""
        self._data: dict[tuple[str, int], Slots] = {}
        self.constant, self.zero = int(graph.new(1)[0]), int(graph.new(1)[0])
        """Slots of what is the same in every call."""
        for slot, live in ((self.constant, True), (self.zero, False)):
            slots = np.array([slot], dtype=np.int64)
            graph.facts.append(Source(slots, live=live, flow=False))
            graph.pin(slots, Pin("a constant", "", "", ""))

    # -- parameters that are used as data -----------------------------------------------------------------
    @property
    def data(self) -> set[str]:
        """Parameters that are used as data."""
        return {name for name, _ in self._data}

    def data_slots(self, name: str, axis: int, size: int) -> Slots:
        """Slots of a parameter that is used as data, along ``axis``."""
        if (name, axis) not in self._data:
            slots = self.graph.new(size)
            self.graph.facts.append(Source(slots, live=True, flow=False))
            self.graph.own(name, axis, slots)
            self._data[name, axis] = slots
        return self._data[name, axis]

    def is_data(self, x: Labels) -> bool:
        """Is ``x`` made of parameters or buffers that are used as data, and of nothing else?"""
        sources = {slot for slots in self._data.values() for slot in slots.tolist()}
        return all(self.values.origin(s) in sources for s in x.slots().tolist())

    # -- rules that fail ------------------------------------------------------------------------------------
    @property
    def _tables(self) -> tuple[dict[str, Any], ...]:
        """What surgery does to modules and numbers beside cutting tensors."""
        return self.graph.pools, self.graph.rescaled, self.graph.risky

    def mark(self) -> Mark:
        """Where the draft stands now: what `undo` goes back to."""
        g = self.graph
        tables = tuple(frozenset(table) for table in self._tables)
        lists = len(g.facts), len(g.layers), len(g.products), len(g.resizes)
        return Mark(g.slots, *lists, g.fixed_macs, tables)

    def undo(self, mark: Mark, why: Pin) -> None:
        """A rule failed halfway: what it has made since ``mark`` is kept whole, and is no layer or module that
        surgery could replace. (Ties and pins stay: they only keep more.)"""
        g = self.graph
        g.pin(np.arange(mark.slots, g.slots, dtype=np.int64), why)
        for i, fact in enumerate(g.facts[mark.facts :], mark.facts):
            if isinstance(fact, (Mix, Norm)):
                g.facts[i] = Barrier(fact.dst, fact.src)
        del g.layers[mark.layers :]
        del g.products[mark.products :]
        del g.resizes[mark.resizes :]
        g.fixed_macs = mark.macs
        for name in [n for n, facts in g.owners.items() if facts[-1] >= mark.facts]:
            del g.owners[name]
        for table, before in zip(self._tables, mark.tables, strict=True):
            for name in table.keys() - before:
                del table[name]
