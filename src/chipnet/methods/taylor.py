"""First-order Taylor importance of gates."""

from __future__ import annotations

from torch import Tensor

from chipnet.methods.gradual import Sensing


class Taylor(Sensing):
    """Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019 (arXiv:1906.10771).

    The squared change of the loss if a gate z were shut, to first order: (z dL/dz)^2 with the batch's mean
    gradient, averaged over batches. Compared globally, as published. A shut gate (z = 0) gets nothing and does
    not return.
    """

    name = "taylor"

    def sensed(self, grad: Tensor) -> Tensor:
        return (grad * self.current.to(grad.device, grad.dtype)).square()

    def scores(self) -> Tensor:
        return self.sensitivity()
