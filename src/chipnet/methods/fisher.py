"""Fisher information of gates over what they cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chipnet.methods.per_image import PerImage
from chipnet.methods.scores import price


class Fisher(PerImage):
    """Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018 (arXiv:1801.05787).

    A score is the rise of the loss if the gate were shut, to second order, with the Fisher information in place of
    the Hessian: half of what `PerImage` averages. It is divided by what a channel costs in the budget's kinds (Liu
    et al. 2021). A shut gate has a score of zero and does not return.
    """

    name = "fisher"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.price = price(self).cpu()

    def scores(self) -> Tensor:
        return self.sensitivity().cpu().double() / self.price.clamp(min=1e-12)
