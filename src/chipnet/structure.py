"""The structure of one network: its channel graph, formulas and costs, ready to be asked about masks."""

from __future__ import annotations

import numbers
import warnings
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from chipnet._util.finite import check_finite
from chipnet._util.given import NETWORK, Wanted
from chipnet._util.modes import plainly
from chipnet._util.text import amount, value_text
from chipnet.analysis.analysis import Analysis, Notes, analyse
from chipnet.analysis.cost import CostModel
from chipnet.analysis.kinds import LATENCY
from chipnet.analysis.network import Network
from chipnet.analysis.options import Options, Patterns
from chipnet.analysis.sites import Site
from chipnet.analysis.vectors import read_scores
from chipnet.budget.budget import Budget
from chipnet.budget.solver import Hardener, limits, smallest_costs
from chipnet.errors import CaptureError, ConfigError, PlanError
from chipnet.gates.hooks import has_gates
from chipnet.graph.channels import ChannelGraph
from chipnet.graph.facts import Heads, Pin, Realisation, Tie
from chipnet.program.ready import untouched
from chipnet.surgery.plan import Plan
from chipnet.surgery.planning import make_plan
from chipnet.timing.tables import with_latency
from chipnet.trials import Trials


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

        heads: what attention loses: ``"narrow"`` takes the same features out of all heads, ``"whole"`` takes whole
            heads where the network keeps their number in an attribute, and leaves their features, and ``"both"``
            takes both, where the width of a head is an attribute, too. Then the layer that writes values has three
            sites: gates of features under its own name, those of heads, and one of the block.

        norms: what layer norms count where channels go: ``"live"``, channels that stay, and what ships is the norm
            as it is; ``"dense"``, all channels, those that go as zeros, so that a trained network computes the same
            but for its channels, and what ships is a norm of ours. For training take ``"live"``.

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
        heads: Heads = "narrow",
        norms: Literal["live", "dense"] = "live",
    ) -> None:
        NETWORK.check("model", model)
        options = Options(realisation, share, ignore, only, min_channels, round_to, outputs, heads, norms)
        _refuse_gates(model)
        self._model = weakref.ref(model)
        with untouched(model), torch.compiler.set_stance("force_eager"):
            network = Network.of(model, example_inputs, options)
            self.analysis = _tried(network, options)
        self.untraced = network.untraced
        """Parameters that no graph reads, or that no output needs where the train-mode graph is not known."""

    # -- what the analysis knows ----------------------------------------------------------------------------
    @property
    def options(self) -> Options:
        return self.analysis.options

    @property
    def graph(self) -> ChannelGraph:
        """Slots, facts, ties and pins; prints."""
        return self.analysis.graph

    @property
    def sites(self) -> list[Site]:
        """The sites, at which gates may act."""
        return self.analysis.sites

    @property
    def gates(self) -> int:
        """How many gates there are."""
        return self.analysis.gates

    @property
    def cost(self) -> CostModel:
        """Costs of masks; ``cost.dense`` is the dense network's."""
        return self.analysis.cost

    @property
    def notes(self) -> tuple[str, ...]:
        """Numbers in attributes that may count widths and will not follow, since forward does not read them."""
        return tuple(note.text for note in self.graph.notes)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_model": _nobody}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Names of 0.1, until 0.3: what the analysis or the options hold now."""
            for part in ("analysis", "options") if name[0] != "_" and "analysis" in vars(self) else ():
                if hasattr(getattr(self, part), name):
                    told = f"Structure.{name} is Structure.{part}.{name} now; the old name goes with 0.3"
                    warnings.warn(told, DeprecationWarning, stacklevel=2)
                    return getattr(getattr(self, part), name)
            raise AttributeError(f"'Structure' object has no attribute {name!r}")

    def __repr__(self) -> str:
        free = sum(1 for site in self.sites if site.free)
        sites = f"{free} of {amount(len(self.sites), 'site')} free"
        return f"Structure({self.analysis.name}: {amount(self.gates, 'gate')}, {sites}, {self.cost.dense})"

    def report(self) -> list[dict[str, Any]]:
        """What may be pruned and what not, site by site, as plain JSON values.

        ``status`` is ``free`` (it has gates of its own), ``tied`` (it shares gates with the sites ``tied_to``,
        because of the operators in ``ties``), ``covered`` (a later gate of its channel-wise chain acts for it) or
        ``kept`` (all channels stay). ``reason`` says why, and ``code`` is its kind. If an operator is the cause,
        ``pin`` has the operator, its module and its line. A site of which only some channels are kept has gates and
        a reason. ``notes`` are numbers that may count its channels but are not updated, since only methods other
        than forward read them.
        """
        rows = []
        for site in self.sites:
            others = self.analysis.tied_to(site)
            status = ("tied" if others else "free") if site.free else ("covered" if site.covered else "kept")
            rows.append(
                {
                    "name": site.name,
                    "status": status,
                    "channels": site.channels,
                    "gates": site.free,
                    "tied_to": list(others),
                    "ties": [_where(pin) for pin in site.ties] if others else [],
                    "reason": site.reason,
                    "code": site.why.code.value if site.why is not None else "",
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

    def fits(self, model: nn.Module) -> None:
        """Refuse a network that this is not the structure of: itself, or one of its class, names and shapes.

        Raises:
            ConfigError: it is another.
            CaptureError: it has a pruner's gates in it, or is no network.
        """
        NETWORK.check("model", model)
        known = self.analysis.shapes
        shapes = {n: tuple(t.shape) for n, t in model.state_dict(keep_vars=True).items()}
        if type(model).__name__ != self.analysis.name:
            why = f"it is a {type(model).__name__}, not a {self.analysis.name}"
        elif differ := sorted(n for n in shapes.keys() | known.keys() if shapes.get(n) != known.get(n)):
            name = differ[0]
            why = f"'{name}' has shape {shapes.get(name, 'none')}, not {known.get(name, 'none')}"
        else:
            _refuse_gates(model)
            return
        raise ConfigError(f"this Structure was made of another network than the model: {why}")

    def limits(self, budget: Budget | Mapping[str, Any] | str) -> dict[str, int]:
        """Largest integer cost of each kind the budget names; latency in nanoseconds.

        Raises:
            BudgetError: it names latency, and ``time`` has not been called.
        """
        return limits(self.analysis, Budget.parse(budget))

    def time(self, model: nn.Module) -> None:
        """Measure the layers of ``model`` on its device, so that budgets may name latency. Does so once.

        Raises:
            ConfigError, CaptureError: it is not the network that this structure was made of; see `fits`.
        """
        self.fits(model)
        if LATENCY not in self.cost.kinds:
            self.analysis = self.analysis.with_cost(with_latency(model, self.analysis))

    def smallest(self) -> dict[str, int]:
        """The smallest cost of each kind that a connected network has, each by itself."""
        return smallest_costs(self.analysis)

    def connected(self, mask: Tensor) -> bool:
        """Does the input reach every output under ``mask`` ``[gates]``?"""
        return self.analysis.connected(mask)

    def canonical(self, mask: Tensor) -> Tensor:
        """``mask`` ``[gates]`` without open gates that do nothing. A branch with a fully dead layer dies whole."""
        return self.analysis.canonical(mask)

    def widths(self, masks: Tensor) -> Tensor:
        """Per site: how many of its channels exist physically? ``[..., sites]`` for ``[..., gates]``."""
        return self.analysis.widths(masks)

    @plainly
    def harden(
        self, scores: Tensor, budget: Budget | Mapping[str, Any] | str, *, floor: float = 0.0
    ) -> Tensor:
        """Boolean mask ``[gates]`` of the best-scored gates that meets ``budget`` exactly.

        Args:
            scores: ``[gates]``, finite numbers: a tensor, an array or a list.
            budget: see `chipnet.Budget`.
            floor: fraction of every site's gates that is kept before scores decide, where the budget allows it.

        Raises:
            PlanError: scores of another length, or that are not finite.
            BudgetError: no connected network meets the budget.
            ConfigError: the floor is no number from 0 to 1.
        """
        if isinstance(floor, bool) or not isinstance(floor, numbers.Real) or not 0 <= floor <= 1:
            raise ConfigError(
                f"floor must be a number from 0 to 1, got {value_text(floor)}: the part of each site that stays"
            )
        return Hardener(self.analysis, self.limits(budget), read_scores(scores, self.gates)).solve(
            float(floor)
        )

    @plainly
    def check(self, budget: Budget | Mapping[str, Any] | str) -> None:
        """Raise ``BudgetError`` where no connected network meets the budget."""
        if self.gates == 0:
            raise CaptureError(
                f"nothing in {self.analysis.name} can be pruned: {amount(len(self.graph.layers), 'layer')}, all "
                "kept whole. `chipnet inspect` lists the reasons."
            )
        Hardener(self.analysis, self.limits(budget)).check()

    @plainly
    def plan(self, mask: Tensor, budget: Budget | Mapping[str, Any] | str | None = None) -> Plan:
        """What to cut for ``mask`` ``[gates]``: Booleans, or numbers that are all 0 or 1.

        ``budget`` is what was asked for; the plan says so, and counts the kinds that it names.

        Raises:
            PlanError: a mask of another length or with other values, one under which the input does not reach every
                output, or weights of the model that are not finite.
            BudgetError: the budget cannot be read.
        """
        wanted = None if budget is None else Budget.parse(budget)
        model = self._model()
        if model is not None:
            check_finite(model, kind=PlanError)
        return make_plan(self.analysis, mask, wanted)


STRUCTURE = Wanted(Structure, "a chipnet.Structure", "chipnet.Structure(model, example_inputs) makes one.")


def _tried(network: Network, options: Options) -> Analysis:
    """Read the graphs until pruned copies run, and compute what they should."""
    analysis = analyse(network, options, Notes())
    trials = Trials(network)
    while analysis.gates:  # ends: every round pins more
        found = trials.findings(analysis)
        if found is None:
            break
        analysis = analyse(network, options, analysis.notes | found)
    return analysis


def _nobody() -> None:
    """Stands for the reference to the model in a structure that has been pickled."""


def _where(why: Pin | Tie) -> dict[str, str]:
    return {"reason": why.reason, "operator": why.at.node, "module": why.at.module, "line": why.at.line}


def _refuse_gates(model: nn.Module) -> None:
    if has_gates(model):
        raise CaptureError(
            f"this {type(model).__name__} has a pruner's gates in it: call that pruner's detach() first, or "
            "chipnet.detach(model), where it is a copy or the pruner is out of reach"
        )


def structure_of(model: nn.Module, given: Any, options: Options) -> Structure:
    """The structure that was given for ``model``, or one of the example inputs and options that were.

    Raises:
        ConfigError: a structure with options that it has already, or that of another network.
        CaptureError: see `Structure`; or the network has gates already.
    """
    if not isinstance(given, Structure):
        return Structure(model, given, **vars(options))
    defaults = vars(Options())
    if told := [name for name, value in vars(options).items() if value != defaults[name]]:
        raise ConfigError(
            f"a Structure is given, and {', '.join(told)} too: give them to Structure(...) instead"
        )
    given.fits(model)
    return given
