"""Scorers that learn nothing: they rank gates once, or from the weights as they train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chipnet.methods._base import Gradual, per_site


class Magnitude(Gradual):
    """Size of the affine weights a gate multiplies, relative to its site's mean.

    For norms the scale |gamma| (Liu et al. 2017, Network Slimming, without its L1 term); for convolutions and
    linear layers the L1 norm of the filter (Li et al. 2017, Pruning Filters for Efficient ConvNets). Where a gate
    multiplies the output of a module without such weights, those of the layers that write its channels count.
    """

    name = "magnitude"

    @torch.no_grad()
    def scores(self) -> Tensor:
        parameters = dict(self.model.named_parameters())
        total = torch.zeros(self.structure.gates, dtype=torch.float64)
        root = torch.from_numpy(self.structure.liveness.root)
        written = torch.zeros(len(root), dtype=torch.float64)
        for site in sorted(self.structure.sites, key=lambda s: not s.host.is_layer):
            gated, classes = torch.from_numpy(site.gates >= 0), root[torch.from_numpy(site.slots)]
            if site.host.is_layer:
                weight = parameters[site.host.weight].detach().double().cpu().movedim(site.host.axis, 0)
                size = weight.reshape(weight.shape[0], -1).abs().sum(1)
                size = size / size.mean().clamp(min=1e-12)
                written.index_add_(0, classes, size)
            else:
                size = written[classes]
            total.index_add_(0, torch.from_numpy(site.gates)[gated], size[gated])
        return per_site(self.structure, total)


class Random(Gradual):
    """A random order, the same from beginning to end: what any method must beat."""

    name = "random"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order = torch.rand(self.structure.gates, generator=self.generator, dtype=torch.float64)

    def scores(self) -> Tensor:
        return self.order


class Uniform(Gradual):
    """The same fraction of every site, the first channels: width scaling, as by hand."""

    name = "uniform"

    def scores(self) -> Tensor:
        scores = torch.zeros(self.structure.gates, dtype=torch.float64)
        for gates in self.structure.site_gates:
            if len(gates):
                scores[gates] = 1 - torch.arange(len(gates), dtype=torch.float64) / len(gates)
        return scores
