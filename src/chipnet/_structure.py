"""The structure of one network: its channel graph, formulas and costs, ready to be asked about masks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._budget import Budget
from chipnet._capture import Inputs, as_inputs, canonical_names, export, trace
from chipnet._compact import compact
from chipnet._cost import CostModel
from chipnet._errors import CaptureError, ConfigError, PlanError
from chipnet._gates import has_gates
from chipnet._graph import Host
from chipnet._harden import Hardener
from chipnet._liveness import Liveness, Site
from chipnet._plan import Plan, make_plan
from chipnet._trace import Realisation


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
        program = export(model, self.inputs)
        literal: frozenset[str] = frozenset()
        self._read(model, program, literal)
        while self.gates:  # ends: every round pins more
            found = self._probe(model)
            if found is None:
                break
            literal |= found
            self._read(model, program, literal)

    def _read(self, model: nn.Module, program: torch.export.ExportedProgram, literal: frozenset[str]) -> None:
        self.graph = trace(model, program, self.realisation, literal)
        self.liveness = Liveness(self.graph, share=self.share, refused=self._refused, anchored=self._anchored)
        self.sites: list[Site] = self.liveness.sites
        self.gates = self.liveness.gates
        self.cost = CostModel(self.liveness, model)
        f = self.liveness.formulas
        self._useful = f.compile(self.liveness.useful(), self.gates)
        self._open = f.compile(self.liveness.open(), self.gates)
        self._connected = f.compile([self.liveness.connected()], self.gates)
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

    def _refused(self, host: Host) -> str:
        """Why a layer gets no gates, or nothing."""
        return "excluded by the user" if host.module in self._ignored else self._broken.get(host.weight, "")

    # -- does a pruned copy run? --------------------------------------------------------------------------
    def _probe(self, model: nn.Module) -> frozenset[str] | None:
        """Prune copies, run them, and pin what breaks; None where nothing does.

        The graph shows sizes as numbers, not where they came from: a width that forward keeps as a literal, or
        an operator that refuses a tensor without channels, shows only when a pruned copy runs. The error's line
        tells which reshape or split is to blame; failing that, each site is tried by itself.
        """
        error = next((e for mask, verify in self._trials() if (e := self._error(model, mask, verify))), None)
        if error is None:
            return None
        lines = _lines_of(error)
        hit = frozenset(n for n, line in self.graph.risky.items() if line in lines)
        if hit:
            return hit
        known = len(self._broken) + len(self._anchored)
        for site, gates in zip(self.sites, self.site_gates, strict=True):
            if len(gates):
                self._blame(model, site, gates)
        if len(self._broken) + len(self._anchored) > known:
            return frozenset()
        if self.graph.risky:
            return frozenset(self.graph.risky)
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
            yield self.canonical(mask), True
        for sites in (self.site_gates, self.site_gates[::-1]):
            mask = torch.ones(self.gates, dtype=torch.bool)
            for gates in sites:
                trial = mask.clone()
                trial[gates] = False
                if self.connected(trial):
                    mask = trial
            if not bool(mask.all()):
                yield self.canonical(mask), False

    def _error(self, model: nn.Module, mask: Tensor, verify: bool) -> Exception | None:
        try:
            small = compact(model, self.plan(mask), verify=verify)
            if not verify:
                with torch.no_grad():
                    small.eval()(*copy.deepcopy(self.inputs))
        except Exception as error:
            return error
        return None

    def _blame(self, model: nn.Module, site: Site, gates: Tensor) -> None:
        """Try one site: half of its gates, one, none. What breaks at one channel or more pins the site."""
        mask = torch.ones(self.gates, dtype=torch.bool)
        for kept in (torch.arange(len(gates)) % 2 == 0, torch.arange(len(gates)) == 0):
            mask[gates] = kept
            error = self._error(model, mask, True) if self.connected(mask) else None
            if error is not None:
                said = f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
                if isinstance(error, PlanError):
                    said = "outputs change; its width is used as a number"
                self._broken[site.host.weight] = f"pruning it breaks the forward: {said}"
                return
        mask[gates] = False
        if self.connected(mask) and self._error(model, mask, True) is not None:
            self._anchored.add(site.host.weight)

    def tied_to(self, site: Site) -> tuple[str, ...]:
        """Names of the other sites that share gates with ``site``."""
        mine = set(site.gates[site.gates >= 0].tolist())
        others = [s for s in self.sites if s is not site and not mine.isdisjoint(s.gates.tolist())]
        return tuple(s.name for s in others)

    # -- questions about masks ----------------------------------------------------------------------------
    def useful(self, masks: Tensor) -> Tensor:
        """Per gate: does it pass the input on to an output? ``[..., gates]``."""
        return self._useful(masks.double())

    @torch.no_grad()
    def open(self, mask: Tensor) -> Tensor:
        """Per channel of every site, concatenated in the order of ``sites``: is it open? Boolean."""
        return self._open(mask.double()) > 0.5

    @torch.no_grad()
    def connected(self, mask: Tensor) -> bool:
        """Does the input reach every output?"""
        return bool(self._connected(mask.double())[0] > 0.5)

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


def _lines_of(error: BaseException) -> set[str]:
    lines = set()
    current: BaseException | None = error
    while current is not None:
        tb = current.__traceback__
        while tb is not None:
            lines.add(f"{tb.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{tb.tb_lineno}")
            tb = tb.tb_next
        current = current.__cause__
    return lines
