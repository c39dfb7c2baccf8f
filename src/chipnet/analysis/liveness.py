"""Liveness: one definition, read softly, exactly and as index sets.

Pruning channels is dead-code elimination at channel granularity. Under the masks every slot is

* **live** if it can be non-zero (computed forwards),
* **needed** if something that reaches an output reads it (computed backwards),
* **flowing** if it carries the network's input (a convolution whose inputs all died is a constant).

All three are monotone formulas over gates. A class of tied slots **exists** physically where any of its slots
is live *and* needed, or where it is pinned. That is the whole definition: costs count classes that exist,
surgery keeps them.

A gated layer that the input no longer reaches would emit a constant. It counts as shut, so a branch with one
fully dead layer dies whole: ``open`` says for every gated channel whether it is. What no input reaches in the
dense network either (a class token, layers that make a bias of positions) is a constant by itself: there it counts
whether a channel is live.

Channels of one site that must be removed together always share a gate. With ``share``, so do the channels of
all sites that write one class (all layers that are added into one stream): without index maps their rows exist
together anyway, and separate gates would buy nothing.

Which layers get gates is decided here too. A gate belongs to the last affine layer of a channel-wise chain
(expand, norm, depthwise, norm: the last norm), because a norm turns a zero channel into its bias; what stands
before it is then not needed. A layer whose channels cannot be removed by making them zero gets none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chipnet.analysis.formula import FALSE, TRUE, Formulas
from chipnet.analysis.sites import Ids, Reason, Site, Ungated
from chipnet.analysis.zeros import with_factors, zero_when_shut
from chipnet.graph.channels import ChannelGraph
from chipnet.graph.facts import Barrier, Host, Map, Mix, Norm, Pin, Slots, Source, Tie
from chipnet.graph.groups import small_groups

_Call = tuple[int, NDArray[np.bool_], NDArray[np.bool_]]
"""A fact, which of its channels a zero lets every reader drop, and for which a gate further down acts."""


class Liveness:
    """Formulas of a channel graph. See the module's text for the definition."""

    def __init__(
        self,
        graph: ChannelGraph,
        *,
        share: bool = False,
        refused: Callable[[Host], str] = lambda host: "",
        anchored: Collection[str] = (),
    ) -> None:
        """``refused(host)``: why a layer must get no gates, or nothing. ``anchored``: weights of layers that must
        not lose all of their channels."""
        self.graph = graph
        self._share = share
        self.formulas = Formulas()
        self.root = graph.root
        self._is_pinned = graph.pinned(np.arange(graph.slots))
        self._is_held = graph.held(np.arange(graph.slots))
        self.sites = self._place_gates(refused, anchored)
        self.gates = 1 + max((int(s.gates.max(initial=-1)) for s in self.sites), default=-1)
        self._gate_of = np.full(graph.slots, TRUE, dtype=np.int64)
        for fact, gates in self._gated():  # every call of a gated module
            for slot, gate in zip(fact.dst.tolist(), gates.tolist(), strict=True):
                if gate >= 0:
                    self._gate_of[slot] = self.formulas.gate(gate)
        self._layer_of = {layer.fact: layer for layer in graph.layers}
        self._alive: dict[tuple[int, ...], int] = {}
        self._forward()
        self._backward()
        self.exists = self._classes()
        self.sites = [self._explained(site) for site in self.sites]

    # -- where gates go -----------------------------------------------------------------------------------
    def _wanted(self, refused: Callable[[Host], str]) -> dict[str, list[_Call]]:
        """Weights of layers that gates may multiply, each with its calls, from the outputs back."""
        g, n = self.graph, self.graph.slots
        uses = np.zeros(n, dtype=np.int64)
        # Covered: every use meets a gate further down. Clear: a zero here lets every reader drop the channel.
        covered, clear = np.ones((2, n), dtype=bool)
        wanted: dict[str, list[_Call]] = defaultdict(list)

        def use(slots: Slots, is_covered: Any, is_clear: Any) -> None:
            np.logical_and.at(covered, slots, is_covered)
            np.logical_and.at(clear, slots, is_clear)
            np.add.at(uses, slots, 1)

        hosts = [f.dst for f in g.facts if isinstance(f, Source) and f.host is not None]
        data = np.isin(np.arange(n), np.concatenate([g.facts[0].dst[:0], *hosts]))  # parameters used as data
        shut = zero_when_shut(g, self._is_held, refused)
        self._goes = np.zeros(n, dtype=bool)  # it goes with what multiplies it
        for i, fact in reversed(list(enumerate(g.facts))):
            dst = fact.dst
            if isinstance(fact, Source):
                if fact.host is not None and not refused(fact.host) and (uses[dst] > 0).any():
                    wanted[fact.host.key].append((i, clear[dst] & (uses[dst] > 0), covered[dst]))
            elif isinstance(fact, Barrier):
                if fact.output or (uses[dst] > 0).any():  # what nothing reads asks for nothing
                    use(fact.src, False, False)
            elif isinstance(fact, Map):
                read = uses[dst] > 0
                if fact.host is not None and not refused(fact.host):
                    wanted[fact.host.key].append((i, clear[dst] & read, read & ~read))
                for k, src in enumerate(fact.srcs):
                    served = covered[dst]
                    if fact.kind == "and":
                        scales, product = with_factors(fact, k, data, self._is_held, shut, self.root)
                        served = served | scales | product
                        self._goes[src] |= product
                    self._goes[src] |= self._goes[dst]
                    droppable = covered if fact.kind == "const" else clear  # shut further down
                    use(src[read], served[read], droppable[dst][read])
            else:
                read = uses[dst] > 0
                live = isinstance(fact, Norm) and fact.statistics == "live"
                can = fact.host is not None and not live and not refused(fact.host)
                gated = np.logical_and(read & clear[dst], can) & ~covered[dst] & ~self._is_held[dst]
                if fact.host is not None and (fact.host.is_layer or gated.any()):
                    wanted[fact.host.key].append((i, clear[dst] & read, covered[dst] & read))
                served = gated | (covered[dst] & read)
                if live:  # its statistics read every channel that is not zero
                    if read.any():
                        use(fact.src, False, clear[dst])
                elif isinstance(fact, Norm):
                    if fact.groups:
                        served = np.repeat(served.reshape(fact.groups, -1).all(1), len(dst) // fact.groups)
                    if read.any():
                        use(fact.src, served, served)
                elif small_groups(fact.groups, len(fact.src)):
                    by_group = served.reshape(fact.groups, -1).all(1)
                    zero = (clear[dst] & (not fact.bias)).reshape(fact.groups, -1).all(1)
                    per = len(fact.src) // fact.groups
                    use(fact.src, np.repeat(by_group, per), np.repeat(by_group | zero, per))
                else:
                    use(fact.src, False, True)
        return wanted

    def _place_gates(self, refused: Callable[[Host], str], anchored: Collection[str]) -> list[Site]:
        g = self.graph
        tied_by: dict[int, list[Tie]] = defaultdict(list)
        for slot, tie in g.ties:
            tied_by[int(self.root[slot])].append(tie)
        sites: list[Site] = []
        self._site_of: dict[str, int] = {}
        keys: dict[object, int] = {}
        for weight, calls in reversed(list(self._wanted(refused).items())):
            fact = g.facts[calls[-1][0]]
            assert isinstance(fact, (Map, Mix, Norm, Source)) and fact.host is not None
            is_clear = np.logical_and.reduce([c for _, c, _ in calls])
            is_covered = np.logical_and.reduce([c for _, _, c in calls])
            is_held = self._is_held[fact.dst]
            live = isinstance(fact, Norm) and fact.statistics == "live"
            on = is_clear & ~is_covered & ~is_held & (not (live or refused(fact.host)))
            if weight in anchored:
                on[np.flatnonzero(on)[:1]] = False
            leaders = [g.groups.get(s, s) for s in fact.dst.tolist()]
            on &= np.array([leader is not None for leader in leaders], dtype=bool)
            gates = np.full(len(fact.dst), -1, dtype=np.int64)
            for k in np.flatnonzero(on):
                root = int(self.root[leaders[k]])
                gates[k] = keys.setdefault(root if self._share else (weight, root), len(keys))
            why = (
                None
                if on.all() and not fact.host.part
                else self._why(fact, is_clear, is_covered, is_held, refused(fact.host))
            )
            ties = dict.fromkeys(p for r in np.unique(self.root[fact.dst]).tolist() for p in tied_by[r])
            self._site_of[weight] = len(sites)
            sites.append(
                Site(
                    name=fact.host.name,
                    host=fact.host,
                    gates=_over_all(gates, fact.host, sites, -1),
                    slots=_over_all(fact.dst, fact.host, sites),
                    tied=False,
                    why=why,
                    ties=tuple(ties),
                )
            )
        shared = np.bincount(
            np.concatenate([s.gates[s.gates >= 0] for s in sites] or [np.empty(0, np.int64)]),
            minlength=len(keys),
        )
        return [replace(s, tied=bool((shared[s.gates[s.gates >= 0]] > 1).any())) for s in sites]

    def _explained(self, site: Site) -> Site:
        """The site with the reason for channels that have no gate and can go."""
        if site.why is None or site.why.code is not Ungated.NOT_ZERO:
            return site
        found = self.present(site.slots[(site.gates < 0) & ~self._is_pinned[site.slots]])
        return replace(site, why=Reason(Ungated.GOES)) if len(found) and (found > TRUE).all() else site

    def _pins(self, slots: Slots) -> list[Pin]:
        """Why these are pinned, the reason of most first."""
        return [p for p, _ in Counter(self.graph.pins[r] for r in self.root[slots].tolist()).most_common()]

    def _why(
        self,
        fact: Map | Mix | Norm | Source,
        clear: NDArray[np.bool_],
        covered: NDArray[np.bool_],
        pinned: NDArray[np.bool_],
        refused: str,
    ) -> Reason:
        if refused:
            return Reason(Ungated.BREAKS, said=refused)
        if fact.host is not None and (
            fact.host.part or not self.graph.groups.keys().isdisjoint(fact.dst.tolist())
        ):
            return Reason(Ungated.PART)
        others = ~pinned & ~covered & ~clear
        if isinstance(fact, Norm) and fact.statistics == "live" and (~pinned & (covered | clear)).any():
            return Reason(Ungated.FOLLOWS)
        most = max(pinned.sum(), (covered & ~pinned).sum(), others.sum())
        if most == 0:
            return Reason(Ungated.ONE_STAYS)
        if most == others.sum():  # what holds for most channels
            return Reason(Ungated.NOT_ZERO)
        if most == pinned.sum():
            return Reason(Ungated.PINNED, self._pins(fact.dst[pinned])[0])
        return Reason(Ungated.GOES if self._goes[fact.dst].any() else Ungated.COVERED)

    # -- formulas -----------------------------------------------------------------------------------------
    def _forward(self) -> None:
        f, g = self.formulas, self.graph
        live = np.full(g.slots, TRUE, dtype=np.int64)
        flow = np.full(g.slots, FALSE, dtype=np.int64)
        for fact in g.facts:
            dst = fact.dst
            if isinstance(fact, Source):
                live[dst] = self._gate_of[dst] if fact.live else FALSE
                flow[dst] = TRUE if fact.flow else FALSE
            elif isinstance(fact, Barrier):
                live[dst] = TRUE
                flow[dst] = f.any(np.unique(flow[fact.src]).tolist())
            elif isinstance(fact, Map):
                _fold(f.both if fact.kind == "and" else f.either, [live[s] for s in fact.srcs], live, dst)
                if fact.host is not None:
                    _fold(f.both, [live[dst], self._gate_of[dst]], live, dst)
                if fact.kind in ("const", "place"):
                    live[dst] = TRUE
                if fact.kind == "and":
                    parts = []
                    for k, s in enumerate(fact.srcs):
                        part = flow[s].copy()
                        for j, o in enumerate(fact.srcs):
                            if j != k:
                                _fold(f.both, [part, live[o]], part, np.arange(len(part)))
                        parts.append(part)
                    _fold(f.either, parts, flow, dst)
                else:
                    _fold(f.either, [flow[s] for s in fact.srcs], flow, dst)
                    if fact.host is not None:
                        _fold(f.both, [flow[dst], self._gate_of[dst]], flow, dst)
            elif isinstance(fact, Norm):
                arrives = flow[fact.src]
                for group in np.split(np.arange(len(dst)), fact.groups) if fact.groups else ():
                    arrives[group] = f.any(np.unique(arrives[group]).tolist())
                if fact.statistics == "live":
                    # A channel that exists though it is zero is shifted: by the mean, by a bias.
                    shifts = self._is_pinned[fact.src] & (fact.module not in g.rescaled)
                    live[dst] = np.where(shifts, TRUE, live[fact.src])
                    _fold(f.both, [arrives, live[dst]], flow, dst)
                    continue
                _fold(f.both, [arrives, self._gate_of[dst]], flow, dst)
                live[dst] = np.where(arrives == FALSE, self._gate_of[dst], flow[dst])
                live[dst] = np.where(self._gate_of[dst] == TRUE, TRUE, live[dst])
            else:
                for src_k, dst_k in zip(*_groups(fact), strict=True):
                    hub = TRUE if fact.bias else f.any(np.unique(live[src_k]).tolist())
                    carried = f.any(np.unique(flow[src_k]).tolist())
                    for d, gate in zip(dst_k.tolist(), self._gate_of[dst_k].tolist(), strict=True):
                        flow[d] = f.both(carried, gate)
                        live[d] = hub if gate == TRUE else flow[d] if carried != FALSE else f.both(hub, gate)
        self.live, self.flow = live, flow
        self.arrives = np.where(flow == FALSE, live, flow)

    def _backward(self) -> None:
        f, g = self.formulas, self.graph
        terms: list[set[int]] = [set() for _ in range(g.slots)]
        needed = np.full(g.slots, FALSE, dtype=np.int64)
        self.connected_terms: list[int] = []

        def settle(slots: Slots) -> list[int]:
            for s in slots.tolist():
                needed[s] = f.any(terms[s]) if terms[s] else FALSE
            return needed[slots].tolist()

        for fact in reversed(g.facts):
            if isinstance(fact, Barrier):
                reader = TRUE if fact.output else f.any(settle(fact.dst))
                for s in fact.src.tolist():
                    terms[s].add(reader)
                if fact.output:
                    self.connected_terms.append(f.any(np.unique(self.flow[fact.src]).tolist()))
                continue
            out = settle(fact.dst)
            if isinstance(fact, Map):
                for k, src in enumerate(fact.srcs):
                    others = [o for j, o in enumerate(fact.srcs) if j != k] if fact.kind == "and" else []
                    for i, slot in enumerate(src.tolist()):
                        term = f.both(out[i], int(self._gate_of[fact.dst[i]]))
                        for o in others:
                            term = f.both(term, int(self.live[o[i]]))
                        terms[slot].add(term)
            elif isinstance(fact, Norm):
                readers = list(map(f.both, out, self._open(fact.dst)))
                size = len(readers) // fact.groups if fact.groups else 1
                for first in range(0, len(readers), size):
                    hub = f.any(set(readers[first : first + size]))
                    for slot in fact.src[first : first + size].tolist():
                        terms[slot].add(hub)
            elif isinstance(fact, Mix):
                for src_k, dst_k in zip(*_groups(fact), strict=True):
                    hub = f.any(set(map(f.both, needed[dst_k].tolist(), self._open(dst_k))))
                    for s in src_k.tolist():
                        terms[s].add(hub)
        self.needed = needed

    def _open(self, slots: Slots) -> list[int]:
        """Per written channel: what it reads shows in it. A gate that the input does not reach counts as shut."""
        return np.where(self._gate_of[slots] == TRUE, TRUE, self.arrives[slots]).tolist()

    def stuck(self, slots: Slots) -> bool:
        """Are there channels among these that no gates can remove without others, though nothing pins them?"""
        exists = [self.exists[r] for r in np.unique(self.root[slots[~self._is_pinned[slots]]]).tolist()]
        different = set(exists)
        return TRUE in different or len(different) < sum(e != FALSE for e in exists)

    def _classes(self) -> dict[int, int]:
        f = self.formulas
        pairs: dict[int, set[int]] = defaultdict(set)
        for s, root in enumerate(self.root.tolist()):
            pairs[root].add(f.both(int(self.live[s]), int(self.needed[s])))
        exists = {r: TRUE if self._is_pinned[r] else f.any(p) for r, p in pairs.items()}
        sizes: dict[int, set[int]] = defaultdict(set)
        for slot, members in self.graph.extents.items():
            sizes[int(self.root[slot])].update(exists[r] for r in self.root[members].tolist())
        return exists | {r: f.any(p) for r, p in sizes.items()}

    # -- readings -----------------------------------------------------------------------------------------
    def present(self, slots: Slots) -> Ids:
        """Formula of each slot's physical existence."""
        return np.array([self.exists[r] for r in self.root[slots].tolist()], dtype=np.int64)

    def alive(self, facts: Sequence[int]) -> int:
        """True where any channel that these facts write is live and needed."""
        key = tuple(facts)
        if key not in self._alive:
            terms: set[int] = set()
            for i in facts:
                dst = self.graph.facts[i].dst
                terms.update(map(self.formulas.both, self.live[dst].tolist(), self.needed[dst].tolist()))
            self._alive[key] = self.formulas.any(terms)
        return self._alive[key]

    def reading(self, facts: Sequence[int]) -> int:
        """True where a layer, called in these facts, reads a channel that is not for certain zero, or not there."""
        terms: set[int] = set()
        for layer in (self._layer_of[i] for i in facts if i in self._layer_of):
            read, pinned = layer.cols, self._is_pinned[layer.cols]
            terms.update(np.where(pinned, self.live[read], self.present(read)).tolist())
        found = self.formulas.any(terms)
        return TRUE if found == FALSE else found  # all that it reads is zero in the dense network, too

    def useful(self) -> list[int]:
        """Per gate: open, it passes the input on, or what is a constant in the dense network too, to something that
        reaches an output."""
        terms: list[set[int]] = [set() for _ in range(self.gates)]
        for fact, gates in self._gated():
            for d, gate in zip(fact.dst.tolist(), gates.tolist(), strict=True):
                if gate >= 0:
                    terms[gate].add(self.formulas.both(int(self.arrives[d]), int(self.needed[d])))
        return [self.formulas.any(t) for t in terms]

    def open(self) -> list[int]:
        """Per channel of every site, in order: its gate is open and the input reaches it; true if ungated."""
        terms: list[list[set[int]]] = [[set() for _ in range(s.channels)] for s in self.sites]
        for fact, gates in self._gated():
            assert fact.host is not None
            mine = terms[self._site_of[fact.host.key]]
            rows = fact.host.rows or range(len(fact.dst))
            for k, d, gate in zip(rows, fact.dst.tolist(), gates.tolist(), strict=True):
                mine[k].add(int(self.arrives[d]) if gate >= 0 else TRUE)
        return [self.formulas.any(t) if t else TRUE for site in terms for t in site]

    def _gated(self) -> Iterator[tuple[Map | Mix | Norm | Source, Ids]]:
        for fact in self.graph.facts:
            if (
                isinstance(fact, (Map, Mix, Norm, Source))
                and fact.host is not None
                and fact.host.key in self._site_of
            ):
                gates = self.sites[self._site_of[fact.host.key]].gates
                yield fact, gates[list(fact.host.rows)] if fact.host.rows else gates

    def connected(self) -> int:
        """True where the input reaches every output that it reaches in the dense network."""
        reached = [
            t for t in self.connected_terms if t != FALSE
        ]  # some outputs are constants in the dense network too
        return self.formulas.all(reached)


def _over_all(values: Ids, host: Host, sites: Sequence[Site], rest: int | None = None) -> Ids:
    """Values of a second site's rows as values of all rows of its weight: others are ``rest``, or the slots of the
    first site."""
    if not host.rows:
        return values
    first = next(site for site in sites if site.host.key == host.weight)
    out = first.slots.copy() if rest is None else np.full(first.channels, rest, dtype=np.int64)
    out[list(host.rows)] = values
    return out


def _groups(fact: Mix) -> tuple[list[Slots], list[Slots]]:
    return list(fact.src.reshape(fact.groups, -1)), list(fact.dst.reshape(fact.groups, -1))


def _fold(op: Callable[[int, int], int], columns: list[Ids], out: Ids, where: Slots) -> None:
    """``out[where] = op(columns[0], columns[1], ...)`` elementwise."""
    result = columns[0].tolist()
    for column in columns[1:]:
        result = [op(a, b) for a, b in zip(result, column.tolist(), strict=True)]
    out[where] = result
