"""The size of weights as a score."""

from __future__ import annotations

from torch import Tensor

from chipnet.methods.gradual import Gradual
from chipnet.methods.scores import by_gate, per_site


class Magnitude(Gradual):
    """A score is the size of the weights that a gate multiplies, relative to the mean of its site.

    The size is |gamma| for the scale of a norm (Liu et al. 2017, Network Slimming, without its L1 term), and the L1
    norm of the filter for convolutions and linear layers (Li et al. 2017, Pruning Filters for Efficient ConvNets,
    arXiv:1608.08710).
    """

    name = "magnitude"

    def scores(self) -> Tensor:
        return per_site(self.analysis, by_gate(self.model, self.analysis, _relative))


def _relative(weight: Tensor) -> Tensor:
    size = weight.flatten(1).abs().sum(1) if weight.dim() > 1 else weight.abs()
    return size / size.mean().clamp(min=1e-12)
