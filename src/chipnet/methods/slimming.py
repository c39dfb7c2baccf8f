"""Network Slimming: sparse norm scales, one threshold for the whole network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chipnet.methods.gradual import Gradual
from chipnet.methods.scores import by_gate


class Slimming(Gradual):
    """Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017 (arXiv:1708.06519).

    The loss has an L1 penalty on the scales of norms, l1 * sum |gamma|. A score is |gamma|, and all layers share
    one threshold. The paper says nothing about a gate without a norm (of a bare convolution): its score is the size
    of the filter relative to the mean of its layer.

    The published l1 of 1e-4 acts for some 125,000 steps. In fewer steps it moves nothing, and the same total pull
    would drown the task's gradient. So l1 grows with the square root of 125,000 / steps.

    Here the cut is gradual and every site has a floor, so that methods differ in their scores alone. As published
    there is one cut, at the end, without a floor: ``"slimming:refreshes=0,freeze=1,floor=0"``.
    """

    name = "slimming"
    l1: float = 1e-4
    published_steps: int = 125_000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.strength = self.l1 * max(self.published_steps / self.steps, 1.0) ** 0.5
        hosts = [site.host for site in self.analysis.sites if site.free]
        parameters = dict(self.model.named_parameters())
        self.scales = [
            p for n in dict.fromkeys(h.weight for h in hosts) if (p := parameters.get(n)) is not None
        ]
        self.scales = [p for p in self.scales if p.dim() == 1]

    def loss(self, progress: float) -> Tensor:
        zero = torch.zeros((), device=self.device)
        if self.final:
            return zero
        return self.strength * sum((p.abs().sum().to(zero.dtype) for p in self.scales), zero)

    def scores(self) -> Tensor:
        return by_gate(self.model, self.analysis, _size)


def _size(weight: Tensor) -> Tensor:
    if weight.dim() == 1:
        return weight.abs()
    size = weight.flatten(1).norm(dim=1)
    return size / size.mean().clamp(min=1e-12)
