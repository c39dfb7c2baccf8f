"""The frame that most methods share: hard masks in the forward, under a budget that shrinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from chipnet.budget.ranking import best_mask
from chipnet.methods.base import Method
from chipnet.methods.schedules import Cubic


class Gradual(Method):
    """Hard masks in every forward, under a budget that shrinks: what is trained is what ships.

    The budget of the moment falls from the dense cost to the budget along the cubic of Zhu & Gupta (2017), until
    ``shrink`` of the phase. Masks are solved anew every ``1 / refreshes`` of the phase, and channels may return.
    From ``freeze`` on masks are final, so the rest of the phase already trains the network that ships.

    Example:
        >>> class Last(Gradual):
        ...     name = "last"
        ...
        ...     def scores(self):
        ...         return torch.arange(self.analysis.gates)
        >>> from chipnet import Pruner
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1))
        >>> Pruner(net, torch.ones(1, 2), "macs=0.5", steps=1, method=Last).mask
        tensor([False, False, False,  True,  True,  True])
    """

    shrink: float = 0.6
    freeze: float = 0.75
    refreshes: int = 60
    floor: float = 0.1
    """The part of every site that scores cannot take away, where the budget allows it: no stage dies early."""
    together: int = 1
    """How many gates a site of a branch keeps if it keeps any. A branch may have a cost that does not depend on how
    thin it is; no more gates count here than cost as much as that. With ``min_channels`` no branch can die, and one
    is enough."""

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
        dense = self.analysis.cost.dense_costs
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


class Averaging(Gradual):
    """A gradual method whose scores come from a running mean of what batches say, until masks are final.

    Attributes:
        square: the running mean ``[gates]``, with the bias of its start at zero.
        seen: how many batches are in it.
    """

    memory: float = 0.98
    """The part of the running mean that a step leaves of what was before."""

    ranges: ClassVar = {"memory": (0.0, 0.999999)}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.square = torch.zeros(self.analysis.gates, device=self.device)
        self.seen = 0

    def learn(self, sample: Tensor) -> None:
        """Add one batch's numbers ``[gates]`` to the running mean, if all are finite."""
        if torch.isfinite(sample).all():
            self.seen += 1
            self.square.lerp_(sample, 1 - self.keeps())

    def sensitivity(self) -> Tensor:
        """The running mean ``[gates]``, without the bias of its start at zero."""
        return self.square / (1 - self.keeps() ** max(self.seen, 1))

    def keeps(self) -> float:
        """The part of the running mean that stays when a batch's numbers come."""
        return self.memory

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "square": self.square.clone(), "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.square.copy_(state["square"])
        self.seen = state["seen"]


class Sensing(Averaging):
    """A gradual method that sees dL/dz, the gradient of the loss by each gate.

    The running mean is that of (dL/dz)^2, for the mean loss of a batch: the channel's (empirical) Fisher
    information, up to the size of a batch.
    """

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
        """What one batch says about each gate ``[gates]``, given dL/dz ``[gates]``."""
        return grad.square()
