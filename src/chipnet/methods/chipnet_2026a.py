"""The default of 0.2: the paper's projections and losses, learnt inside a binary forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chipnet.analysis.analysis import Analysis
from chipnet.budget.solver import floor_width
from chipnet.methods.gradual import Sensing
from chipnet.methods.losses import budget_loss, crispness
from chipnet.methods.projections import project, sharpen
from chipnet.methods.schedules import Continuation, Cubic, Exponential, Linear
from chipnet.methods.scores import per_site_mean, price


class ChipNet2026a(Sensing):
    """Masks learnt with the paper's projections and losses, while every forward has hard masks.

    Every step follows the gradient by psi of

        - sum over sites of w log((e + k) / (e + 1)) + a1 crispness(z~, z) + a2 (V(z^) - V_t)^2

    where V_t is the shrinking budget, ``k = sum(benefit * z) / sum(benefit)`` is what a site keeps and ``benefit``
    a running estimate of how much the task depends on the channel: the root mean square of dL/dz at the binary mask
    (the root of its Fisher information; Theis et al. 2018, Faster gaze prediction with dense networks and Fisher
    pruning). At a trained optimum dL/dz itself, the paper's signal, averages to zero for open channels and says
    nothing of them; its square does not.

    *Diminishing returns*: what a site has lost counts by its logarithm, so what remains of a thin site is
    expensive. A site whose death cuts the network has e = 0: losing all of it costs infinitely much. One that the
    input can bypass, such as the inside of a residual branch, may be lost at a finite price: e = ``bypass``.

    *Weights*: ``w`` is a site's number of gates times l^``shared``, l the number of layers that share them (a
    residual stream loses a channel for all of its layers), divided by the root of the site's cost, counted as the
    budget does: channels are kept where they are cheap. At most ``most_layers`` of a stream's layers count, in l
    and in the cost, so a stream outweighs its branches by no more in a deep network than in a shallow one.
    For sites that the input can bypass, and for a stem before such branches, ``w`` is also multiplied by the root
    of the site's mean benefit, relative to the mean of these sites: more is kept where the task depends on it.

    *Branches of a minimum width*: a part of a branch's cost may not depend on how thin the branch is (with channels
    or volume as the budget: all that its last layer adds to the stream). Such a branch has no floor. It keeps
    ``together`` channels, or none.

    *Even pressure*: the budget's gradient is scaled to the same mean in every site. V says how much must go,
    benefits say where. Otherwise sites whose channels are expensive are emptied first.

    *Forgetting*: psi decays (the weight decay of the paper's optimiser, stronger), so that it follows the gradients
    of late, not all since the dense network.

    Hard masks are the exact solution at the current V_t by psi. A shut channel still sees a gradient and can return
    while the budget shrinks. See ``docs/method.md``.
    """

    name = "chipnet-2026a"
    floor = 0.05
    """The floor of sites without a minimum width. Where this part of every site would take more than half of the
    budget, sites that can be bypassed have no floor, and the others keep two channels: a single one whose ReLU
    shuts would end the network."""
    together = 6
    travel = 24.0
    """How far psi may move over the phase, in root mean squares of its gradient."""
    decay = 10.0
    """How much psi decays over the phase: within a tenth of it to 1/e."""
    crispness_weight = 1.0
    budget_weight = 30.0
    shared = 1.25
    """Exponent, in a site's weight, of the number of layers that share its gates."""
    most_layers = 4
    """Most layers of a stream that count in its weight; 0: all."""
    thrift = 0.5
    """Exponent of a site's cost, by which its weight is divided."""
    dependence = 0.5
    """Exponent of the mean benefit in the weight of a site that can be bypassed, and of a stem before such."""
    bypass = 0.05
    """What is added to the part that a site keeps, where the input reaches the output without the site."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        start = 0.01 * torch.rand(self.analysis.gates, generator=self.generator)
        self.psi = nn.Parameter(start.to(self.device))
        self.continuation = Continuation(
            beta=Linear(1.0, 2.0), gamma=Exponential(2.0, 16.0), s=Linear(10.0, 30.0)
        )
        site, sizes = self.analysis.sites_of_gates(self.device)
        cost = price(self) * sizes[site]
        cost = cost.clamp(min=1e-3 * float(cost.mean()))
        sharing = _layers(self.analysis).to(self.device)
        counted = sharing.clamp(max=self.most_layers) if self.most_layers > 0 else sharing
        self.worth = counted**self.shared / (cost * (counted / sharing)) ** self.thrift
        self.may_die = torch.tensor(self.analysis.bypassed, dtype=torch.float32, device=self.device)[site]
        stem = (site == site[0]) & (sharing == 1) & (self.may_die.max() > 0)
        self.weighed = torch.maximum(self.may_die, stem.to(self.may_die))
        self._floors = self._floors_by_site()

    def floors(self) -> list[float]:
        return self._floors

    def _floors_by_site(self) -> list[float]:
        crowded = self.floor > 0 and self._floor_takes() > 0.5
        found = [self.floor] * len(self.analysis.site_gates)
        for i, gates in enumerate(self.analysis.site_gates):
            if self.analysis.bypassed[i]:
                found[i] = 0.0 if crowded or self.minimum()[i] > 1 else self.floor
            elif crowded:
                found[i] = max(self.floor, 2 / max(len(gates), 2))
        return found

    def _floor_takes(self) -> float:
        """The part of the budget that the floor alone would take."""
        mask = torch.zeros(self.analysis.gates, dtype=torch.float64)
        for gates in self.analysis.site_gates:
            mask[gates[: floor_width(self.floor, len(gates))]] = 1.0
        costs = dict(zip(self.analysis.cost.kinds, self.analysis.cost(mask).tolist(), strict=True))
        return max(costs[kind] / max(limit, 1) for kind, limit in self.limits.items())

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
            "benefit": self._lost(z),
            "crispness": self.crispness_weight * crispness(z_tilde, z),
            "budget": self.budget_weight * budget_loss(self.cost_fraction(z_hat), target),
        }

    def _lost(self, z: Tensor) -> Tensor:
        """The weighted mean over gates of what their sites have lost, by its logarithm: a scalar, at least 0."""
        benefit = self.sensitivity().sqrt()
        mean = per_site_mean(self.analysis, benefit).clamp(min=1e-20)
        kept = (per_site_mean(self.analysis, benefit * z) / mean).clamp(min=1e-6)
        typical = (self.weighed * mean).sum() / self.weighed.sum().clamp(min=1)
        depends = (mean / typical.clamp(min=1e-20)) ** (self.dependence * self.weighed)
        weight, spare = self.worth * depends, self.bypass * self.may_die
        lost = torch.log((spare + 1) / (spare + kept))
        return (weight * lost).mean() / weight.mean()

    def _evenly(self, gradient: Tensor) -> Tensor:
        """The gradient with the same mean size in every site."""
        size = gradient.abs()
        return gradient / per_site_mean(self.analysis, size).clamp(min=1e-20) * size.mean()

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


def _layers(analysis: Analysis) -> Tensor:
    """How many layers share each gate: ``[gates]``."""
    layers = torch.zeros(analysis.gates)
    for site in analysis.sites:
        layers[torch.from_numpy(site.gates[site.gates >= 0]).unique()] += 1
    return layers
