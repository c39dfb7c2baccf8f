"""Budget-aware regularisation: hard-concrete gates behind a barrier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from chipnet.methods.base import Method


class BAR(Method):
    """Lemaire et al., Structured Pruning of Neural Networks with Budget-Aware Regularization, CVPR 2019
    (arXiv:1811.09332).

    A gate is a sample of the hard-concrete distribution (Louizos et al. 2018, arXiv:1712.01312): with u uniform,

        s = sigmoid((log u - log(1 - u) + log_alpha) / beta),   z = clamp(s (zeta - gamma) + gamma, 0, 1);

    in evaluation z = clamp(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1). The loss is that of knowledge
    distillation from the dense network (temperature 4, weight 0.9) plus

        strength * f(V, a, b) * E[V],   f = x^2 / (1 - x),   x = (V - a) / (b - a)

    where V is the cost of gates that are open in evaluation, E[V] the differentiable cost at P(z > 0), a just
    below the budget, and b, the budget of the moment, slides from the dense cost to the budget along a
    normalised sigmoid of slope 10. f is 0 at or below a and grows without bound towards b.

    Ours differs: V is the exact cost in the budget's kinds (the paper's is volume); costs are fractions of the
    dense ones; f is capped at 1,000; hard masks are solved exactly by log_alpha; ``log_alpha`` starts at 2.2 (a
    trained network must not start with half of its gates shut) and Adam's rate is ``travel`` / steps, so that short
    runs arrive.
    """

    name = "bar"
    distills = (4.0, 0.9)
    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    start: float = 2.2
    travel: float = 15.0
    strength: float = 0.03
    slope: float = 10.0
    margin: float = 1e-4
    tolerance: float = 0.01
    cap: float = 1e3

    ranges: ClassVar = {
        "beta": (1e-3, math.inf), "gamma": (-math.inf, -1e-3), "zeta": (1.001, math.inf),
        "start": (-math.inf, math.inf), "slope": (1e-3, math.inf),
    }  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        noise = 0.01 * torch.randn(self.analysis.gates, generator=self.generator)
        self.log_alpha = nn.Parameter((self.start + noise).to(self.device))
        self.optimizer = torch.optim.Adam([self.log_alpha], lr=self.travel / self.steps)
        self.noise: Tensor | None = None

    def values(self, progress: float) -> Tensor:
        if not torch.is_grad_enabled():
            return self._stretched(torch.sigmoid(self.log_alpha))
        if self.noise is None:
            u = torch.rand(self.analysis.gates, generator=self.generator).clamp(1e-6, 1 - 1e-6)
            self.noise = torch.logit(u).to(self.device)
        return self._stretched(torch.sigmoid((self.noise + self.log_alpha) / self.beta))

    def _stretched(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def loss(self, progress: float) -> Tensor:
        likely = torch.sigmoid(self.log_alpha - self.beta * math.log(-self.gamma / self.zeta))
        expected = self.cost_fraction(likely)
        with torch.no_grad():
            now = self.cost_fraction((self._stretched(torch.sigmoid(self.log_alpha)) > 0).float())
            budget = torch.lerp(
                torch.full_like(self.target, 1 + self.tolerance),
                self.target,
                transition(progress, self.slope),
            )
            f = barrier(now, self.target - self.margin * (1 + self.tolerance), budget, self.cap)
        return self.strength * (f * expected).sum()

    def step(self, before: float, after: float) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.noise = None

    def scores(self) -> Tensor:
        return self.log_alpha.detach()

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "log_alpha": self.log_alpha.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise = None


def transition(progress: float, slope: float = 10.0) -> float:
    """A sigmoid of progress, stretched to go from exactly 0 to exactly 1.

    Examples:
        >>> [round(transition(p), 3) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
        [0.0, 0.07, 0.5, 0.93, 1.0]
    """

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    low = sigmoid(-slope / 2)
    return min((sigmoid(slope * (progress - 0.5)) - low) / (1 - 2 * low), 1.0)


def barrier(cost: Tensor, low: Tensor, high: Tensor, cap: float = 1e3) -> Tensor:
    """f = x^2 / (1 - x) with x = (cost - low) / (high - low): 0 up to ``low``, at most ``cap``.

    Examples:
        >>> at = torch.tensor([0.1, 0.5, 0.75, 1.0, 2.0])
        >>> barrier(at, torch.tensor(0.5), torch.tensor(1.0), cap=100.0)
        tensor([  0.0000,   0.0000,   0.5000, 100.0000, 100.0000])
    """
    x = ((cost - low) / (high - low)).clamp(min=0)
    return torch.where(x < 1, (x.square() / (1 - x)).clamp(max=cap), torch.full_like(x, cap))
