"""The same fraction of every layer."""

from __future__ import annotations

import torch
from torch import Tensor

from chipnet.methods.gradual import Gradual


class Uniform(Gradual):
    """Keeps the first channels of every site, the same fraction everywhere: width scaling, as by hand."""

    name = "uniform"

    def scores(self) -> Tensor:
        scores = torch.zeros(self.analysis.gates, dtype=torch.float64)
        for gates in self.analysis.site_gates:
            if len(gates):
                scores[gates] = 1 - torch.arange(len(gates), dtype=torch.float64) / len(gates)
        return scores
