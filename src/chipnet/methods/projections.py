"""The paper's projections from the free variable ψ of a channel to its mask.

    ψ ──logistic──▶ z̃ ──heaviside──▶ z ──sharpen──▶ ẑ

z multiplies the channel in the forward pass; ẑ is what the cost counts. All functions are pure, elementwise
and differentiable, and keep the shape, dtype and device of their first argument. The sharpness parameters
may be floats or 0-dim tensors; how they grow during training is the business of `chipnet.methods.schedules`.

Source: Tiwari et al., "ChipNet: Budget-Aware Pruning with Heaviside Continuous Approximations", ICLR 2021,
arXiv:2102.07156.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logistic(psi: Tensor, beta: float | Tensor, psi0: float | Tensor = 0.0) -> Tensor:
    """Squash the free variable into (0, 1): z̃ = σ(β (ψ − ψ₀)), the paper's logistic projection.

    Args:
        psi: ψ, one free variable per channel; any shape.
        beta: β > 0, the slope of the step; larger is sharper.
        psi0: ψ₀, where the step is centred (0 in the paper).

    Returns:
        z̃, of the shape of `psi`.

    Examples:
        >>> logistic(torch.tensor([-1.0, 0.0, 1.0]), beta=2.0)
        tensor([0.1192, 0.5000, 0.8808])
    """
    return torch.sigmoid(beta * (psi - psi0))


def heaviside(z_tilde: Tensor, gamma: float | Tensor) -> Tensor:
    """Push (0, 1] towards 1: z = 1 − exp(−γ z̃) + z̃ exp(−γ), the paper's continuous Heaviside projection.

    It maps 0 to 0 and 1 to 1 for every γ, is increasing, and is the identity at γ = 0. As γ grows it tends
    to the step that leaves only z̃ = 0 shut.

    Args:
        z_tilde: z̃ in [0, 1]; any shape.
        gamma: γ ≥ 0, the sharpness.

    Returns:
        z in [0, 1] (up to rounding), of the shape of `z_tilde`.

    Examples:
        >>> z_tilde = torch.tensor([0.0, 0.1, 0.5, 1.0])
        >>> heaviside(z_tilde, gamma=2.0)
        tensor([0.0000, 0.1948, 0.6998, 1.0000])
        >>> heaviside(z_tilde, gamma=64.0)
        tensor([0.0000, 0.9983, 1.0000, 1.0000])
    """
    # A float is exponentiated as a float: as a tensor it would be float32 and spoil a float64 computation.
    floor = torch.exp(-gamma) if isinstance(gamma, Tensor) else math.exp(-gamma)
    # expm1 keeps the digits of a nearly shut channel, which 1 − exp(·) would cancel.
    return -torch.expm1(-gamma * z_tilde) + z_tilde * floor


def project(psi: Tensor, beta: float | Tensor, gamma: float | Tensor) -> tuple[Tensor, Tensor]:
    """Apply both projections: z̃ = σ(β ψ), then z = heaviside(z̃, γ).

    Args:
        psi: ψ, one free variable per channel; any shape.
        beta: β > 0 of `logistic`.
        gamma: γ ≥ 0 of `heaviside`.

    Returns:
        (z̃, z), each of the shape of `psi`: the crispness loss needs both, the forward pass needs z.

    Examples:
        >>> z_tilde, z = project(torch.tensor([-20.0, 0.0, 20.0]), beta=1.0, gamma=8.0)
        >>> z_tilde
        tensor([2.0612e-09, 5.0000e-01, 1.0000e+00])
        >>> z
        tensor([1.6490e-08, 9.8185e-01, 1.0000e+00])
    """
    z_tilde = logistic(psi, beta)
    return z_tilde, heaviside(z_tilde, gamma)


def sharpen(z: Tensor, s: float | Tensor) -> Tensor:
    """Round a mask to nearly whole channels, differentiably: ẑ = σ(s (z − ½)).

    The budget is evaluated on ẑ, so that a half-open channel cannot be counted as half a channel. Note that
    the end points are not exact: sharpen(1, s) = σ(s/2), about 0.993 at the paper's initial s = 10.

    Args:
        z: projected mask in [0, 1]; any shape.
        s: the slope s > 0.

    Returns:
        ẑ in (0, 1), of the shape of `z`.

    Examples:
        >>> sharpen(torch.tensor([0.0, 0.4, 0.5, 1.0]), s=10.0)
        tensor([0.0067, 0.2689, 0.5000, 0.9933])
    """
    return torch.sigmoid(s * (z - 0.5))
