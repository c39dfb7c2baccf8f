"""The structure of one network: its channel graph, formulas and costs, ready to be asked about masks."""

from __future__ import annotations

import contextlib
import functools
import gc
import numbers
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chipnet._util.finite import check_finite
from chipnet._util.modes import plainly
from chipnet._util.sizes import too_large
from chipnet.analysis.cost import CostModel
from chipnet.analysis.formula import Program
from chipnet.analysis.kinds import LATENCY
from chipnet.analysis.liveness import Liveness, Site
from chipnet.analysis.vectors import read_mask, read_scores
from chipnet.budget.budget import Budget
from chipnet.budget.solver import Hardener
from chipnet.errors import BudgetError, CaptureError, ConfigError, PlanError
from chipnet.gates.hooks import has_gates
from chipnet.graph.channels import Host, Mix, Norm, Pin, Realisation, is_within
from chipnet.graph.walk import canonical_names, trace
from chipnet.program.capture import Captured, capture
from chipnet.program.counting import counted
from chipnet.program.inputs import Inputs, device_of
from chipnet.program.ready import check, copied, ready, untouched
from chipnet.program.watch import values_in_training
from chipnet.surgery.plan import Plan, make_plan
from chipnet.trials import Trials

Pattern = str | type[nn.Module]
Patterns = Pattern | Iterable[Pattern]
"""One alone is a list of one."""


class Structure:
    """What may be pruned in a network, what it costs, and which masks meet a budget.

    The model is read, never changed.

    Args:
        model: any module that ``torch.export`` captures with ``example_inputs``.
        example_inputs: a tensor, a tuple of forward's arguments, or a dict of its keyword arguments. MACs and
            volume are counted for them.
        realisation: ``"plain"`` gives plain dense layers (channels that meet in an addition exist together);
            ``"indexed"`` lets a layer read or write fewer channels than the tensor around it has, by an index
            map before or after it.
        share: layers that are added into one stream share the stream's gates. The default: where rows exist
            together anyway (``"plain"``); the paper's masks are not shared.
        ignore: modules that keep all their output channels, and what is in them: patterns (``fnmatch``) of names
            (``"layer4.*"``), ``"type:"`` and a pattern of class names (``"type:Linear"``), or classes; one, or
            several.
        only: if given, nothing but these modules is pruned; written as ``ignore``.
        min_channels: channels that every site keeps at least (all, where it has fewer). Then no branch dies.
        outputs: which outputs matter, where not all do: a path of indices, keys and names of fields (``"0"``,
            ``"0.boxes"``, ``"logits"``), a function of the whole output (``lambda out: out[0]``), or a list of
            them. Forwards still run, but what only other outputs need may go, and they are not compared.
        round_to: widths of sites are multiples of this (8 suits most hardware), or whole. Needs ``share`` in the
            plain realisation.

    Raises:
        CaptureError: export failed, nothing can be pruned, or a pattern matches no module.
        ConfigError: an option has no such value, or the outputs are not there.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1))
        >>> s = Structure(net, torch.randn(1, 3, 6, 6))
        >>> [(site.name, site.free) for site in s.sites if site.free]
        [('1', 8)]
        >>> s.cost.dense.macs == 16 * 3 * 8 * 9 + 16 * 8 * 5
        True
    """

    @plainly
    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        realisation: Realisation = "plain",
        share: bool | None = None,
        ignore: Patterns = (),
        only: Patterns = (),
        min_channels: int = 0,
        round_to: int = 1,
        outputs: Any = None,
    ) -> None:
        if realisation not in ("plain", "indexed"):
            raise ConfigError(f"realisation must be 'plain' or 'indexed', got {realisation!r}")
        check_whole("min_channels", min_channels, 0)
        check_whole("round_to", round_to, 1)
        ignore, only = read_patterns(ignore, "ignore"), read_patterns(only, "only")
        if round_to > 1 and realisation == "plain" and share is False:
            raise ConfigError("round_to needs share=True: separate masks of one stream have no common width")
        _refuse_gates(model)
        self.inputs = Inputs.of(example_inputs, outputs)
        check(model, self.inputs)
        self.share = realisation == "plain" if share is None else share
        self.realisation: Realisation = realisation
        self._name = type(model).__name__
        self._model = weakref.ref(model)
        self.min_channels, self.round_to = min_channels, round_to
        self._ignored, self._only = _named(model, ignore, "ignore"), _named(model, only, "only")
        self._broken: dict[str, str] = {}
        self._anchored: set[str] = set()
        self._outputs: frozenset[str] | None = None
        """Nodes, outputs of modules, that are gated since nothing before them can be."""
        self.untraced: tuple[str, ...] = ()
        """Parameters that no graph reads, or that no output needs where the train-mode graph is not known."""
        self.notes: tuple[str, ...] = ()
        """Numbers in attributes that methods beside forward read, and that may count widths but will not follow."""
        self.shapes = {n: tuple(t.shape) for n, t in model.state_dict(keep_vars=True).items()}
        self.unsaved = {
            n: tuple(b.shape) for n, b in model.named_buffers(remove_duplicate=False) if n not in self.shapes
        }
        """Shapes of buffers that no state dict has."""
        with untouched(model), torch.compiler.set_stance("force_eager"):
            own, self.inputs = ready(model, self.inputs)
            self._counted = counted(own, self.inputs)
            program, training = self._capture(own)
            self._analyse(own, program, training)

    def _analyse(self, model: nn.Module, program: Captured, training: Captured | None) -> None:
        """Read the graphs until pruned copies run, and compute what they should."""
        literal: dict[str, str] = {}
        self._values = values_in_training(model, self.inputs)
        self._read(model, program, literal, training)
        trials = Trials(self, model, training is not None, self._broken, self._anchored)
        while self.gates:  # ends: every round pins more
            found = trials.findings()
            if found is None:
                break
            literal.update(found)
            self._read(model, program, literal, training)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_model": _nobody}

    def __repr__(self) -> str:
        free = sum(1 for site in self.sites if site.free)
        sites = f"{free} of {len(self.sites)} sites free"
        return f"Structure({self._name}: {self.gates:,} gates, {sites}, {self.cost.dense})"

    def _capture(self, model: nn.Module) -> tuple[Captured, Captured | None]:
        """The eval graph, and the train-mode graph where only the outputs of that need some of the parameters."""
        program = capture(model, self.inputs)
        first = canonical_names(model)

        def read(graph: Captured, nodes: Iterable[str]) -> set[str]:
            return {first.get(n, n) for n in graph.behind(nodes)} & names

        names = {n for n, _ in model.named_parameters()}
        missing = names - read(program, program.every)
        if not missing:
            return program, None
        twice = self.inputs.twice()
        try:
            training = capture(ready(model, twice, train=True)[0], twice, train=True)
        except CaptureError:  # it wants targets: what training may need of this graph stays
            self.untraced = tuple(sorted(missing))
            ends = [n for n in program.ends() if read(program, [n]) & missing]
            return program.keeping(ends, "read by nothing in eval mode, and training may read it"), None
        stored = [n for n in training.stored if read(training, [n]) & missing]
        training = training.keeping(stored, "stored by the train-mode forward")
        self.untraced = tuple(sorted(missing - {first.get(n, n) for n in program.used() | training.used()}))
        return program, training if missing & read(training, training.outputs) else None

    def _read(
        self,
        model: nn.Module,
        program: Captured,
        literal: dict[str, str],
        training: Captured | None,
    ) -> None:
        with _no_collection(), torch.random.fork_rng(devices=[]):  # rules ask operators, dropout too
            stuck = self._trace(model, program, literal, training)
            if self._outputs is None:
                self._outputs = self._once(model, stuck)
                if self._outputs and (still := self._trace(model, program, literal, training)):
                    self._outputs -= still  # where a gate does not help
                    self._trace(model, program, literal, training)
            self.sites: list[Site] = self.liveness.sites
            self.gates = self.liveness.gates
            self.cost = CostModel(self.liveness, model)
            self._programs: dict[str, Program] = {}
            self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.notes = tuple(note.text for note in self.graph.notes)
        self.aliases = canonical_names(model)
        self._tied = self._ties()
        taken: set[int] = set()
        self.site_gates: list[Tensor] = []
        self.site_of_gate = torch.zeros(self.gates, dtype=torch.int64)
        for i, site in enumerate(self.sites):
            own = sorted({int(g) for g in site.gates if g >= 0} - taken)
            taken.update(own)
            gates = torch.tensor(own, dtype=torch.int64)
            self.site_gates.append(gates)
            self.site_of_gate[gates] = i

    def _trace(
        self,
        model: nn.Module,
        program: Captured,
        literal: dict[str, str],
        training: Captured | None,
    ) -> frozenset[str]:
        """Graph and liveness; returns where channels are stuck though a module's output could be gated."""
        gated = self._outputs or frozenset()
        self.graph = trace(model, program, self.realisation, literal, training, gated, self._values)
        literal.update(self.graph.literal)
        self.graph.fixed_macs += max(
            0, self._counted - self.graph.macs
        )  # what no rule counts, no mask changes
        self._exclude()
        self.liveness = Liveness(self.graph, share=self.share, refused=self._refused, anchored=self._anchored)
        hosts = (f.host for f in self.graph.facts if isinstance(f, (Mix, Norm)) and f.host is not None)
        layers = {host.module for host in hosts if host.is_layer}  # their parameters can hold gates
        return frozenset(
            node
            for node, (module, slots) in self.graph.outputs.items()
            if module not in layers and self.liveness.stuck(slots)
        )

    def _once(self, model: nn.Module, nodes: frozenset[str]) -> frozenset[str]:
        """Of modules' outputs, those of modules that are not called more often in training than the graph shows."""
        hosts = {n: self.graph.outputs[n][0] for n in nodes}
        calls: Counter[str] = Counter()
        if not nodes:
            return nodes
        try:
            trained = copied(model).train()
            for path in set(hosts.values()):
                count = functools.partial(_count, calls, path)
                trained.get_submodule(path).register_forward_hook(count)
            with torch.no_grad():
                self.inputs.twice().to(device_of(model))(trained)
        except Exception:  # it cannot be copied, or wants targets: nothing more is known
            return nodes
        return frozenset(n for n, host in hosts.items() if calls[host] <= 1)

    def _evaluate(self, name: str, formulas: Callable[[], list[int]], masks: Tensor) -> Tensor:
        """Values of formulas under ``masks``; they are compiled when first asked for."""
        if name not in self._programs:
            with _no_collection():
                self._programs[name] = self.liveness.formulas.compile(formulas(), self.gates)
        return self._programs[name](masks.double())

    def _exclude(self) -> None:
        """Pin what the user wants to keep whole: classes of which any layer is ignored, or none is wanted."""
        graph = self.graph
        layers = [f for f in graph.facts if isinstance(f, (Mix, Norm))]
        wanted = {int(c) for f in layers if f.module in self._only for c in np.unique(graph.classes(f.dst))}
        for fact in layers:
            if fact.module in self._ignored:
                graph.pin(fact.dst, Pin("excluded by the user", "", fact.module, ""))
            elif self._only:
                others = [c for c in np.unique(graph.classes(fact.dst)).tolist() if c not in wanted]
                graph.pin(
                    np.array(others, dtype=np.int64), Pin("not chosen by the user", "", fact.module, "")
                )

    def _refused(self, host: Host) -> str:
        """Why a layer gets no gates, or nothing."""
        return self._broken.get(host.weight, "")

    def report(self) -> list[dict[str, Any]]:
        """What may be pruned and what not, site by site, as plain JSON values.

        ``status`` is ``free`` (gates of its own), ``tied`` (gates shared with the sites ``tied_to``, by the
        operators in ``ties``), ``covered`` (a gate further down its channel-wise chain acts for it) or ``kept``
        (whole, for ``reason``; where an operator is the cause, ``pin`` has it, its module and its line). A site
        of which only some channels are kept has its gates and a reason too. ``notes``: numbers that may count its
        channels and will not follow, since only methods beside forward read them.
        """
        rows = []
        for site in self.sites:
            others = self.tied_to(site)
            covered = site.reason.startswith("follows")
            status = ("tied" if others else "free") if site.free else ("covered" if covered else "kept")
            rows.append(
                {
                    "name": site.name,
                    "status": status,
                    "channels": site.channels,
                    "gates": site.free,
                    "tied_to": list(others),
                    "ties": [_where(pin) for pin in site.ties] if others else [],
                    "reason": site.reason,
                    "pin": _where(site.pin) if site.pin is not None else None,
                    "notes": self._notes(site),
                }
            )
        return rows

    def _notes(self, site: Site) -> list[str]:
        if not self.graph.notes:
            return []
        mine = set(self.graph.classes(site.slots).tolist())
        return [n.text for n in self.graph.notes if not mine.isdisjoint(self.graph.classes(n.slots).tolist())]

    def tied_to(self, site: Site) -> tuple[str, ...]:
        """Names of the other sites that share gates with ``site``."""
        return self._tied[site.name]

    def _ties(self) -> dict[str, tuple[str, ...]]:
        users: dict[int, list[str]] = defaultdict(list)
        for site in self.sites:
            for gate in np.unique(site.gates[site.gates >= 0]).tolist():
                users[gate].append(site.name)
        return {
            site.name: tuple(
                dict.fromkeys(
                    n
                    for g in np.unique(site.gates[site.gates >= 0]).tolist()
                    for n in users[g]
                    if n != site.name
                )
            )
            for site in self.sites
        }

    def sites_of_gates(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Each gate's site ``[gates]`` and each site's number of gates (at least one) ``[sites]``, on a device."""
        if device not in self._on:
            sizes = torch.tensor([max(len(gates), 1) for gates in self.site_gates])
            self._on[device] = self.site_of_gate.to(device), sizes.to(device)
        return self._on[device]

    def fits(self, model: nn.Module) -> None:
        """Refuse a network that this is not the structure of: itself, or one of its class, names and shapes.

        Raises:
            ConfigError: it is another.
            CaptureError: it has a pruner's gates in it.
        """
        shapes = {n: tuple(t.shape) for n, t in model.state_dict(keep_vars=True).items()}
        if type(model).__name__ != self._name:
            why = f"it is a {type(model).__name__}, not a {self._name}"
        elif differ := sorted(
            n for n in shapes.keys() | self.shapes.keys() if shapes.get(n) != self.shapes.get(n)
        ):
            name = differ[0]
            why = f"'{name}' has shape {shapes.get(name, 'none')}, not {self.shapes.get(name, 'none')}"
        else:
            _refuse_gates(model)
            return
        raise ConfigError(f"this Structure was made of another network than the model: {why}")

    # -- questions about masks ----------------------------------------------------------------------------
    def useful(self, masks: Tensor) -> Tensor:
        """Per gate: does it pass the input on to an output? ``[..., gates]``."""
        return self._evaluate("useful", self.liveness.useful, read_mask(masks, self.gates, batch=True))

    @torch.no_grad()
    def open(self, mask: Tensor) -> Tensor:
        """Per channel of every site, concatenated in the order of ``sites``: is it open? Boolean."""
        return self._evaluate("open", self.liveness.open, read_mask(mask, self.gates, batch=True)) > 0.5

    @torch.no_grad()
    def connected(self, mask: Tensor) -> bool:
        """Does the input reach every output?"""
        mask = read_mask(mask, self.gates)
        return bool(self._evaluate("connected", lambda: [self.liveness.connected()], mask)[0] > 0.5)

    @functools.cached_property
    def bypassed(self) -> tuple[bool, ...]:
        """Of every site ``[sites]``: has it gates, and does the input reach every output without all of them?"""
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
    def canonical(self, mask: Tensor) -> Tensor:
        """Close gates that do nothing: a branch with one fully dead layer dies whole."""
        mask = read_mask(mask, self.gates, batch=True).clone()
        while True:
            new = mask & (self.useful(mask) > 0.5)
            if bool((new == mask).all()):
                return mask
            mask = new

    def limits(self, budget: Budget | Mapping[str, Any] | str) -> dict[str, int]:
        """Largest integer cost of each kind the budget names; latency in nanoseconds.

        Raises:
            BudgetError: it names latency, and ``time`` has not been called.
        """
        budget = Budget.parse(budget)
        if LATENCY in budget.kinds and self.cost.latency is None:
            raise BudgetError("a latency budget needs measured layers: call structure.time(model) first")
        return budget.limits(self.cost.whole)

    def time(self, model: nn.Module) -> None:
        """Measure the layers of ``model`` on its device, so that budgets may name latency. Does so once."""
        from chipnet.timing.tables import measured

        if self.cost.latency is None:
            self.cost.latency = measured(model, self)

    @plainly
    def harden(
        self, scores: Tensor, budget: Budget | Mapping[str, Any] | str, *, floor: float = 0.0
    ) -> Tensor:
        """Boolean mask ``[gates]`` of the best-scored gates that meets ``budget`` exactly. See ``_harden.py``.

        Args:
            scores: ``[gates]``, finite numbers: a tensor, an array or a list.
            budget: see `chipnet.Budget`.
            floor: fraction of every site's gates that is kept before scores decide, where the budget allows it.

        Raises:
            PlanError: scores of another length, or that are not finite.
            BudgetError: no connected network meets the budget.
        """
        return Hardener(self, self.limits(budget), read_scores(scores, self.gates)).solve(floor)

    @plainly
    def check(self, budget: Budget | Mapping[str, Any] | str) -> None:
        """Raise ``BudgetError`` where no connected network meets the budget."""
        if self.gates == 0:
            raise CaptureError(
                f"nothing in {self._name} can be pruned: {len(self.graph.layers)} layers, all kept whole. "
                "`chipnet inspect` lists the reasons."
            )
        Hardener(self, self.limits(budget)).check()

    @plainly
    def plan(self, mask: Tensor, budget: Budget | None = None) -> Plan:
        """What to cut for ``mask`` ``[gates]``: Booleans, or numbers that are all 0 or 1.

        Raises:
            PlanError: a mask of another length or with other values, one under which the input does not reach every
                output, or weights of the model that are not finite.
        """
        model = self._model()
        if model is not None:
            check_finite(model, kind=PlanError)
        return make_plan(self, mask, budget)


def _nobody() -> None:
    """In place of the reference to the model where a structure has been pickled."""


def _count(calls: Counter[str], path: str, *call: Any) -> None:
    calls[path] += 1


def _where(pin: Pin) -> dict[str, str]:
    return {"reason": pin.reason, "operator": pin.node, "module": pin.module, "line": pin.line}


def _refuse_gates(model: nn.Module) -> None:
    if has_gates(model):
        raise CaptureError(
            f"this {type(model).__name__} has a pruner's gates in it: call that pruner's detach() first, or "
            "chipnet.detach(model), where it is a copy or the pruner is out of reach"
        )


def check_whole(name: str, value: Any, least: int, why: str = "") -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigError(f"{name} must be a whole number, got {value!r}{why}")
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}{why}")
    if said := too_large(name, value):
        raise ConfigError(said + why)


def read_patterns(given: Any, option: str) -> tuple[Pattern, ...]:
    """Patterns and classes as a tuple; one alone is a tuple of one.

    Raises:
        ConfigError: something else is among them.

    Example:
        >>> read_patterns("layer1.*", "ignore"), read_patterns(["a", nn.ReLU], "ignore")[1].__name__
        (('layer1.*',), 'ReLU')
    """
    if isinstance(given, (str, type)):
        given = (given,)
    patterns = tuple(given) if isinstance(given, Iterable) else (given,)
    if wrong := [p for p in patterns if not isinstance(p, (str, type))]:
        raise ConfigError(
            f"{option} takes patterns and classes of modules, not {wrong[0]!r}: 'layer1.*', 'type:Linear', "
            "or a list of such"
        )
    return patterns


def _named(model: nn.Module, patterns: tuple[Pattern, ...], option: str) -> frozenset[str]:
    """Modules that the user's patterns name, and all that is in them."""
    modules = dict(model.named_modules(remove_duplicate=False))

    def matches(name: str, pattern: Pattern) -> bool:
        if isinstance(pattern, type):
            return isinstance(modules[name], pattern)
        if pattern.startswith("type:"):
            return fnmatch(type(modules[name]).__name__, pattern[5:])
        return fnmatch(name, pattern)

    found: set[str] = set()
    for pattern in patterns:
        mine = [n for n in modules if matches(n, pattern)]
        if not mine:
            kinds = sorted({type(m).__name__ for m in modules.values()})
            raise CaptureError(
                f"{option}: {pattern!r} matches no module. Names: {', '.join(n for n in modules if n)[:300]}. "
                f"Types: {', '.join(kinds)[:300]}"
            )
        found.update(mine)
    return frozenset(n for n in modules if any(is_within(n, m) for m in found if m or n == m))


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
