"""The size of weights as a score."""

from __future__ import annotations

from torch import Tensor

from chipnet.methods.gradual import Gradual
from chipnet.methods.scores import by_gate, per_site


class Magnitude(Gradual):
    """Size of the affine weights a gate multiplies, relative to its site's mean.

    For norms the scale |gamma| (Liu et al. 2017, Network Slimming, without its L1 term); for convolutions and
    linear layers the L1 norm of the filter (Li et al. 2017, Pruning Filters for Efficient ConvNets,
    arXiv:1608.08710).
    """

    name = "magnitude"

    def scores(self) -> Tensor:
        return per_site(self.analysis, by_gate(self.model, self.analysis, _relative))


def _relative(weight: Tensor) -> Tensor:
    size = weight.flatten(1).abs().sum(1) if weight.dim() > 1 else weight.abs()
    return size / size.mean().clamp(min=1e-12)
