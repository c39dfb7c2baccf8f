"""The two penalties that the paper adds to the task loss: L = L_task + α₁ · crispness + α₂ · budget_loss.

Source: Tiwari et al., ICLR 2021, arXiv:2102.07156; the paper's weights are α₁ = 10 and α₂ = 30. `distillation` is a
task loss, for methods that learn from the dense network.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def crispness(z_tilde: Tensor, z: Tensor) -> Tensor:
    """Mean squared distance between a mask and its Heaviside projection: L_c = mean (z̃ − z)².

    For γ > 0 it is zero only where z̃ is 0 or 1, so it drives masks to be discrete.

    Args:
        z_tilde: z̃ from `chipnet.methods.projections.logistic`; any shape.
        z: z from `chipnet.methods.projections.heaviside`, of the same shape.

    Returns:
        A 0-dim tensor.

    Examples:
        >>> import torch
        >>> from chipnet.methods.projections import heaviside
        >>> half = torch.tensor([0.5, 0.5])
        >>> crispness(half, heaviside(half, gamma=2.0))
        tensor(0.0399)
        >>> crisp = torch.tensor([0.0, 1.0])
        >>> crispness(crisp, heaviside(crisp, gamma=2.0))
        tensor(0.)
    """
    return (z_tilde - z).square().mean()


def budget_loss(cost_fraction: Tensor, budget_fraction: float | Tensor, *, one_sided: bool = False) -> Tensor:
    """Squared distance of the cost from the budget, as fractions of the dense cost: L_b = (V(ẑ) − V₀)².

    Args:
        cost_fraction: V(ẑ) in [0, 1]: 0-dim, or one entry per budget when several must hold at once.
        budget_fraction: V₀ in (0, 1]: a float, or a tensor of the shape of `cost_fraction`.
        one_sided: punish only a cost above the budget: max(V − V₀, 0)². The paper's loss is two-sided: it
            also pulls a network that is too small back up to the budget. With several budgets usually one
            of them binds and the others stay below theirs, which calls for `one_sided=True`.

    Returns:
        A 0-dim tensor, summed over the budgets.

    Examples:
        >>> import torch
        >>> budget_loss(torch.tensor(0.5), 0.25)
        tensor(0.0625)
        >>> budget_loss(torch.tensor(0.125), 0.25)
        tensor(0.0156)
        >>> budget_loss(torch.tensor(0.125), 0.25, one_sided=True)
        tensor(0.)
    """
    excess = cost_fraction - budget_fraction
    if one_sided:
        excess = excess.clamp(min=0)
    return excess.square().sum()


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distance of softened predictions: T² · KL(softmax(teacher / T) ‖ softmax(logits / T)), mean over images.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531. T² keeps
    the size of the gradient when T changes.

    Args:
        logits: of the network that learns, [N, classes].
        teacher: of the network it learns from, of the same shape.
        temperature: T > 0.

    Returns:
        A 0-dim tensor, zero where both predict the same.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> distillation(logits, logits + 3, temperature=4.0)
        tensor(0.)
        >>> distillation(logits, torch.tensor([[4.0, 0.0]]), temperature=4.0)
        tensor(1.7751)
    """
    p = F.log_softmax(teacher / temperature, dim=-1)
    q = F.log_softmax(logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)
