"""Our default: ChipNet's projections and losses, learnt inside a binary forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chipnet.losses import budget_loss, crispness
from chipnet.methods._base import Sensing, per_site_mean
from chipnet.projections import project, sharpen
from chipnet.schedules import Continuation, Cubic, Exponential, Linear


class ChipNet(Sensing):
    """Masks learnt through logistic, Heaviside, crispness and budget, forward always binary.

    Every step minimises over psi

        - sum over sites of w log(sum(benefit * z) / sum(benefit)) + a1 crispness(z~, z) + a2 (V(z^) - V_t)^2

    where V_t is the shrinking budget and ``benefit`` a running estimate of how much the task depends on the
    channel: the root mean square of dL/dz at the binary mask (the root of its Fisher information; Theis et al.
    2018, Faster gaze prediction with dense networks and Fisher pruning). At a trained optimum dL/dz itself, the
    paper's signal, averages to zero for open channels and says nothing of them; its square does not.

    *Diminishing returns*: what a site has lost counts by its logarithm, so what remains of a thin site is dear and
    no site dies early. A site's weight ``w`` is its number of gates times the number of layers that share them: a
    residual stream loses a channel for all of its layers.

    *Even pressure*: the budget's gradient is brought to the same mean in every site. V says how much must go,
    benefits say where; otherwise sites whose channels are dear are emptied first.

    *Forgetting*: psi decays (the weight decay of the paper's optimiser, stronger), so that it says what gradients
    asked for lately, not since the dense network.

    Hard masks are the exact solution at the current V_t by psi. A shut channel still sees a gradient and can return
    while the budget shrinks. See ``docs/method.md``.
    """

    name = "chipnet"
    travel = 24.0
    """Way of psi over the phase, in root mean squares of its gradient."""
    decay = 10.0
    """Part of psi that is forgotten per phase: after a tenth of it, psi is down to 1/e."""
    crispness_weight = 1.0
    budget_weight = 30.0
    shared = 1.0
    """Exponent of the number of layers that share a gate in their site's weight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        start = 0.01 * torch.rand(self.structure.gates, generator=self.generator)
        self.psi = nn.Parameter(start.to(self.device))
        self.continuation = Continuation(
            beta=Linear(1.0, 2.0), gamma=Exponential(2.0, 16.0), s=Linear(10.0, 30.0)
        )
        writers = torch.zeros(self.structure.gates)
        for site in self.structure.sites:
            writers[torch.from_numpy(site.gates[site.gates >= 0]).unique()] += 1
        weight = writers**self.shared
        self.weight = (weight / weight.mean()).to(self.device)

    def relaxed(self, progress: float) -> Tensor:
        at = self.continuation(progress)
        return project(self.psi, at.beta, at.gamma)[1]

    def loss(self, progress: float) -> Tensor:
        return sum(self.losses(progress).values(), torch.zeros((), device=self.device))

    def losses(self, progress: float) -> dict[str, Tensor]:
        if self.final or self.seen == 0:
            return {}
        at = self.continuation(progress)
        z_tilde, z = project(self.psi, at.beta, at.gamma)
        shrinking = Cubic(1.0, 0.0, until=self.shrink)(progress)
        target = self.target + (1 - self.target) * shrinking
        z_hat = sharpen(z, at.s)
        if z_hat.requires_grad:
            z_hat.register_hook(self._evenly)
        return {
            "benefit": -(self.weight * self._kept(z).log()).mean(),
            "crispness": self.crispness_weight * crispness(z_tilde, z),
            "budget": self.budget_weight * budget_loss(self.cost_fraction(z_hat), target),
        }

    def _kept(self, z: Tensor) -> Tensor:
        """What remains of the benefit of each gate's site, in (0, 1]: ``[gates]``."""
        benefit = self.sensitivity().sqrt()
        whole = per_site_mean(self.structure, benefit).clamp(min=1e-20)
        return (per_site_mean(self.structure, benefit * z) / whole).clamp(min=1e-6)

    def _evenly(self, gradient: Tensor) -> Tensor:
        """The gradient with the same mean size in every site."""
        size = gradient.abs()
        return gradient / per_site_mean(self.structure, size).clamp(min=1e-20) * size.mean()

    def step(self, before: float, after: float) -> None:
        if self.psi.grad is not None and not self.final:
            with torch.no_grad():
                g = self.psi.grad
                g = g / g.square().mean().sqrt().clamp(min=1e-12)
                self.psi.mul_(max(1 - self.decay / self.steps, 0.0))
                self.psi.sub_(g, alpha=self.travel / self.steps)
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
