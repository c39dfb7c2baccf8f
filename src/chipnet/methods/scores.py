"""What are scores made of: sizes of weights, means over sites, prices of channels?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from chipnet.analysis.analysis import Analysis
from chipnet.methods.base import Method


def per_site_mean(analysis: Analysis, values: Tensor) -> Tensor:
    """The mean of ``values`` ``[gates]`` over each gate's site: ``[gates]``."""
    site, sizes = analysis.sites_of_gates(values.device)
    total = values.new_zeros(len(sizes)).index_add(0, site, values)
    return (total / sizes)[site]


def per_site(analysis: Analysis, values: Tensor) -> Tensor:
    """``values`` ``[gates]`` relative to the mean of their site, so that layers can be compared."""
    return values / per_site_mean(analysis, values).clamp(min=1e-12)


@torch.no_grad()
def by_gate(model: nn.Module, analysis: Analysis, size: Callable[[Tensor], Tensor]) -> Tensor:
    """A number for each gate, made from the weights that it multiplies: ``[gates]``, float64, on the CPU.

    Args:
        model: the network.
        analysis: of it.
        size: from a site's weight, channels first ``[channels, ...]``, to a number for each channel ``[channels]``.
            Where a gate multiplies the output of a module without weights, it gets the numbers of the layers that
            write its channels. Parameters that are used as data count where no layer has their gate.

    Returns:
        The mean of these numbers over all channels that share the gate.

    Example:
        >>> import chipnet
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0], [-4.0]]))
        >>> by_gate(net, chipnet.Structure(net, torch.ones(1, 1)).analysis, lambda w: w.abs().sum(1))
        tensor([3., 4.], dtype=torch.float64)
    """
    total, count = torch.zeros(2, analysis.gates, dtype=torch.float64)
    root = torch.from_numpy(analysis.liveness.root)
    written = torch.zeros(len(root), dtype=torch.float64)
    for site in sorted(analysis.sites, key=lambda s: (s.host.data, not s.host.is_layer)):
        gated, classes = torch.from_numpy(site.gates >= 0), root[torch.from_numpy(site.slots)]
        if site.host.is_layer:
            owner, _, key = site.host.weight.rpartition(".")
            weight = getattr(model.get_submodule(owner), key)
            value = size(weight.detach().double().cpu().movedim(site.host.axis, 0))
            written.index_add_(0, classes, value)
        else:
            value = written[classes]
        if site.host.data:
            gated &= count[torch.from_numpy(site.gates).clamp_min(0)] == 0
        gates = torch.from_numpy(site.gates)[gated]
        total.index_add_(0, gates, value[gated])
        count.index_add_(0, gates, torch.ones(len(gates), dtype=torch.float64))
    return total / count.clamp(min=1)


def price(method: Method) -> Tensor:
    """What one more channel costs in the dense network, the mean over each site: ``[gates]``.

    It is the derivative of ``cost_fraction``, summed over the budget's kinds.
    """
    dense = torch.ones(method.analysis.gates, dtype=torch.bool)
    return per_site_mean(method.analysis, price_at(method, dense, torch.ones_like).float())


def price_at(method: Method, mask: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """What one more channel of each gate costs at a mask: ``[gates]``, float64.

    It is the derivative of ``cost_fraction``, summed over the budget's kinds.

    Args:
        method: of the budget.
        mask: hard, ``[gates]``.
        weigh: makes the kinds' weights in the sum ``[kinds]`` from their costs at the mask.
    """
    gates = mask.to(method.device, torch.float64).requires_grad_()
    with torch.enable_grad():
        costs = method.cost_fraction(gates)
        (marginal,) = torch.autograd.grad((costs * weigh(costs.detach())).sum(), gates)
    return marginal
