"""Our default: Fisher information with diminishing returns. The next channel of a thin site is worth more."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from chipnet.methods.per_image import PerImage
from chipnet.methods.scores import price_at


class ChipNet(PerImage):
    """Fisher pruning (Theis et al. 2018, arXiv:1801.05787) with a law of how a site's loss grows as it thins out.

    *What is measured*: every gate's Fisher information f, image by image, at the mask of the moment. It is how much
    the loss rises if that gate alone were shut.

    *What is assumed*: if a site keeps the part k of its gates, its loss grows like ``k^-law``. So the Fisher
    information of its gates grows like ``k^-(1 + law)``, and ``a = f k^(1 + law)`` stays the same while the site
    thins out. The mean over batches is that of a, so measurements at older masks count as well. The gate with the
    r-th largest a of n is worth ``a (n / r)^(1 + law)``.

    *What a gate costs* is read from the budget's exact costs, as their derivative at the mask of the moment, the
    mean over the open gates of a site. Of several kinds, each counts by how much of its limit is used.

    A score is what a gate is worth over what it costs. Where the input can bypass a site, shutting it saves
    more than its gates: the branch dies. What the branch costs apart from the site's gates is shared by the
    first of them, as many as make the best of it together (`minimum`): they live or die as one. There is no
    floor: thin sites are worth much.

    A shut gate has a score of zero and does not return.
    """

    name = "chipnet"
    floor = 0.0
    law: float = 0.5
    """0: the loss grows by the logarithm of what is left. 1: in inverse proportion to it."""

    ranges: ClassVar = {"law": (0.0, 4.0)}

    @torch.no_grad()
    def learn(self, sample: Tensor) -> None:
        site, sizes = self.analysis.sites_of_gates(self.device)
        kept = torch.zeros_like(sizes).index_add(0, site, self.current.to(sizes))
        super().learn(sample * (kept.clamp(min=1) / sizes)[site] ** (1 + self.law))

    def scores(self) -> Tensor:
        worth, price = self.sensitivity().cpu().double(), self._prices()
        scores = torch.zeros_like(worth)
        for gates, alone, minimum in zip(self.analysis.site_gates, self._alone, self._minimum, strict=True):
            size, gates = len(gates), gates[self.current[gates]]
            if len(gates):
                order = gates[torch.argsort(worth[gates], descending=True, stable=True)]
                gain = worth[order] * size ** (1 + self.law) * self._law(len(order))
                gain[:minimum] = gain[:minimum].sum() / (alone + minimum)
                scores[order] = gain / price[gates].mean().clamp(min=1e-12)
        return scores

    def _law(self, count: int) -> Tensor:
        """``r^-(1 + law)`` for r from one to ``count``."""
        return torch.arange(1, count + 1, dtype=torch.float64) ** -(1 + self.law)

    @cached_property
    def _alone(self) -> list[float]:
        """What the branch of each site that the input can bypass costs apart from the site's gates, counted in
        gates of all sites of the branch, in the dense network. 0 of other sites, and where no branch may die."""
        never = self.analysis.options.min_channels > 0
        return [
            0.0 if never or not bypassed else max(self._fixed_cost(i), 0.0)
            for i, bypassed in enumerate(self.analysis.bypassed)
        ]

    @cached_property
    def _minimum(self) -> list[int]:
        """How many gates, worth the same, make the best of what they and the rest of their branch cost."""
        found = []
        for gates, alone in zip(self.analysis.site_gates, self._alone, strict=True):
            together = self._law(len(gates)).cumsum(0) / (alone + torch.arange(1, len(gates) + 1))
            found.append(int(together.argmax()) + 1 if alone > 0 else 1)
        return found

    def _prices(self) -> Tensor:
        """What one more channel of each gate would cost now, in parts of the limits: ``[gates]``, on the CPU.

        Each kind counts by how much of its limit is used now, relative to the one that is used most.
        """
        target = self.target.double()

        def weigh(costs: Tensor) -> Tensor:
            used = costs / target
            return used / used.max() / target

        return price_at(self, self.current, weigh).cpu()
