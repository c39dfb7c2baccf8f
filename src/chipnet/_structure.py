"""The structure of one network: its channel graph, formulas and costs, ready to be asked about masks."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from chipnet._budget import Budget
from chipnet._capture import Inputs, as_inputs, canonical_names, export, trace
from chipnet._compact import agree, compact
from chipnet._cost import CostModel
from chipnet._errors import CaptureError, ConfigError, PlanError
from chipnet._formula import Program
from chipnet._gates import has_gates
from chipnet._graph import Host
from chipnet._harden import Hardener
from chipnet._liveness import Liveness, Site
from chipnet._plan import Plan, make_plan
from chipnet._trace import Mode, Realisation


class Structure:
    """What may be pruned in a network, what it costs, and which masks meet a budget.

    The model is read, never changed.

    Args:
        model: any module that ``torch.export`` captures with ``example_inputs``.
        example_inputs: a tensor or a tuple of forward's arguments. MACs and volume are counted for them.
        realisation: ``"plain"`` gives plain dense layers (channels that meet in an addition exist together);
            ``"indexed"`` lets a layer read or write fewer channels than the tensor around it has, by an index
            map before or after it.
        share: layers that are added into one stream share the stream's gates. The default: where rows exist
            together anyway (``"plain"``); the paper's masks are not shared.
        ignore: patterns (``fnmatch``) of module names that keep all their channels.

    Raises:
        CaptureError: export failed, or nothing can be pruned.

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

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        realisation: Realisation = "plain",
        share: bool | None = None,
        ignore: tuple[str, ...] | list[str] = (),
    ) -> None:
        if realisation not in ("plain", "indexed"):
            raise ConfigError(f"realisation must be 'plain' or 'indexed', got {realisation!r}")
        if has_gates(model):
            raise CaptureError(
                f"this {type(model).__name__} has a pruner's gates in it: call that pruner's detach() first"
            )
        self.inputs: Inputs = as_inputs(example_inputs)
        self.share = realisation == "plain" if share is None else share
        self.realisation: Realisation = realisation
        self._name = type(model).__name__
        self._ignored = _ignored(model, tuple(ignore))
        self._broken: dict[str, str] = {}
        self._anchored: set[str] = set()
        self.untraced: tuple[str, ...] = ()
        """Parameters that no graph reads."""
        program, training = self._export(model)
        modes: dict[str, Mode] = {}
        self._read(model, program, modes, training)
        while self.gates:  # ends: every round pins more
            found = self._probe(model, training is not None)
            if found is None:
                break
            modes.update(found)
            self._read(model, program, modes, training)

    def _export(self, model: nn.Module) -> tuple[ExportedProgram, ExportedProgram | None]:
        """The eval graph, and the train-mode graph where only that reads some of the parameters."""
        program = export(model, self.inputs)
        names = {n for n, _ in model.named_parameters()}
        missing = names - _read_by(program, model)
        if not missing:
            return program, None
        try:
            training = export(model, self.inputs, train=True)
        except CaptureError:  # it wants targets, or more than one image
            training = None
        left = missing - _read_by(training, model) if training is not None else missing
        self.untraced = tuple(sorted(left))
        return program, training if training is not None and left < missing else None

    def _read(
        self,
        model: nn.Module,
        program: ExportedProgram,
        modes: Mapping[str, Mode],
        training: ExportedProgram | None,
    ) -> None:
        with _no_collection():
            self.graph = trace(model, program, self.realisation, modes, training)
            self.liveness = Liveness(
                self.graph, share=self.share, refused=self._refused, anchored=self._anchored
            )
            self.sites: list[Site] = self.liveness.sites
            self.gates = self.liveness.gates
            self.cost = CostModel(self.liveness, model)
            self._programs: dict[str, Program] = {}
        self.aliases = canonical_names(model)
        self.shapes = {n: tuple(t.shape) for n, t in model.state_dict(keep_vars=True).items()}
        taken: set[int] = set()
        self.site_gates: list[Tensor] = []
        self.site_of_gate = torch.zeros(self.gates, dtype=torch.int64)
        for i, site in enumerate(self.sites):
            own = sorted({int(g) for g in site.gates if g >= 0} - taken)
            taken.update(own)
            gates = torch.tensor(own, dtype=torch.int64)
            self.site_gates.append(gates)
            self.site_of_gate[gates] = i

    def _evaluate(self, name: str, formulas: Callable[[], list[int]], masks: Tensor) -> Tensor:
        """Values of formulas under ``masks``; they are compiled when first asked for."""
        if name not in self._programs:
            with _no_collection():
                self._programs[name] = self.liveness.formulas.compile(formulas(), self.gates)
        return self._programs[name](masks.double())

    def _refused(self, host: Host) -> str:
        """Why a layer gets no gates, or nothing."""
        return "excluded by the user" if host.module in self._ignored else self._broken.get(host.weight, "")

    # -- does a pruned copy run? --------------------------------------------------------------------------
    def _probe(self, model: nn.Module, trains: bool) -> dict[str, Mode] | None:
        """Prune copies, run them, and pin what breaks; None where nothing does.

        The graph shows sizes as numbers, not where they came from: a width that forward keeps as a literal, or
        an operator that refuses a tensor without channels, shows only when a pruned copy runs. The error's line
        tells which reshape or split is to blame; failing that, each site is tried by itself.
        """
        error = next(
            (e for mask, same in self._trials() if (e := self._error(model, mask, same, trains))), None
        )
        if error is None:
            return None
        risky = self.graph.risky
        for line, around in _lines_of(error):
            if any(r.line == line for r in risky.values()):
                found = {n: r for n, r in risky.items() if r.line == line}
                return {n: "attribute" if r.attributes else "literal" for n, r in found.items()}
            if any(r.attributes and r.line in around for r in risky.values()):
                return {n: "attribute" for n, r in risky.items() if r.attributes and r.line in around}
        known = len(self._broken) + len(self._anchored)
        self._blame(model, trains)
        if len(self._broken) + len(self._anchored) > known:
            return {}
        if self.graph.risky:
            return dict.fromkeys(self.graph.risky, "literal")
        raise CaptureError(
            f"a pruned copy of {self._name} does not run or computes something else, and no single layer is to "
            f"blame: {type(error).__name__}: {error}. Exclude the part concerned with ignore=[...]."
        )

    def _trials(self) -> Iterator[tuple[Tensor, bool]]:
        """Masks to try, and whether outputs are compared: random, one gate a site, as many dead sites as can be."""
        generator = torch.Generator().manual_seed(0)
        for density in (0.6, 0.9):
            mask = self.canonical(torch.rand(self.gates, generator=generator) < density)
            if self.connected(mask):
                yield mask, True
                break
        mask = torch.zeros(self.gates, dtype=torch.bool)
        mask[[int(gates[0]) for gates in self.site_gates if len(gates)]] = True
        if self.connected(mask):
            yield self.canonical(mask), False
        for sites in (self.site_gates, self.site_gates[::-1]):
            mask = torch.ones(self.gates, dtype=torch.bool)
            for gates in sites:
                trial = mask.clone()
                trial[gates] = False
                if self.connected(trial):
                    mask = trial
            if not bool(mask.all()):
                yield self.canonical(mask), False

    def _error(self, model: nn.Module, mask: Tensor, same: bool, trains: bool) -> Exception | None:
        """What goes wrong with a copy pruned by ``mask``. ``same``: compare outputs too, first as they are and, where
        they differ, in float64."""
        try:
            plan = self.plan(mask)
            small = compact(model, plan, verify=False)
            if same and not agree(model, small, plan, self.inputs):
                raise PlanError("outputs change")
            with torch.no_grad():
                if not same:
                    small.eval()(*copy.deepcopy(self.inputs))
                if trains:
                    small.train()(*copy.deepcopy(self.inputs))
        except Exception as error:
            return error
        return None

    def _blame(self, model: nn.Module, trains: bool) -> None:
        """Find the sites that break the forward at half of their gates, at one, at none: by halves, since few do."""

        def search(sites: list[int], kept: Callable[[Tensor], Tensor]) -> Iterator[tuple[int, Exception]]:
            mask = torch.ones(self.gates, dtype=torch.bool)
            for i in sites:
                mask[self.site_gates[i]] = kept(torch.arange(len(self.site_gates[i])))
            connected = self.connected(mask)
            error = self._error(model, mask, True, trains) if connected else None
            if len(sites) == 1 and error is not None:
                yield sites[0], error
            elif len(sites) > 1 and (error is not None or not connected):
                yield from search(sites[: len(sites) // 2], kept)
                yield from search(sites[len(sites) // 2 :], kept)

        todo = [i for i, gates in enumerate(self.site_gates) if len(gates)]
        for kept in (lambda k: k % 2 == 0, lambda k: k == 0):
            for i, error in search(todo, kept):
                said = f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
                if isinstance(error, PlanError):
                    said = "outputs change; its width is used as a number"
                self._broken[self.sites[i].host.weight] = f"pruning it breaks the forward: {said}"
            todo = [i for i in todo if self.sites[i].host.weight not in self._broken]
        for i, _ in search(todo, lambda k: k < 0):
            self._anchored.add(self.sites[i].host.weight)

    def tied_to(self, site: Site) -> tuple[str, ...]:
        """Names of the other sites that share gates with ``site``."""
        mine = set(site.gates[site.gates >= 0].tolist())
        others = [s for s in self.sites if s is not site and not mine.isdisjoint(s.gates.tolist())]
        return tuple(s.name for s in others)

    # -- questions about masks ----------------------------------------------------------------------------
    def useful(self, masks: Tensor) -> Tensor:
        """Per gate: does it pass the input on to an output? ``[..., gates]``."""
        return self._evaluate("useful", self.liveness.useful, masks)

    @torch.no_grad()
    def open(self, mask: Tensor) -> Tensor:
        """Per channel of every site, concatenated in the order of ``sites``: is it open? Boolean."""
        return self._evaluate("open", self.liveness.open, mask) > 0.5

    @torch.no_grad()
    def connected(self, mask: Tensor) -> bool:
        """Does the input reach every output?"""
        return bool(self._evaluate("connected", lambda: [self.liveness.connected()], mask)[0] > 0.5)

    @torch.no_grad()
    def existing(self, mask: Tensor) -> Tensor:
        """Per class of tied slots, in order of their representatives: does it exist physically?"""
        exists = self.liveness.exists
        return self._evaluate("exists", lambda: [exists[r] for r in sorted(exists)], mask)

    @torch.no_grad()
    def alive(self, mask: Tensor) -> Tensor:
        """Per module in ``graph.owners``: is anything that it writes live and needed?"""
        owners = self.graph.owners.values()
        return self._evaluate("alive", lambda: [self.liveness.alive(facts) for facts in owners], mask)

    @torch.no_grad()
    def canonical(self, mask: Tensor) -> Tensor:
        """Close gates that do nothing: a branch with one fully dead layer dies whole."""
        mask = mask.clone()
        while True:
            new = mask & (self.useful(mask) > 0.5)
            if bool((new == mask).all()):
                return mask
            mask = new

    def limits(self, budget: Budget | Mapping[str, Any] | str) -> dict[str, int]:
        """Largest integer cost of each kind the budget names."""
        return Budget.parse(budget).limits(self.cost.dense.to_json())

    def harden(
        self, scores: Tensor, budget: Budget | Mapping[str, Any] | str, *, floor: float = 0.0
    ) -> Tensor:
        """Boolean mask of the best-scored gates that meets ``budget`` exactly. See ``_harden.py``."""
        return Hardener(self, self.limits(budget)).solve(scores, floor)

    def check(self, budget: Budget | Mapping[str, Any] | str) -> None:
        """Raise ``BudgetError`` where no connected network meets the budget."""
        if self.gates == 0:
            raise CaptureError(
                f"nothing in {self._name} can be pruned: {len(self.graph.layers)} layers, all kept whole. "
                "`chipnet inspect` lists the reasons."
            )
        Hardener(self, self.limits(budget)).check()

    def plan(self, mask: Tensor, budget: Budget | None = None) -> Plan:
        """What to cut for Boolean ``mask`` ``[gates]``."""
        return make_plan(self, mask, budget)


def _ignored(model: nn.Module, patterns: tuple[str, ...]) -> frozenset[str]:
    """Modules that the user's patterns name."""
    names = [n for n, _ in model.named_modules()]
    missing = [p for p in patterns if not any(fnmatch(n, p) for n in names)]
    if missing:
        raise CaptureError(
            f"ignore patterns that match no module: {missing}. "
            f"The model's modules: {', '.join(n for n in names if n)[:300]}"
        )
    return frozenset(n for n in names if any(fnmatch(n, p) for p in patterns))


def _read_by(program: ExportedProgram, model: nn.Module) -> set[str]:
    """Parameters (by their first names) that a graph reads."""
    canonical = canonical_names(model)
    used = {n.name for n in program.graph.nodes if n.op == "placeholder" and n.users}
    targets = program.graph_signature.inputs_to_parameters
    return {canonical.get(target, target) for name, target in targets.items() if name in used}


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


def _lines_of(error: BaseException) -> list[tuple[str, set[str]]]:
    """Lines of the forward that an error passed through, the innermost first, each with those of its function."""
    lines = []
    current: BaseException | None = error
    while current is not None:
        tb = current.__traceback__
        while tb is not None:
            code = tb.tb_frame.f_code
            file = code.co_filename.rsplit("/", 1)[-1]
            lines.append((f"{file}:{tb.tb_lineno}", {f"{file}:{n}" for *_, n in code.co_lines()}))
            tb = tb.tb_next
        current = current.__cause__
    return lines[::-1]
