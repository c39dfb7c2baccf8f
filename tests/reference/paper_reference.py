"""The paper's equations and its loop, slow and plain: what `chipnet-paper` is checked against, step by step.

Written from the paper (Tiwari et al., ICLR 2021, arXiv:2102.07156), with nothing of the library's: no gates folded
into weights, no liveness formulas, no optimiser of PyTorch's. Numbers are float64; autograd differentiates.

The network is one whose costs can be written by hand, and in which every channel of both convolutions is prunable:

    x [N, 3, H, W] -> conv 3x3 -> norm (z_1) -> relu -> conv 3x3 -> norm (z_2) -> relu -> mean -> linear

The masks multiply the output of each batch norm, as in the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ALPHA_1, ALPHA_2, ALPHA_2_EXTREME = 10.0, 30.0, 45.0
EPOCHS = 20  # of soft pruning


# -- projections, one number at a time --------------------------------------------------------------------
def logistic(psi: float, beta: float) -> float:
    return 1.0 / (1.0 + math.exp(-beta * psi))


def heaviside(z_tilde: float, gamma: float) -> float:
    return 1.0 - math.exp(-gamma * z_tilde) + z_tilde * math.exp(-gamma)


def second_logistic(z: float, s: float) -> float:
    return 1.0 / (1.0 + math.exp(-s * (z - 0.5)))


# The same on tensors, so that autograd can follow. `test_reference.py` checks one against the other.
def projected(psi: Tensor, beta: float, gamma: float) -> tuple[Tensor, Tensor]:
    z_tilde = 1 / (1 + torch.exp(-beta * psi))
    return z_tilde, 1 - torch.exp(-gamma * z_tilde) + z_tilde * math.exp(-gamma)


def continuation(epoch: int) -> tuple[float, float, float]:
    """beta, gamma and s in an epoch (from 0), as published; s is that of the epoch's first step."""
    beta = min(1.0 + 0.02 * epoch, 6.0)
    gamma = min(2.0 * 2.0 ** (epoch // 2), 256.0)
    s = min(10.0 + 5.0 * epoch, 60.0)
    return beta, gamma, s


# -- costs, written by hand -------------------------------------------------------------------------------
def cost(kind: str, k1: float | Tensor, k2: float | Tensor, area: int, classes: int) -> float | Tensor:
    """What remains with k1 and k2 channels, as integers if they are."""
    if kind == "channels":
        return k1 + k2 + classes
    if kind == "volume":
        return area * k1 + area * k2 + classes
    if kind == "params":
        return 27 * k1 + 2 * k1 + 9 * k1 * k2 + 2 * k2 + classes * k2 + classes
    if kind == "macs":
        return area * 27 * k1 + area * 9 * k1 * k2 + classes * k2
    raise AssertionError(kind)


# -- the loop ---------------------------------------------------------------------------------------------
class Reference:
    """Weights, masks and both optimisers' states; `step` is one iteration of the paper's soft pruning.

    Args:
        weights: of the network, by the names that `forward` uses; copied.
        psi: start of the free variables, first those of z_1, then those of z_2.
        kind, fraction: the budget V_0.
        rate: learning rate of psi.
    """

    def __init__(
        self, weights: dict[str, Tensor], psi: Tensor, kind: str, fraction: float, rate: float
    ) -> None:
        self.weights = {n: w.detach().double().clone().requires_grad_() for n, w in weights.items()}
        self.psi = psi.detach().double().clone().requires_grad_()
        self.kind, self.fraction, self.rate = kind, fraction, rate
        self.first = len(self.weights["norm_a.weight"])
        self.moments = {n: [torch.zeros_like(w), torch.zeros_like(w)] for n, w in self.weights.items()}
        self.moments["psi"] = [torch.zeros_like(self.psi), torch.zeros_like(self.psi)]
        self.steps = 0

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        w = self.weights
        x = torch.conv2d(x, w["a.weight"], padding=1)
        x = (self._normed(x, "norm_a") * z[: self.first].reshape(1, -1, 1, 1)).clamp(min=0)
        x = torch.conv2d(x, w["b.weight"], padding=1)
        x = (self._normed(x, "norm_b") * z[self.first :].reshape(1, -1, 1, 1)).clamp(min=0)
        return x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]

    def _normed(self, x: Tensor, name: str) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-5)
        scale, shift = (self.weights[f"{name}.{k}"].reshape(1, -1, 1, 1) for k in ("weight", "bias"))
        return x * scale + shift

    def losses(self, x: Tensor, y: Tensor, beta: float, gamma: float, s: float) -> dict[str, Tensor]:
        """All that the paper's objective is made of."""
        z_tilde, z = projected(self.psi, beta, gamma)
        logits = self.forward(x, z)
        chosen = torch.log_softmax(logits, 1)[torch.arange(len(y)), y]
        z_hat = 1 / (1 + torch.exp(-s * (z - 0.5)))
        area, classes = x.shape[2] * x.shape[3], len(self.weights["fc.bias"])
        whole = cost(self.kind, self.first, len(self.psi) - self.first, area, classes)
        v = cost(self.kind, z_hat[: self.first].sum(), z_hat[self.first :].sum(), area, classes) / whole
        return {
            "task": -chosen.mean(),
            "crispness": ((z_tilde - z) ** 2).mean(),
            "budget": (v - self.fraction) ** 2,
            "v": v,
            "z": z,
        }

    def step(self, x: Tensor, y: Tensor, beta: float, gamma: float, s: float) -> dict[str, Tensor]:
        """L = L_task + alpha_1 L_c + alpha_2 L_b; W and psi move together."""
        parts = self.losses(x, y, beta, gamma, s)
        alpha_2 = ALPHA_2_EXTREME if self.fraction < 0.1 else ALPHA_2
        total = parts["task"] + ALPHA_1 * parts["crispness"] + alpha_2 * parts["budget"]
        names = list(self.weights)
        *grads, grad_psi = torch.autograd.grad(total, [*self.weights.values(), self.psi])
        self.steps += 1
        with torch.no_grad():
            for name, grad in zip(names, grads, strict=True):
                self._adam(name, self.weights[name], grad, rate=1e-3, decay=1e-3)
            self._adam("psi", self.psi, grad_psi, rate=self.rate, decay=0.0)
        return {n: p.detach() for n, p in parts.items()}

    def _adam(self, name: str, value: Tensor, grad: Tensor, rate: float, decay: float) -> None:
        """AdamW (Loshchilov & Hutter 2019): the decay is not part of the gradient."""
        first, second = self.moments[name]
        first.copy_(0.9 * first + 0.1 * grad)
        second.copy_(0.999 * second + 0.001 * grad**2)
        value -= rate * decay * value
        corrected = first / (1 - 0.9**self.steps)
        value -= rate * corrected / (torch.sqrt(second / (1 - 0.999**self.steps)) + 1e-8)

    def hard(self, area: int, classes: int) -> list[bool]:
        """The largest threshold set: channels of largest psi, as many as the budget allows, one by one."""
        whole = cost(self.kind, self.first, len(self.psi) - self.first, area, classes)
        psi = self.psi.tolist()
        order = sorted(range(len(psi)), key=lambda i: -psi[i])
        kept = [False] * len(order)
        for i in order:
            kept[i] = True
            if (
                cost(self.kind, sum(kept[: self.first]), sum(kept[self.first :]), area, classes)
                > self.fraction * whole
            ):
                kept[i] = False
                break
        return kept
