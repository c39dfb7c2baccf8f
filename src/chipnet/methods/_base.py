"""What a method is, and the frame that all but the paper's share: a binary forward and a shrinking budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from chipnet._harden import Hardener
from chipnet._structure import Structure
from chipnet.schedules import Cubic


class Method(ABC):
    """Gives gates their values while the network trains.

    Args:
        model: the network (read its parameters; do not change them).
        structure: its gates and costs.
        limits: kind -> largest integer cost (the budget).
        steps: optimiser steps of the whole pruning phase.
        seed: of everything random.
        device: where gate values are needed.
    """

    name: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        limits: Mapping[str, int],
        *,
        steps: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.structure, self.limits = model, structure, dict(limits)
        self.steps, self.device = steps, device
        self.generator = torch.Generator().manual_seed(seed)
        self.kinds = torch.tensor([structure.cost.kinds.index(k) for k in limits], device=device)
        dense = structure.cost.whole
        self.dense = torch.tensor([dense[k] for k in limits], dtype=torch.float64, device=device)
        self.target = torch.tensor([min(limits[k] / dense[k], 1.0) for k in limits], device=device)

    @abstractmethod
    def values(self, progress: float) -> Tensor:
        """Gate values ``[gates]`` of this step's forward, differentiable in what the method learns."""

    def relaxed(self, progress: float) -> Tensor:
        """Gate values in [0, 1] as they are learnt ``[gates]``: what becomes crisp; by default the forward's."""
        return self.values(progress)

    def loss(self, progress: float) -> Tensor:
        """The method's own part of the loss (a scalar); zero for methods that learn nothing."""
        return torch.zeros((), device=self.device)

    @abstractmethod
    def step(self, before: float, after: float) -> None:
        """Once a step, after backward: progress went from ``before`` to ``after``."""

    @abstractmethod
    def mask(self) -> Tensor:
        """Boolean gates ``[gates]`` that meet the budget exactly, from what is known now."""

    def settle(self, solve: Callable[[], Tensor]) -> Tensor:
        """The mask that ships: ``solve`` gives one for ``limits``. `Pruner` puts a landing by measurement here."""
        return solve()

    def cost_fraction(self, gates: Tensor) -> Tensor:
        """Costs of the budget's kinds as fractions of the dense ones, for gate values ``[gates]``."""
        return self.structure.cost(gates).index_select(-1, self.kinds) / self.dense.to(gates.dtype)

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.current = torch.ones(self.structure.gates, dtype=torch.bool)
        self.final = False
        self._on_device: Tensor | None = None

    @abstractmethod
    def scores(self) -> Tensor:
        """One score per gate ``[gates]``: larger is kept longer."""

    def values(self, progress: float) -> Tensor:
        if self._on_device is None:
            self._on_device = self.current.to(self.device, torch.float32)
        return self._on_device

    def step(self, before: float, after: float) -> None:
        if self.final:
            return
        if after >= self.freeze:
            self._set(self.settle(lambda: self._solve(1.0, full=True)))
            self.final = True
        elif int(after * self.refreshes) > int(before * self.refreshes):
            self._set(self._solve(after, full=False))

    def mask(self) -> Tensor:
        return self.current if self.final else self._solve(1.0, full=True)

    def _solve(self, progress: float, full: bool) -> Tensor:
        dense = self.structure.cost.whole
        limits = {
            k: v if full else max(v, int(Cubic(dense[k], v, until=self.shrink)(progress)))
            for k, v in self.limits.items()
        }
        return Hardener(self.structure, limits, self.scores()).solve(self.floor, full)

    def _set(self, mask: Tensor) -> None:
        self.current, self._on_device = mask, None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "current": self.current, "final": self.final}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._set(state["current"])
        self.final = state["final"]


def per_site_mean(structure: Structure, values: Tensor) -> Tensor:
    """The mean of ``values`` ``[gates]`` over each gate's site: ``[gates]``."""
    site = structure.site_of_gate.to(values.device)
    count = torch.bincount(site, minlength=len(structure.sites)).clamp(min=1).to(values.dtype)
    return (torch.zeros_like(count).index_add(0, site, values) / count)[site]


def per_site(structure: Structure, values: Tensor) -> Tensor:
    """``values`` ``[gates]`` relative to their site's mean, so that layers compare."""
    return values / per_site_mean(structure, values).clamp(min=1e-12)
