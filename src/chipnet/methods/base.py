"""What a method is, and the frame that most share: a binary forward and a shrinking budget."""

from __future__ import annotations

import difflib
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from chipnet.analysis.analysis import Analysis
from chipnet.budget.ranking import Ranking, best_mask
from chipnet.errors import ChipNetError, ConfigError
from chipnet.methods.schedules import Cubic


class Method(ABC):
    """Gives gates their values while the network trains.

    Args:
        model: the network (read its parameters; do not change them).
        analysis: its gates and costs.
        limits: kind -> largest integer cost (the budget).
        steps: optimiser steps of the whole pruning phase.
        seed: of everything random.
        device: where gate values are needed.
        options: other values for this method's ``settings()``, by name.

    Raises:
        ConfigError: an option that is no setting of this method.
    """

    name: ClassVar[str] = "own"
    distills: ClassVar[tuple[float, float] | None] = None
    """(temperature, weight) where the dense network's logits are part of the method's task loss:
    ``(1 - weight) CE + weight * distillation_loss(., ., temperature)``. The loop owns the teacher."""

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Least and largest values of settings; of others from 0 on, or any where the default is negative. A class that
    extends another has only those that differ."""

    def __init__(
        self,
        model: nn.Module,
        analysis: Analysis,
        limits: Mapping[str, int],
        *,
        steps: int,
        seed: int,
        device: torch.device,
        options: Mapping[str, float] | None = None,
    ) -> None:
        for option, value in self.checked(options or {}).items():
            setattr(self, option, value)
        self.model, self.analysis, self.limits = model, analysis, dict(limits)
        self.steps, self.device = steps, device
        self.generator = torch.Generator().manual_seed(seed)
        self.current = torch.ones(analysis.gates, dtype=torch.bool)
        """The hard mask ``[gates]`` of a method that has one while it trains, and of any once it is final."""
        self.final = False
        """The mask is decided: from now on the model computes what will be shipped."""
        self.handles: list[Any] = []
        """Of hooks on the model, for ``detach``."""
        self.group: Any = None
        """The processes that train together, set by the pruner: for what does not pass through dL/dz."""
        self.kinds = torch.tensor([analysis.cost.kinds.index(k) for k in limits], device=device)
        dense = analysis.cost.whole
        self.dense = torch.tensor([dense[k] for k in limits], dtype=torch.float64, device=device)
        self.target = torch.tensor([min(limits[k] / dense[k], 1.0) for k in limits], device=device)

    @property
    def structure(self) -> Analysis:
        """The name of ``analysis`` in 0.1; it goes with 0.3."""
        warnings.warn("Method.structure is Method.analysis now", DeprecationWarning, stacklevel=2)
        return self.analysis

    @classmethod
    def settings(cls) -> dict[str, float]:
        """The numbers that ``options`` may change, with their defaults: the public class attributes."""
        found = {n: v for c in reversed(cls.__mro__) for n, v in vars(c).items() if not n.startswith("_")}
        return {n: v for n, v in found.items() if isinstance(v, (int, float))}

    @classmethod
    def checked(cls, options: Mapping[str, float]) -> dict[str, float]:
        """``options``, each of its setting's type.

        Raises:
            ConfigError: see the class.
        """
        known, problems = cls.settings(), []
        for option, value in options.items():
            if option not in known:
                close = difflib.get_close_matches(option, known, n=1)
                meant = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known) or 'none'}"
                problems.append(f"{cls.name} has no setting {option!r}; {meant}")
                continue
            least, most = cls._range(option)
            if isinstance(known[option], int) and not float(value).is_integer():
                problems.append(f"{option} of {cls.name} is a whole number, not {value}")
            elif not (math.isfinite(value) and least <= value <= most):
                between = (
                    f"from {least:g} to {most:g}" if most < math.inf else f"at least {least:g} and finite"
                )
                problems.append(f"{option} of {cls.name} must be {between}, not {value}")
        if problems:
            raise ConfigError("; ".join(problems))
        return {option: type(known[option])(value) for option, value in options.items()}

    @classmethod
    def _range(cls, option: str) -> tuple[float, float]:
        for c in cls.__mro__:
            if option in (found := vars(c).get("ranges", {})):
                return found[option]
        return (0.0 if cls.settings()[option] >= 0 else -math.inf), math.inf

    @abstractmethod
    def values(self, progress: float) -> Tensor:
        """Gate values ``[gates]`` of this step's forward, differentiable in what the method learns."""

    def relaxed(self, progress: float) -> Tensor:
        """Gate values in [0, 1] as they are learnt ``[gates]``: what becomes crisp; by default the forward's."""
        return self.values(progress)

    def loss(self, progress: float) -> Tensor:
        """The method's own part of the loss (a scalar); zero for methods that learn nothing."""
        return torch.zeros((), device=self.device)

    def losses(self, progress: float) -> dict[str, Tensor]:
        """`loss` by part, for methods that have several."""
        return {"pruning": self.loss(progress)}

    def learnt(self) -> list[nn.Parameter]:
        """What gradients change."""
        return [p for p in vars(self).values() if isinstance(p, nn.Parameter)]

    @abstractmethod
    def step(self, before: float, after: float) -> None:
        """Once a step, after backward: progress went from ``before`` to ``after``."""

    @abstractmethod
    def scores(self) -> Tensor:
        """One score per gate ``[gates]``: gates with larger ones are kept longer."""

    def floors(self) -> float | Sequence[float]:
        """The part of a site that scores cannot take away, of all sites or one for each."""
        return 0.0

    def minimum(self) -> Sequence[int]:
        """Of every site, how many of its gates are open if any are; empty: one."""
        return ()

    def ranking(self) -> Ranking:
        """What the solver is told of the gates, as of now.

        Raises:
            ChipNetError: scores are not finite.
        """
        scores = self.scores()
        if wrong := int((~torch.isfinite(scores)).sum()):
            raise ChipNetError(
                f"the scores of {self.name} are not finite (NaN or infinite) for {wrong} of {len(scores)} gates"
            )
        return Ranking(scores, self.floors(), self.minimum())

    def mask(self) -> Tensor:
        """Boolean gates ``[gates]``: the final ones, or those that meet the budget exactly by what is known now."""
        return self.current if self.final else best_mask(self.analysis, self.limits, self.ranking())

    def freezes(self, progress: float) -> bool:
        """Are masks final from this progress on? The pruner then solves for them once, and calls ``fix``."""
        return False

    def fix(self, mask: Tensor) -> None:
        """Take a Boolean mask ``[gates]`` as final: it ships."""
        self.current, self.final = mask, True

    def detach(self) -> None:
        """Let go of the model: remove what the method hung on it."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def cost_fraction(self, gates: Tensor) -> Tensor:
        """Costs of the budget's kinds as fractions of the dense ones, for gate values ``[gates]``."""
        return self.analysis.cost(gates).index_select(-1, self.kinds) / self.dense.to(gates.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self.generator.set_state(state["generator"])


class Gradual(Method):
    """Binary masks all the way, under a budget that shrinks to the asked one: what is trained is what ships.

    The budget falls from the dense cost along the cubic of Zhu & Gupta (2017) until ``shrink`` of the phase;
    masks are solved anew every ``1 / refreshes`` of it (channels may return) and are final from ``freeze`` on,
    so the rest of the phase already trains the network that will be shipped.
    """

    shrink: float = 0.6
    freeze: float = 0.75
    refreshes: int = 60
    floor: float = 0.1
    """Part of every site that scores cannot take away, where the budget allows it: no stage dies early."""
    together: int = 1
    """How many gates a site that can be bypassed keeps if it keeps any, where its branch costs something however
    thin it is: at most so many as cost as much. A floor keeps branches alive; with ``min_channels`` none can die,
    and one is enough."""

    ranges: ClassVar = {"shrink": (1e-6, 1.0), "freeze": (0.0, 1.0), "floor": (0.0, 1.0)}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_device: Tensor | None = None

    def values(self, progress: float) -> Tensor:
        if self._on_device is None:
            self._on_device = self.current.to(self.device, torch.float32)
        return self._on_device

    def step(self, before: float, after: float) -> None:
        refreshed = int(after * self.refreshes) > int(before * self.refreshes)
        if refreshed and not (self.final or self.freezes(after)):
            self._set(best_mask(self.analysis, self._shrunk(after), self.ranking(), full=False))

    def freezes(self, progress: float) -> bool:
        return progress >= self.freeze

    def fix(self, mask: Tensor) -> None:
        super().fix(mask)
        self._on_device = None

    def _shrunk(self, progress: float) -> dict[str, int]:
        """The budget of the moment: kind -> largest integer cost."""
        dense = self.analysis.cost.whole
        return {
            kind: max(limit, int(Cubic(dense[kind], limit, until=self.shrink)(progress)))
            for kind, limit in self.limits.items()
        }

    def floors(self) -> float | Sequence[float]:
        return self.floor

    def minimum(self) -> list[int]:
        return self._minimum

    @cached_property
    def _minimum(self) -> list[int]:
        if self.together <= 1 or self.analysis.options.min_channels:
            return [1] * len(self.analysis.site_gates)
        return [
            max(1, min(self.together, round(self._fixed_cost(i)))) if bypassed else 1
            for i, bypassed in enumerate(self.analysis.bypassed)
        ]

    def _fixed_cost(self, site: int) -> float:
        """What the branch of a site costs however thin it is, counted in gates of all of its sites.

        It is read from the costs of none, one and two gates of each.
        """
        analysis = self.analysis
        without = torch.ones(analysis.gates, dtype=torch.bool)
        without[analysis.site_gates[site]] = False
        without = analysis.canonical(without)
        masks = without.repeat(3, 1)
        for other in analysis.site_of_gate[~without].unique().tolist():
            gates = analysis.site_gates[other]
            dead = gates[~without[gates]]
            masks[1, dead[:1]] = masks[2, dead[:2]] = True
        none, one, two = self.cost_fraction(masks.double().to(self.device)).sum(-1).tolist()
        return (2 * one - two - none) / max(two - one, 1e-9)

    def _set(self, mask: Tensor) -> None:
        self.current, self._on_device = mask, None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "current": self.current, "final": self.final}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._set(state["current"])
        self.final = state["final"]


class Sensing(Gradual):
    """A gradual method that looks at dL/dz as the task's gradient passes, until masks are final.

    ``square`` is the running mean of (dL/dz)^2 per gate, of batch means: the channel's (empirical) Fisher
    information, up to the size of a batch.
    """

    memory: float = 0.98

    ranges: ClassVar = {"memory": (0.0, 0.999999)}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.square = torch.zeros(self.analysis.gates, device=self.device)
        self.seen = 0

    def values(self, progress: float) -> Tensor:
        hard = super().values(progress)
        if not torch.is_grad_enabled() or self.final:
            return hard
        leaf = hard.detach().clone().requires_grad_()
        leaf.register_hook(self._observe)
        return leaf

    @torch.no_grad()
    def _observe(self, grad: Tensor) -> Tensor:
        self.learn(self.sensed(grad.detach().float()))
        return grad

    def sensed(self, grad: Tensor) -> Tensor:
        """What one batch says of each gate ``[gates]``, given dL/dz."""
        return grad.square()

    def learn(self, sample: Tensor) -> None:
        """Add one batch's numbers ``[gates]`` to the running mean; a batch with an infinity says nothing."""
        if torch.isfinite(sample).all():
            self.seen += 1
            self.square.lerp_(sample, 1 - self.memory)

    def sensitivity(self) -> Tensor:
        """The running mean, free of its start at zero."""
        return self.square / (1 - self.memory ** max(self.seen, 1))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "square": self.square.clone(), "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.square.copy_(state["square"])
        self.seen = state["seen"]


def per_site_mean(analysis: Analysis, values: Tensor) -> Tensor:
    """The mean of ``values`` ``[gates]`` over each gate's site: ``[gates]``."""
    site, sizes = analysis.sites_of_gates(values.device)
    total = values.new_zeros(len(sizes)).index_add(0, site, values)
    return (total / sizes)[site]


def per_site(analysis: Analysis, values: Tensor) -> Tensor:
    """``values`` ``[gates]`` relative to their site's mean, so that layers compare."""
    return values / per_site_mean(analysis, values).clamp(min=1e-12)


@torch.no_grad()
def by_gate(model: nn.Module, analysis: Analysis, size: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean over a gate's channels of ``size(weight)``: ``[gates]``, float64, on the CPU.

    ``size`` is given a site's affine weight, channels first ``[channels, ...]``; it returns ``[channels]``. Where a
    gate multiplies the output of a module without such weights, those of the layers that write its channels count.
    """
    total, count = torch.zeros(2, analysis.gates, dtype=torch.float64)
    root = torch.from_numpy(analysis.liveness.root)
    written = torch.zeros(len(root), dtype=torch.float64)
    for site in sorted(analysis.sites, key=lambda s: not s.host.is_layer):
        gated, classes = torch.from_numpy(site.gates >= 0), root[torch.from_numpy(site.slots)]
        if site.host.is_layer:
            weight = getattr(model.get_submodule(site.host.module), site.host.weight.rpartition(".")[2])
            value = size(weight.detach().double().cpu().movedim(site.host.axis, 0))
            written.index_add_(0, classes, value)
        else:
            value = written[classes]
        gates = torch.from_numpy(site.gates)[gated]
        total.index_add_(0, gates, value[gated])
        count.index_add_(0, gates, torch.ones(len(gates), dtype=torch.float64))
    return total / count.clamp(min=1)


def price(method: Method) -> Tensor:
    """What one more channel costs at the dense network, the mean of each site: ``[gates]``.

    The derivative of ``cost_fraction``, summed over the budget's kinds.
    """
    ones = torch.ones(method.analysis.gates, dtype=torch.float64, device=method.device, requires_grad=True)
    with torch.enable_grad():
        (marginal,) = torch.autograd.grad(method.cost_fraction(ones).sum(), ones)
    return per_site_mean(method.analysis, marginal.float())
