"""What is a method? It gives gates their values while a network trains, and scores that say which stay."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from chipnet._util.distributed import Group
from chipnet._util.text import did_you_mean
from chipnet.analysis.analysis import Analysis
from chipnet.budget.ranking import Ranking, best_mask
from chipnet.errors import ChipNetError, ConfigError


class Method(ABC):
    """Gives gates their values while the network trains, and scores from which hard masks are solved.

    A method of your own extends this class, or `Gradual` where it only has scores.

    Args:
        model: the network (read its parameters; do not change them).
        analysis: its gates and costs.
        limits: kind -> largest integer cost (the budget).
        steps: optimiser steps of the whole pruning phase.
        seed: of everything random.
        device: where gate values are needed.
        options: other values for this method's ``settings()``, by name.
        group: the processes that train together. Gradients by gates are averaged over them already.

    Raises:
        ConfigError: an option that is no setting of this method.
    """

    name: ClassVar[str] = "own"
    distills: ClassVar[tuple[float, float] | None] = None
    """(temperature, weight) of a method whose task loss uses the dense network's logits:
    ``(1 - weight) CE + weight * distillation(., ., temperature)``. The loop owns the teacher."""

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Setting -> its smallest and largest value. A setting that is not listed is at least 0, or any number if its
    default is negative. A class inherits what the classes that it extends list."""

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
        group: Group = None,
    ) -> None:
        for option, value in self.read_options(options or {}).items():
            setattr(self, option, value)
        self.model, self.analysis, self.limits = model, analysis.priced(limits), dict(limits)
        self.steps, self.device = steps, device
        self.generator = torch.Generator().manual_seed(seed)
        self.current = torch.ones(analysis.gates, dtype=torch.bool)
        """The hard mask ``[gates]`` of a method that has one while it trains, and of any once it is final."""
        self.final = False
        """The mask is decided: from now on the model computes what will be shipped."""
        self.loss_scale = 1.0
        """What the loss was multiplied with in this step. Gradients by gates are divided by it already."""
        self.handles: list[Any] = []
        """Handles of hooks on the model, for ``detach``."""
        self.group = group
        self.kinds = torch.tensor([self.analysis.cost.kinds.index(k) for k in limits], device=device)
        dense = self.analysis.cost.dense_costs
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
    def read_options(cls, options: Mapping[str, float]) -> dict[str, float]:
        """Values for settings, each turned into its setting's type.

        Raises:
            ConfigError: see the class.
        """
        known, problems = cls.settings(), []
        for option, value in options.items():
            if option not in known:
                meant = did_you_mean(option, known) or f"it has {', '.join(known) or 'none'}"
                problems.append(f"{cls.name} has no setting {option!r}; {meant}")
                continue
            low, high = cls._range(option)
            if isinstance(known[option], int) and not float(value).is_integer():
                problems.append(f"{option} of {cls.name} is a whole number, not {value}")
            elif not (math.isfinite(value) and low <= value <= high):
                between = f"from {low:g} to {high:g}" if high < math.inf else f"at least {low:g} and finite"
                problems.append(f"{option} of {cls.name} must be {between}, not {value}")
        if problems:
            raise ConfigError("; ".join(problems))
        return {option: type(known[option])(value) for option, value in options.items()}

    @classmethod
    def _range(cls, option: str) -> tuple[float, float]:
        """The smallest and the largest value of a setting."""
        for c in cls.__mro__:
            if option in (found := vars(c).get("ranges", {})):
                return found[option]
        return (0.0 if cls.settings()[option] >= 0 else -math.inf), math.inf

    @abstractmethod
    def values(self, progress: float) -> Tensor:
        """Gate values ``[gates]`` of this step's forward, differentiable in what the method learns."""

    def relaxed(self, progress: float) -> Tensor:
        """Gate values ``[gates]`` in [0, 1] as they are learnt, where the forward has others (hard ones)."""
        return self.values(progress)

    def loss(self, progress: float) -> Tensor:
        """The method's own part of the loss (a scalar); zero for methods that learn nothing."""
        return torch.zeros((), device=self.device)

    def losses(self, progress: float) -> dict[str, Tensor]:
        """`loss` by part, for methods whose loss has several."""
        return {"pruning": self.loss(progress)}

    def learnt(self) -> list[nn.Parameter]:
        """The parameters that the method learns."""
        return [p for p in vars(self).values() if isinstance(p, nn.Parameter)]

    def observed(self) -> Sequence[Tensor]:
        """Gradients of this step that the method learns from, besides those of ``learnt()`` and of its values.

        Where one is not finite the method learns nothing from the step, and the pruner warns.
        """
        return ()

    @abstractmethod
    def step(self, before: float, after: float) -> None:
        """Called once a step, after the backward pass: progress went from ``before`` to ``after``."""

    @abstractmethod
    def scores(self) -> Tensor:
        """One score per gate ``[gates]``: gates with larger ones are kept longer."""

    def floors(self) -> float | Sequence[float]:
        """The part of a site's gates that scores cannot take away: one for all sites, or one for each."""
        return 0.0

    def minimum(self) -> Sequence[int]:
        """How many gates of each site are open if any are; empty: one everywhere."""
        return ()

    def ranking(self) -> Ranking:
        """What the solver is told about the gates now.

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
        """The hard mask ``[gates]``: the final one, or the one within the budget that the scores of now give."""
        return self.current if self.final else best_mask(self.analysis, self.limits, self.ranking())

    def freezes(self, progress: float) -> bool:
        """Are masks final from this progress on? The pruner then solves for them once, and calls ``fix``."""
        return False

    def fix(self, mask: Tensor) -> None:
        """Take a Boolean mask ``[gates]`` as final: it ships."""
        self.current, self.final = mask, True

    def detach(self) -> None:
        """Remove what the method hung on the model."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def cost_fraction(self, gates: Tensor) -> Tensor:
        """Costs of the budget's kinds as fractions of the dense ones, for gate values ``[gates]``."""
        return self.analysis.cost(gates).index_select(-1, self.kinds) / self.dense.to(gates.dtype)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue: tensors and plain values."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self.generator.set_state(state["generator"])
