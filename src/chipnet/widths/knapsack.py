"""Which widths lose least within a budget? The sum of the sites' losses is made small under the exact costs of the
whole network, which depend on all widths together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chipnet.analysis.analysis import Analysis
from chipnet.budget.ranking import Ranking, best_mask
from chipnet.widths.curves import Curve

_CLOSE = 1.01
"""Two prices nearer than this ratio are the same."""


class Knapsack:
    """Widths of least loss for prices.

    Args:
        analysis: of the network.
        curves: of its sites.
        limits: kind -> largest integer cost.
        within: ``[gates]``, which may be kept; all, if it is not given.
    """

    def __init__(
        self,
        analysis: Analysis,
        curves: Sequence[Curve],
        limits: Mapping[str, int],
        within: Tensor | None = None,
    ) -> None:
        self.analysis = analysis.priced(limits)
        self.curves = curves
        kinds = self.analysis.cost.kinds
        self.kinds = [kinds.index(kind) for kind in limits]
        self.limits = np.array([max(limit, 1) for limit in limits.values()], dtype=np.float64)
        self.most = [len(c.gates) if within is None else int(within[c.gates].sum()) for c in curves]
        self.allowed = [self._allowed(curve, most) for curve, most in zip(curves, self.most, strict=True)]

    def _allowed(self, curve: Curve, most: int) -> NDArray[np.bool_]:
        """Which numbers of gates give widths that the options allow?"""
        options = self.analysis.options
        channels = torch.from_numpy(self.analysis.sites[curve.site].gates)
        each = torch.tensor([int((channels == g).sum()) for g in curve.gates.tolist()])
        widths = int((channels < 0).sum()) + np.concatenate([[0], each.cumsum(0).numpy()])
        fine = (widths % options.round_to == 0) & (widths >= min(options.min_channels, widths[-1]))
        fine[most] = True
        fine[most + 1 :] = False
        return fine & np.isfinite(curve.losses)

    def mask(self, widths: Sequence[int]) -> Tensor:
        mask = torch.zeros(self.analysis.gates, dtype=torch.bool)
        for curve, width in zip(self.curves, widths, strict=True):
            mask[curve.gates[:width]] = True
        return mask

    def costs(self, some: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Costs as parts of the limits, ``[masks, kinds]``."""
        masks = torch.stack([self.mask(widths) for widths in some]).double()
        return self.analysis.cost(masks)[:, self.kinds].numpy() / self.limits

    def descend(self, widths: list[int], prices: NDArray[np.float64]) -> list[int]:
        """Site by site the width of least loss plus price, the others as they are, until none moves.

        Where a site exists, costs are taken to be linear in its width between one, half and all of it.
        """
        for _ in range(len(self.curves)):
            before = list(widths)
            for i, curve in enumerate(self.curves):
                count = len(curve.gates)
                points = sorted({0, 1, count // 2, count})
                costs = self.costs([[*widths[:i], p, *widths[i + 1 :]] for p in points]) @ prices
                total = curve.losses + np.interp(np.arange(count + 1), points, costs)
                total[~self.allowed[i]] = np.inf
                if self._splits([*widths[:i], 0, *widths[i + 1 :]]):
                    total[0] = np.inf
                widths[i] = int(np.argmin(total))
            if widths == before:
                break
        return widths

    def _splits(self, widths: Sequence[int]) -> bool:
        return not self.analysis.connected(self.mask(widths))

    def loss(self, widths: Sequence[int]) -> float:
        return float(sum(curve.losses[w] for curve, w in zip(self.curves, widths, strict=True)))

    def solve(self) -> tuple[list[int], NDArray[np.float64]]:
        """Widths, and the prices at which they were found: with one kind the price is bisected; of several, the one
        that is furthest above its limit weighs more each time."""
        weights = np.full(len(self.kinds), 1 / len(self.kinds))
        best: tuple[float, list[int], NDArray[np.float64]] | None = None
        for _ in range(1 if len(self.kinds) == 1 else 4):
            widths, price = self._bisect(weights)
            loss = self.loss(widths)
            if best is None or loss < best[0]:
                best = loss, widths, price * weights
            weights = weights * self.costs([widths])[0]
            weights = weights / weights.sum()
        assert best is not None
        return best[1], best[2]

    def _bisect(self, weights: NDArray[np.float64]) -> tuple[list[int], float]:
        """The lowest price at which the widths are within the limits."""
        widest = list(self.most)
        finite = [curve.losses[np.isfinite(curve.losses)] for curve in self.curves]
        scale = max((float(x.max()) for x in finite), default=1.0) or 1.0
        low, high = scale * 1e-9, scale * 1e3
        found = self.descend(list(widest), high * weights)
        while high / low > _CLOSE:
            price = (low * high) ** 0.5
            widths = self.descend(list(widest), price * weights)
            if bool((self.costs([widths])[0] <= 1).all()):
                high, found = price, widths
            else:
                low = price
        return found, high


def rankings(
    analysis: Analysis,
    curves: Sequence[Curve],
    limits: Mapping[str, int],
    within: Tensor | None = None,
) -> Iterator[Ranking]:
    """Rankings to choose from by a measurement: the knapsack's, even widths, and widths halfway between.

    Losses were measured one site at a time. Where many sites narrow together they add up to more, most of all in
    parallel branches, and even widths may lose less. Arguments are those of `Knapsack`.
    """
    best = best_ranking(analysis, curves, limits, within)
    yield best
    even = proportional(analysis, curves, [len(curve.gates) for curve in curves])
    yield even
    both = [best_mask(analysis, limits, ranking) for ranking in (best, even)]
    counts = np.array([[max(int(mask[curve.gates].sum()), 0.5) for curve in curves] for mask in both])
    yield proportional(analysis, curves, np.sqrt(counts[0] * counts[1]).tolist())


def proportional(analysis: Analysis, curves: Sequence[Curve], widths: Sequence[float]) -> Ranking:
    """Gates in an order that keeps the sites' widths in proportion to ``widths``, whatever the budget."""
    scores = torch.zeros(analysis.gates, dtype=torch.float64)
    for curve, width in zip(curves, widths, strict=True):
        scores[curve.gates] = -(torch.arange(len(curve.gates), dtype=torch.float64) + 0.5) / width
    return Ranking(scores)


def best_ranking(
    analysis: Analysis,
    curves: Sequence[Curve],
    limits: Mapping[str, int],
    within: Tensor | None = None,
) -> Ranking:
    """Gates in the order in which the knapsack keeps them: those of its widths first, then by what they gain for
    their price. Arguments are those of `Knapsack`."""
    knapsack = Knapsack(analysis, curves, limits, within)
    widths, prices = knapsack.solve()
    keys = torch.zeros(analysis.gates, 3, dtype=torch.float64)
    for i, (curve, width) in enumerate(zip(curves, widths, strict=True)):
        count = len(curve.gates)
        both = knapsack.costs([[*widths[:i], w, *widths[i + 1 :]] for w in (0, count)]) @ prices
        each = max(float(both[1] - both[0]) / count, np.finfo(np.float64).tiny)
        losses = np.minimum(curve.losses, np.finfo(np.float32).max)
        gain = np.minimum.accumulate((losses[:-1] - losses[1:]) / each)
        keys[curve.gates, 0] = (torch.arange(count) < width).double()
        keys[curve.gates, 1] = torch.from_numpy(gain)
        keys[curve.gates, 2] = -torch.arange(count, dtype=torch.float64)
    order = np.lexsort((keys[:, 2].numpy(), keys[:, 1].numpy(), keys[:, 0].numpy()))
    scores = torch.empty(analysis.gates, dtype=torch.float64)
    scores[torch.from_numpy(order)] = torch.arange(analysis.gates, dtype=torch.float64)
    return Ranking(scores)
