"""What has one walk found so far?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chipnet.graph.channels import ChannelGraph
from chipnet.graph.classes import Classes
from chipnet.graph.facts import (
    Activation,
    Barrier,
    Fact,
    Frozen,
    Host,
    Layer,
    LiveNorm,
    Mix,
    Norm,
    Number,
    Pin,
    PinCode,
    Place,
    Product,
    Queries,
    Rescaled,
    Resize,
    Risk,
    Slots,
    Source,
    Tie,
)
from chipnet.graph.labels import Labels
from chipnet.graph.numbers import Claim
from chipnet.graph.values import Values
from chipnet.program.watch import Expression, Given


@dataclass(frozen=True)
class Mark:
    """The state of a draft before a rule was called: how many slots, facts, layers, products and index maps it had,
    the cost so far, and the keys of its tables."""

    slots: int
    facts: int
    layers: int
    products: int
    resizes: int
    macs: int
    tables: tuple[frozenset[str], ...]


@dataclass
class Divisions:
    """What the walk has seen of queries, which attention divides by the root of their width.

    Attributes:
        contracted: sums over channels of a product: the slots of both sides, and the number of the product's fact.
        scores: numbers of facts that multiply queries by keys.
        linear: operators between a layer that writes queries and these facts.
        behind: operators behind a division of queries by the root of their width.
        roots: numbers from attributes whose root divides queries, for which surgery makes up.
    """

    contracted: dict[str, tuple[tuple[Slots, Slots], int]] = field(default_factory=dict)
    scores: set[int] = field(default_factory=set)
    linear: set[str] = field(default_factory=set)
    behind: set[str] = field(default_factory=set)
    roots: set[Expression] = field(default_factory=set)


class Draft(Classes):
    """A channel graph in the making. An attribute that `ChannelGraph` has too becomes that one."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: list[Fact] = []
        self.places: list[Place] = []
        self.layers: list[Layer] = []
        self.products: list[Product] = []
        self.resizes: list[Resize] = []
        self.activations: Sequence[Activation] = ()
        self.axes: dict[str, dict[int, Slots]] = {}
        self.owners: dict[str, list[int]] = {}
        self.pools: dict[str, Slots] = {}
        self.fixed_macs = 0
        self.risky: dict[str, Risk] = {}
        self.numbers: dict[tuple[str, str, int | None], Number] = {}
        self.frozen: dict[str, Frozen] = {}
        self.rescaled: dict[str, Rescaled] = {}
        self.live: dict[str, tuple[LiveNorm, Slots]] = {}
        self.queries: dict[str, Queries] = {}
        self.outputs: dict[str, tuple[str, Slots]] = {}
        self.ties: list[tuple[int, Tie]] = []

        self.values = Values()
        self.claims: list[Claim] = []
        """What operators received as numbers of slots."""
        self.known: set[tuple[Given, Expression]] = set()
        """Calls, and numbers that they received, whose meaning a rule knows."""
        self.alike: list[tuple[Slots, Slots, Tie]] = []
        """Slots of which there are equally many, as an operator received the size of one tensor for another."""
        self.pieces: list[tuple[str, Slots]] = []
        """Modules whose forward splits a tensor along channels, and each of the pieces."""
        self.along: dict[tuple[str, int], list[str]] = {}
        """Parameter and axis -> vectors with an element for each index along it."""
        self.foreign: set[str] = set()
        """Parameters that a module reads which does not hold them: no gate can be folded into these."""
        self.foreign_reads: set[str] = set()
        """Parameters that a module reads of another, be that inside it or not."""
        self.results: dict[tuple[bool, int], Any] = {}
        """What stands for the result of a call of a function, by the graph (is it the one whose operators count?)
        and the number of the call."""
        self.boxes: dict[str, Labels] = {}
        """Operators that made labels vary along several axes, with these."""
        self.heads: dict[str, int] = {}
        """The operators of `boxes` that made heads of attention, with the axis of heads."""
        self.grids: dict[str, list[Any]] = {}
        """Weights whose rows write heads and features, with these."""
        self.groups: dict[int, int | None] = {}
        """Slot -> a slot with the gate of whose class it goes; None: it has no gate of this site."""
        self.extents: dict[int, Slots] = {}
        """Slots that are there where any of these is."""
        self._extents: dict[tuple[int, ...], int] = {}
        self.features: dict[int, Slots] = {}
        """The slots of `extents` that count features, with the slots of one feature in all heads."""
        self.divisions = Divisions()
        self._data: dict[tuple[str, int], Slots] = {}
        self._sources: dict[tuple[str, int], int] = {}  # of each of these, the number of its fact
        self.constant, self.zero = self.new(2).tolist()  # slots of what is the same in every call
        for slot, live in ((self.constant, True), (self.zero, False)):
            slots = np.array([slot], dtype=np.int64)
            self.emit(Source(slots, live=live, flow=False), Place())
            self.pin(slots, Pin(PinCode.CONSTANT, "a constant"))

    def emit(self, fact: Fact, at: Place) -> None:
        """Add a fact, with its place."""
        self.facts.append(fact)
        self.places.append(at)

    def group(self, slots: Slots, leader: int | None) -> None:
        """Slots share the gate of ``leader`` though they are not tied to it; with None they have none."""
        self.groups.update(dict.fromkeys(slots.tolist(), leader))

    def extent(self, members: Slots) -> int:
        """A slot that is there where any of ``members`` is: what a size counts of an axis along which several
        channels lie."""
        key = tuple(members.tolist())
        if key not in self._extents:
            self._extents[key] = int(self.new(1)[0])
            self.extents[self._extents[key]] = members.copy()
        return self._extents[key]

    # -- parameters ---------------------------------------------------------------------------------------
    def own(self, name: str, axis: int, slots: Slots) -> None:
        """Index ``i`` along the parameter's axis belongs to ``slots[i]``. A second use ties the slots of both."""
        mine = self.axes.setdefault(name, {})
        if axis in mine:
            self.tie(mine[axis], slots)
        else:
            mine[axis] = slots
        for vector in self.along.get((name, axis), ()):
            self.own(vector, 0, slots)

    @property
    def data(self) -> set[str]:
        """Names of parameters that are used as data."""
        return {name for name, _ in self._data}

    def data_slots(self, name: str, axis: int, size: int, at: Place, host: Host | None = None) -> Slots:
        """The slots of a parameter that is used as data, along ``axis``. It can hold gates where all who read it
        say the same ``host``."""
        if (name, axis) not in self._data:
            slots = self.new(size)
            self._sources[name, axis] = len(self.facts)
            self.emit(Source(slots, live=True, flow=False, host=host), at)
            self.own(name, axis, slots)
            self._data[name, axis] = slots
        fact = self.facts[number := self._sources[name, axis]]
        if isinstance(fact, Source) and fact.host != host:
            self.facts[number] = dataclasses.replace(fact, host=None)
        return self._data[name, axis]

    def is_data(self, x: Labels) -> bool:
        """Is ``x`` made of parameters or buffers that are used as data, and of nothing else?"""
        sources = {slot for slots in self._data.values() for slot in slots.tolist()}
        return all(self.values.origin(s) in sources for s in x.slots().tolist())

    # -- rules that fail ------------------------------------------------------------------------------------
    @property
    def _tables(self) -> tuple[dict[str, Any], ...]:
        """What surgery does to modules and numbers, other than to cut tensors."""
        return self.pools, self.rescaled, self.live, self.queries, self.risky

    def mark(self) -> Mark:
        """The state of the draft now, for `undo`."""
        tables = tuple(frozenset(table) for table in self._tables)
        lists = len(self.facts), len(self.layers), len(self.products), len(self.resizes)
        return Mark(self.slots, *lists, self.fixed_macs, tables)

    def undo(self, mark: Mark, why: Pin) -> None:
        """Take back what a rule has done since ``mark``, because it failed.

        Its slots are pinned, and none of its facts is a layer or module that surgery could replace. Ties and pins
        stay: they only keep more.
        """
        self.pin(np.arange(mark.slots, self.slots, dtype=np.int64), why)
        for i, fact in enumerate(self.facts[mark.facts :], mark.facts):
            if isinstance(fact, (Mix, Norm)):
                self.facts[i] = Barrier(fact.dst, fact.src)
            elif isinstance(fact, Source):
                self.facts[i] = dataclasses.replace(fact, host=None)
        del self.layers[mark.layers :]
        del self.products[mark.products :]
        del self.resizes[mark.resizes :]
        self.fixed_macs = mark.macs
        for name in [n for n, facts in self.owners.items() if facts[-1] >= mark.facts]:
            del self.owners[name]
        for table, before in zip(self._tables, mark.tables, strict=True):
            for name in table.keys() - before:
                del table[name]

    # -- the end --------------------------------------------------------------------------------------------
    def finished(self, literal: Mapping[str, str]) -> ChannelGraph:
        """The graph. Nothing may be tied after this."""
        root = self.classes(np.arange(self.slots, dtype=np.int64))
        names = {f.name for f in dataclasses.fields(ChannelGraph)} & vars(self).keys()
        return ChannelGraph(root=root, literal=literal, **{name: getattr(self, name) for name in names})
