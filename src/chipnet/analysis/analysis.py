"""What is known of a network's channels: graph, gates and costs, to be asked about masks.

An `Analysis` never changes. Solver, planner, trials, methods and timing take one; `analyse` makes it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from chipnet._util.device import device_of
from chipnet.analysis.cost import CostModel
from chipnet.analysis.counts import ExistingChannels
from chipnet.analysis.formula import Program
from chipnet.analysis.kinds import KIND
from chipnet.analysis.liveness import Liveness
from chipnet.analysis.network import Network
from chipnet.analysis.options import Options
from chipnet.analysis.sites import Site
from chipnet.analysis.vectors import read_mask
from chipnet.graph.channels import ChannelGraph
from chipnet.graph.facts import Host, LiveNorm, Map, Mix, Norm, Pin, PinCode, Place, Slots, Source
from chipnet.graph.walk import trace
from chipnet.program.inputs import Inputs
from chipnet.program.names import canonical_names
from chipnet.program.ready import copied


@dataclass(frozen=True)
class Notes:
    """What graphs do not show, and walks or trials found out.

    Attributes:
        literal: nodes whose sizes do not follow widths, with the reason.
        broken: weights of sites that break the forward, with what was said: they are kept whole.
        anchored: weights of sites that must not lose all of their channels.
        gated: nodes, outputs of modules, that hold gates, since nothing before them can; None: not looked for yet.
        by_head: weights of attention whose heads go whole, since heads and features at once do not.
    """

    literal: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    anchored: frozenset[str] = frozenset()
    gated: frozenset[str] | None = None
    by_head: frozenset[str] = frozenset()

    def __or__(self, more: Notes) -> Notes:
        # Where other heads go, other sizes follow: they are found again.
        before = {} if more.by_head - self.by_head else self.literal
        return Notes(
            {**before, **more.literal},
            {**self.broken, **more.broken},
            self.anchored | more.anchored,
            self.gated if more.gated is None else more.gated,
            self.by_head | more.by_head,
        )


@dataclass(frozen=True, eq=False)
class Analysis:
    """Questions about the masks ``[gates]`` of one network.

    Attributes:
        name: the class of the model.
        options: what the user decided.
        inputs: the example inputs that costs are counted for.
        notes: what walks and trials have found out.
        graph, liveness: see their modules.
        cost: the cost of masks; `priced` counts more kinds.
        shapes: of every tensor of the state dict.
        unsaved: of buffers that no state dict has.
        aliases: every name of a parameter or buffer -> the one name ``named_parameters`` gives it.
    """

    name: str
    options: Options
    inputs: Inputs
    notes: Notes
    graph: ChannelGraph
    liveness: Liveness
    cost: CostModel
    shapes: Mapping[str, tuple[int, ...]]
    unsaved: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    _programs: dict[str, Program] = field(default_factory=dict, repr=False)
    """Compiled when first asked for."""
    _priced: dict[tuple[str, ...], Analysis] = field(default_factory=dict, repr=False)
    _on: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def priced(self, kinds: Iterable[str]) -> Analysis:
        """The same, with costs of these kinds too, as far as they are counted; those that are measured, `with_cost`
        brings."""
        more = tuple(k for k in kinds if k not in self.cost.kinds and not KIND[k].measured)
        if more and more not in self._priced:
            self._priced[more] = self.with_cost(self.cost.counting(more))
        return self._priced[more] if more else self

    def with_cost(self, cost: CostModel) -> Analysis:
        """The same with another cost model."""
        return replace(self, cost=cost, _priced={})

    # -- sites and gates ----------------------------------------------------------------------------------
    @property
    def sites(self) -> list[Site]:
        return self.liveness.sites

    @property
    def gates(self) -> int:
        """How many gates there are."""
        return self.liveness.gates

    @functools.cached_property
    def site_gates(self) -> list[Tensor]:
        """The gates that act at each site and at no site before it."""
        taken: set[int] = set()
        found = []
        for site in self.sites:
            own = sorted({int(g) for g in site.gates if g >= 0} - taken)
            taken.update(own)
            found.append(torch.tensor(own, dtype=torch.int64))
        return found

    @functools.cached_property
    def site_of_gate(self) -> Tensor:
        """The site of each gate in `site_gates`: ``[gates]``."""
        found = torch.zeros(self.gates, dtype=torch.int64)
        for i, gates in enumerate(self.site_gates):
            found[gates] = i
        return found

    def sites_of_gates(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Each gate's site ``[gates]`` and each site's number of gates (at least one) ``[sites]``, on a device."""
        if device not in self._on:
            sizes = torch.tensor([max(len(gates), 1) for gates in self.site_gates])
            self._on[device] = self.site_of_gate.to(device), sizes.to(device)
        return self._on[device]

    def tied_to(self, site: Site) -> tuple[str, ...]:
        """Names of the other sites that share gates with ``site``."""
        return self._tied[site.name]

    @functools.cached_property
    def _tied(self) -> dict[str, tuple[str, ...]]:
        acting = [(site.name, np.unique(site.gates[site.gates >= 0]).tolist()) for site in self.sites]
        users: dict[int, list[str]] = defaultdict(list)
        for name, gates in acting:
            for gate in gates:
                users[gate].append(name)
        return {
            name: tuple(dict.fromkeys(n for gate in gates for n in users[gate] if n != name))
            for name, gates in acting
        }

    @property
    def norms(self) -> list[LiveNorm]:
        """Norms whose statistics are those of channels that exist."""
        return [norm for norm, _ in self.graph.live.values()]

    @functools.cached_property
    def norm_channels(self) -> list[int]:
        """How many channels each of `norms` has."""
        return [len(slots) for _, slots in self.graph.live.values()]

    # -- questions about masks ----------------------------------------------------------------------------
    def _evaluate(self, name: str, formulas: Callable[[], list[int]], masks: Tensor) -> Tensor:
        """Values of formulas under ``masks``; they are compiled when first asked for."""
        if name not in self._programs:
            with _no_collection():
                self._programs[name] = self.liveness.formulas.compile(formulas(), self.gates)
        return self._programs[name](masks.double())

    def useful(self, masks: Tensor) -> Tensor:
        """Per gate: does it pass the input on to an output? ``[..., gates]``."""
        return self._evaluate("useful", self.liveness.useful, read_mask(masks, self.gates, batch=True))

    @torch.no_grad()
    def open(self, mask: Tensor) -> Tensor:
        """Per channel of every site, concatenated in the order of ``sites``: is it open? Boolean."""
        return self._evaluate("open", self.liveness.open, read_mask(mask, self.gates, batch=True)) > 0.5

    def counted(self, values: Tensor) -> Tensor:
        """Per channel of what each of `norms` reads, concatenated: how far does it exist?

        Differentiable in ``values`` ``[gates]``.
        """
        if not self.graph.live:
            return values[:0]
        if "counted" not in self._programs:
            slots = np.concatenate([slots for _, slots in self.graph.live.values()])
            roots = self.liveness.present(slots).tolist()
            self._programs["counted"] = self.liveness.formulas.compile(roots, self.gates)
        return self._programs["counted"](values)

    @torch.no_grad()
    def connected(self, mask: Tensor) -> bool:
        """Does the input reach every output?"""
        mask = read_mask(mask, self.gates)
        return bool(self._evaluate("connected", lambda: [self.liveness.connected()], mask)[0] > 0.5)

    @functools.cached_property
    def bypassed(self) -> tuple[bool, ...]:
        """Per site: has it gates, and does the input reach every output without all of them? ``[sites]``."""
        found = []
        for gates in self.site_gates:
            without = torch.ones(self.gates, dtype=torch.bool)
            without[gates] = False
            found.append(len(gates) > 0 and self.connected(without))
        return tuple(found)

    @torch.no_grad()
    def existing(self, mask: Tensor) -> Tensor:
        """Per class of tied slots, in order of their representatives: does it exist physically?"""
        exists, mask = self.liveness.exists, read_mask(mask, self.gates, batch=True)
        return self._evaluate("exists", lambda: [exists[r] for r in sorted(exists)], mask)

    @torch.no_grad()
    def present(self, masks: Tensor) -> Tensor:
        """Per slot: does it exist physically? Boolean ``[..., slots]``."""
        classes = self.existing(masks) > 0.5
        exists = classes.new_zeros(*classes.shape[:-1], self.graph.slots)
        exists[..., sorted(self.liveness.exists)] = classes
        return exists[..., torch.from_numpy(np.asarray(self.liveness.root))]

    @torch.no_grad()
    def widths(self, masks: Tensor) -> Tensor:
        """Per site: how many of its channels exist physically? ``[..., sites]``."""
        masks = read_mask(masks, self.gates, batch=True)
        present = [self.liveness.present(site.slots) for site in self.sites]
        exists = self._evaluate("widths", lambda: np.concatenate(present).tolist(), masks)
        site = torch.arange(len(present)).repeat_interleave(torch.tensor([len(p) for p in present]))
        return exists.new_zeros(*masks.shape[:-1], len(present)).index_add(-1, site, exists)

    @torch.no_grad()
    def alive(self, mask: Tensor) -> Tensor:
        """Per module in ``graph.owners``: is anything that it writes live and needed?"""
        owners, mask = self.graph.owners.values(), read_mask(mask, self.gates, batch=True)
        return self._evaluate("alive", lambda: [self.liveness.alive(facts) for facts in owners], mask)

    @torch.no_grad()
    def reading(self, mask: Tensor) -> Tensor:
        """Per module in ``graph.owners``: does it read, if it is a layer, anything but zeros?"""
        owners, mask = self.graph.owners.values(), read_mask(mask, self.gates, batch=True)
        return self._evaluate("reading", lambda: [self.liveness.reading(facts) for facts in owners], mask)

    @torch.no_grad()
    def canonical(self, mask: Tensor) -> Tensor:
        """Close gates that do nothing: a branch with one fully dead layer dies whole."""
        mask = read_mask(mask, self.gates, batch=True).clone()
        while True:
            new = mask & (self.useful(mask) > 0.5)
            if bool((new == mask).all()):
                return mask
            mask = new


def analyse(network: Network, options: Options, notes: Notes) -> Analysis:
    """Read the graphs of a network, with what ``notes`` say; what the walk finds out is in the result's notes."""
    model = network.model
    with _no_collection(), torch.random.fork_rng(devices=[]):  # rules ask operators, dropout too
        graph, liveness, stuck, notes = _read(network, options, notes)
        if notes.gated is None:
            gated = _once(network, graph, stuck)
            notes = replace(notes, gated=gated)
            if gated:
                graph, liveness, still, notes = _read(network, options, notes)
                if still:  # where a gate does not help
                    graph, liveness, _, notes = _read(network, options, replace(notes, gated=gated - still))
                sums = _after_sums(graph, liveness, notes.gated or gated)
                if sums:  # what is added may hold gates by itself, without a pass over activations
                    fewer = _read(network, options, replace(notes, gated=(notes.gated or gated) - sums))
                    if fewer[2] <= still and len(_passes(fewer[1])) < len(_passes(liveness)):
                        graph, liveness, _, notes = fewer
        return Analysis(
            name=type(model).__name__,
            options=options,
            inputs=network.inputs,
            notes=notes,
            graph=graph,
            liveness=liveness,
            cost=CostModel(ExistingChannels(liveness, model)),
            shapes=network.shapes,
            unsaved=network.unsaved,
            aliases=canonical_names(model),
        )


def _read(
    network: Network, options: Options, notes: Notes
) -> tuple[ChannelGraph, Liveness, frozenset[str], Notes]:
    """Graph and liveness; where channels are stuck though a module's output could be gated; what is known now."""
    gated = notes.gated or frozenset()
    program, training, values = network.program, network.training, network.values
    graph = trace(
        network.model,
        program,
        options.realisation,
        notes.literal,
        training,
        gated,
        values,
        options.heads,
        notes.by_head,
    )
    uncounted = max(0, network.macs - graph.macs)  # what no rule counts, no mask changes
    graph = replace(graph, fixed_macs=graph.fixed_macs + uncounted).with_pins(_excluded(graph, network))
    if options.norms == "dense":
        live = {name: (_dense(norm, graph), slots) for name, (norm, slots) in graph.live.items()}
        graph = replace(graph, live=live)
    liveness = Liveness(
        graph,
        share=options.shared,
        refused=lambda host: notes.broken.get(host.key, ""),
        anchored=notes.anchored,
    )
    hosts = (f.host for f in graph.facts if isinstance(f, (Mix, Norm)) and f.host is not None)
    layers = {host.module for host in hosts if host.is_layer}  # their parameters can hold gates
    stuck = frozenset(
        node
        for node, (module, slots) in graph.outputs.items()
        if module not in layers and liveness.stuck(slots)
    )
    return graph, liveness, stuck, notes | Notes(literal=graph.literal)


def _passes(liveness: Liveness) -> set[Host]:
    """The hosts without affine parameters: their gates multiply activations."""
    return {site.host for site in liveness.sites if site.free and not site.host.is_layer}


def _after_sums(graph: ChannelGraph, liveness: Liveness, gated: frozenset[str]) -> frozenset[str]:
    """The nodes of ``gated``, whose outputs are multiplied by gates, that give a sum."""
    sums = [f.dst for f in graph.facts if isinstance(f, Map) and f.kind == "or" and len(f.srcs) > 1]
    added = np.concatenate([graph.facts[0].dst[:0], *sums])
    hosts = _passes(liveness)
    gates = [f for f in graph.facts if isinstance(f, Norm) and f.host in hosts and f.src[0] in added]
    return frozenset(n for n in gated if any(f.module == graph.outputs[n][0] for f in gates))


def _dense(norm: LiveNorm, graph: ChannelGraph) -> LiveNorm:
    """A norm that counts channels that go as zeros. One that multiplies by 1 + weight keeps its live statistics:
    ours has a plain weight."""
    named = {n.rpartition(".")[2] for n in graph.axes if n.rpartition(".")[0] == norm.module}
    return replace(norm, dense=named == {n for n in (norm.weight, norm.bias) if n is not None})


def _once(network: Network, graph: ChannelGraph, nodes: frozenset[str]) -> frozenset[str]:
    """The outputs that are one tensor each, of modules that training calls no more often than the graph shows."""
    hosts = {n: graph.outputs[n][0] for n in nodes}
    calls: Counter[str] = Counter()
    if not nodes:
        return nodes
    try:
        trained = copied(network.model).train()
        for path in set(hosts.values()):
            count = functools.partial(_count, calls, path)
            trained.get_submodule(path).register_forward_hook(count)
        with torch.no_grad():
            network.inputs.twice().to(device_of(network.model))(trained)
    except Exception:  # it cannot be copied, or wants targets: nothing more is known
        return nodes
    return frozenset(n for n, host in hosts.items() if calls[host] <= 1)


def _count(calls: Counter[str], path: str, module: object, args: object, output: object) -> None:
    calls[path] += 1 if isinstance(output, Tensor) else 2


def _excluded(graph: ChannelGraph, network: Network) -> Iterator[tuple[Slots, Pin]]:
    """What the user wants to keep whole: classes of which any layer is ignored, or none is wanted."""
    layers = [f for f in graph.facts if isinstance(f, (Mix, Norm))]
    chosen = {int(c) for f in layers if f.module in network.chosen for c in np.unique(graph.classes(f.dst))}
    found = [(f.module, f.dst) for f in layers]
    found += [(f.host.module, f.dst) for f in graph.facts if isinstance(f, Source) and f.host is not None]
    for module, dst in found:
        if module in network.ignored:
            yield dst, Pin(PinCode.EXCLUDED, "excluded by the user", Place(module=module))
        elif network.chosen:
            others = [c for c in np.unique(graph.classes(dst)).tolist() if c not in chosen]
            why = Pin(PinCode.NOT_CHOSEN, "not chosen by the user", Place(module=module))
            yield np.array(others, dtype=np.int64), why


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Formulas are many small sets and hold no cycles: looking for some takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
