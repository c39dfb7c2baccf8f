"""Our default: ChipNet's projections and losses, learnt inside a binary forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chipnet.losses import budget_loss, crispness
from chipnet.methods._base import Sensing, per_site, price
from chipnet.projections import project, sharpen
from chipnet.schedules import Continuation, Cubic, Exponential, Linear


class ChipNet(Sensing):
    """Masks learnt through logistic, Heaviside, crispness and budget, forward always binary.

    Every step minimises over psi

        - mean(benefit * z) + a1 crispness(z~, z) + a2 (V(z^) - V_t)^2

    where V_t is the shrinking budget, and ``benefit`` is a running estimate of how much the task depends on the
    channel: the root mean square of dL/dz at the binary mask (the root of its Fisher information; Theis et al.
    2018, Faster gaze prediction with dense networks and Fisher pruning), relative to the layer's mean. At a
    trained optimum dL/dz itself, the paper's signal, averages to zero for open channels and says nothing of them;
    its square does not. A shut channel still sees a gradient and can return while the budget shrinks.

    Layers compare by the root of what a channel costs: a plain knapsack (benefit per cost) empties the layers
    that are dear per channel, equal fractions everywhere ignore the cost.

    Hard masks are the exact solution at the current V_t by psi. See ``docs/method.md``.
    """

    name = "chipnet"
    travel = 8.0
    crispness_weight = 1.0
    budget_weight = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        start = 0.01 * torch.rand(self.structure.gates, generator=self.generator)
        self.psi = nn.Parameter(start.to(self.device))
        self.continuation = Continuation(
            beta=Linear(1.0, 2.0), gamma=Exponential(2.0, 16.0), s=Linear(10.0, 30.0)
        )
        cost = price(self)
        self.price = (cost / cost.mean().clamp(min=1e-12)).sqrt()

    def relaxed(self, progress: float) -> Tensor:
        at = self.continuation(progress)
        return project(self.psi, at.beta, at.gamma)[1]

    @torch.no_grad()
    def benefit(self) -> Tensor:
        """How much the task depends on each channel, relative to its site's mean, times its site's price."""
        return per_site(self.structure, self.sensitivity().sqrt()) * self.price

    def loss(self, progress: float) -> Tensor:
        return sum(self.losses(progress).values(), torch.zeros((), device=self.device))

    def losses(self, progress: float) -> dict[str, Tensor]:
        if self.final or self.seen == 0:
            return {}
        at = self.continuation(progress)
        z_tilde, z = project(self.psi, at.beta, at.gamma)
        shrinking = Cubic(1.0, 0.0, until=self.shrink)(progress)
        target = self.target + (1 - self.target) * shrinking
        cost = self.cost_fraction(sharpen(z, at.s))
        return {
            "benefit": -(self.benefit() * z).mean(),
            "crispness": self.crispness_weight * crispness(z_tilde, z),
            "budget": self.budget_weight * budget_loss(cost, target),
        }

    def step(self, before: float, after: float) -> None:
        if self.psi.grad is not None and not self.final:
            with torch.no_grad():
                g = self.psi.grad
                g = g / g.square().mean().sqrt().clamp(min=1e-12)
                self.psi.sub_(g, alpha=self.travel / max(self.steps, 1))
            self.psi.grad = None
        super().step(before, after)

    def scores(self) -> Tensor:
        return self.psi.detach()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "psi": self.psi.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        with torch.no_grad():
            self.psi.copy_(state["psi"])
