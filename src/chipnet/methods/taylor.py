"""First-order Taylor importance of gates."""

from __future__ import annotations

from torch import Tensor

from chipnet.methods.gradual import Sensing


class Taylor(Sensing):
    """Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019 (arXiv:1906.10771).

    A score is the squared change of the loss if the gate z were shut, to first order: (z dL/dz)^2 with the mean
    gradient of a batch, averaged over batches. Scores of all layers are compared with each other, as published. A
    shut gate (z = 0) has a score of zero and does not return.
    """

    name = "taylor"

    def sensed(self, grad: Tensor) -> Tensor:
        return (grad * self.current.to(grad.device, grad.dtype)).square()

    def scores(self) -> Tensor:
        return self.sensitivity()
