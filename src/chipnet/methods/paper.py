"""ChipNet as published: soft masks, crispness and budget losses, hard masks at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chipnet.methods.base import Method
from chipnet.methods.losses import budget_loss, crispness
from chipnet.methods.projections import project, sharpen
from chipnet.methods.schedules import Continuation


class ChipNetPaper(Method):
    """Tiwari et al., ChipNet, ICLR 2021 (arXiv 2102.07156), with its published settings.

    psi starts uniformly in [0, 0.01]. The forward multiplies channels by z. The loss has 10 times the crispness and
    30 times the budget loss (45 times, where less than a tenth may remain), and Adam moves psi. In the published
    28,000 steps at a learning rate of 1e-3 psi can travel 28; shorter runs get the rate that allows the same.
    """

    name = "chipnet-paper"
    travel = 28.0
    crispness_weight = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        start = 0.01 * torch.rand(self.analysis.gates, generator=self.generator)
        self.psi = nn.Parameter(start.to(self.device))
        self.continuation = Continuation.paper()
        self.optimizer = torch.optim.Adam([self.psi], lr=self.travel / max(self.steps, 1))
        self.budget_weight = 45.0 if float(self.target.min()) < 0.1 else 30.0

    def values(self, progress: float) -> Tensor:
        at = self.continuation(progress)
        return project(self.psi, at.beta, at.gamma)[1]

    def loss(self, progress: float) -> Tensor:
        return sum(self.losses(progress).values(), torch.zeros((), device=self.device))

    def losses(self, progress: float) -> dict[str, Tensor]:
        at = self.continuation(progress)
        z_tilde, z = project(self.psi, at.beta, at.gamma)
        cost = self.cost_fraction(sharpen(z, at.s))
        return {
            "crispness": self.crispness_weight * crispness(z_tilde, z),
            "budget": self.budget_weight * budget_loss(cost, self.target),
        }

    def step(self, before: float, after: float) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def scores(self) -> Tensor:
        return self.psi.detach()

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "psi": self.psi.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        with torch.no_grad():
            self.psi.copy_(state["psi"])
        self.optimizer.load_state_dict(state["optimizer"])
