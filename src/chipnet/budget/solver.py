"""From scores to hard masks that meet a budget exactly.

The promise: the result costs at most the budget, no further channel fits into it (of those that may be opened one
by one), the input still reaches every output, and nothing is left that only emits a constant (a branch with one
fully dead layer dies whole).
All costs here are the exact integers of the network that will be shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from chipnet.analysis.analysis import Analysis
from chipnet.analysis.kinds import KIND, LATENCY
from chipnet.budget.budget import Budget
from chipnet.errors import BudgetError

_BATCH = 64


def floor_width(part: float, width: int) -> int:
    """How many of a site's ``width`` units a floor keeps: ``part`` of them, at least one."""
    return max(1, round(part * width))


def limits(analysis: Analysis, budget: Budget) -> dict[str, int]:
    """Largest integer cost of each kind the budget names, in the unit of the kind.

    Raises:
        BudgetError: it names latency, which has not been measured.
    """
    if LATENCY in budget.kinds and LATENCY not in analysis.cost.kinds:
        raise BudgetError("a latency budget needs measured layers: call structure.time(model) first")
    return budget.limits(analysis.priced(budget.kinds).cost.dense_costs)


class Units:
    """What the solver opens and shuts: gates, or blocks of them where widths are aligned or have a minimum.

    The best-scored gates of a site make its first block, ``minimum`` of them or more. A block ends where the site's
    width is a multiple of ``round_to``; the last one may be smaller (a site may always stay whole). Masks of the
    solver are over units.
    """

    def __init__(self, analysis: Analysis, scores: Tensor, minimum: Sequence[int] = ()) -> None:
        self.analysis = analysis
        self.of_gate = torch.arange(analysis.gates)
        self.site = analysis.site_of_gate
        self.scores = scores
        self.of_site = analysis.site_gates
        self.partial: dict[int, Tensor] = {}
        """Units of an odd width -> the other units of the site, which must be open before."""
        minimum = minimum or [1] * len(self.of_site)
        if analysis.options.round_to > 1 or max(minimum, default=1) > 1:
            self._align(analysis.options.round_to, minimum)
        self.count = len(self.scores)
        self.first = torch.arange(self.count)
        """The unit that opens before each: the first of a site with a minimum, else itself."""
        for units, width in zip(self.of_site, minimum, strict=True):
            if width > 1:
                self.first[units] = units[:1]
        self.size = torch.bincount(self.of_gate, minlength=self.count)
        """Gates in each unit."""
        self.always = self._first_of_sites(analysis.options.min_channels)
        """Units that no budget shuts."""

    def _align(self, multiple: int, minimum: Sequence[int]) -> None:
        sites: list[int] = []
        scores: list[Tensor] = []
        self.of_site = []
        for i, gates in enumerate(self.analysis.site_gates):
            channels = torch.from_numpy(self.analysis.sites[i].gates)
            width, first = int((channels < 0).sum()), len(sites)
            block: list[int] = []
            for g in gates[torch.argsort(self.scores[gates], descending=True, stable=True)].tolist():
                block.append(g)
                width += int((channels == g).sum())
                if width % multiple == 0 and (len(sites) > first or len(block) >= minimum[i]):
                    self._close(block, i, sites, scores)
                    block = []
            if block:
                self.partial[len(sites)] = torch.arange(first, len(sites))
                self._close(block, i, sites, scores)
            self.of_site.append(torch.arange(first, len(sites)))
        self.site, self.scores = torch.tensor(sites, dtype=torch.int64), torch.stack(scores)

    def _close(self, block: list[int], site: int, sites: list[int], scores: list[Tensor]) -> None:
        self.of_gate[block] = len(sites)
        own = self.scores[block]
        scores.append(own.mean().clamp(own.min(), own.max()))  # a mean of equals may be rounded off them
        sites.append(site)

    def _first_of_sites(self, channels: int) -> Tensor:
        always = torch.zeros(self.count, dtype=torch.bool)
        if channels > 0:
            for i, units in enumerate(self.of_site):
                gate_of_channel = torch.from_numpy(self.analysis.sites[i].gates)
                unit = self.of_gate[gate_of_channel[gate_of_channel >= 0]]
                width = int((gate_of_channel < 0).sum())
                for u in units[torch.argsort(self.scores[units], descending=True, stable=True)].tolist():
                    if width >= channels:
                        break
                    always[u] = True
                    width += int((unit == u).sum())
        return always

    def gates(self, masks: Tensor) -> Tensor:
        """Masks over gates for ``masks`` over units."""
        return masks.index_select(-1, self.of_gate)

    def connected(self, mask: Tensor) -> bool:
        return self.analysis.connected(self.gates(mask))

    def canonical(self, mask: Tensor) -> Tensor:
        """Shut units none of whose gates does anything."""
        return self._any(self.analysis.canonical(self.gates(mask))) | self.always

    def useful(self, masks: Tensor) -> Tensor:
        """Which units do something, if open."""
        return self._any(self.analysis.useful(self.gates(masks)) > 0.5)

    def ready(self, mask: Tensor) -> Tensor:
        """Which units may be opened next. No site gets thinner than its minimum; a smaller unit comes last."""
        out = mask[self.first] | (self.first == torch.arange(self.count))
        for unit, others in self.partial.items():
            out[unit] = bool(mask[others].all())
        return out

    def _any(self, gates: Tensor) -> Tensor:
        out = torch.zeros(*gates.shape[:-1], self.count, dtype=torch.int64)
        return out.index_add(-1, self.of_gate, gates.long()) > 0

    def cost(self, masks: Tensor) -> Tensor:
        """Costs ``[..., kinds]`` for values of units ``[..., units]`` in [0, 1]."""
        return self.analysis.cost(self.gates(masks.double()))


class Hardener:
    """Solves for masks within ``limits`` (kind -> largest integer cost).

    Args:
        analysis: of the network.
        limits: what the mask may cost.
        scores: of the gates; None: one is as good as another.
        minimum: ``[sites]``, how many of a site's gates are open if any are; all, where it has fewer. With
            ``round_to`` it is the next width that is aligned. Where no connected network of such widths fits, none
            of them counts.
    """

    def __init__(
        self,
        analysis: Analysis,
        limits: Mapping[str, int],
        scores: Tensor | None = None,
        minimum: Sequence[int] = (),
    ) -> None:
        self.analysis = analysis = analysis.priced(limits)
        if scores is None:
            scores = -torch.arange(analysis.gates, dtype=torch.float64)
        self.units = Units(analysis, _of_blocks(analysis, scores.detach().cpu().double()), minimum)
        self._narrow = (analysis, limits, scores) if max(minimum, default=1) > 1 else None
        self.kinds = analysis.cost.kinds
        self.limits = torch.full((len(self.kinds),), float("inf"), dtype=torch.float64)
        for kind, limit in limits.items():
            self.limits[self.kinds.index(kind)] = float(limit)

    def fits(self, masks: Tensor) -> Tensor:
        """Which of ``masks`` ``[..., units]`` are within the limits."""
        return (self.units.cost(masks) <= self.limits).all(-1)

    def check(self) -> None:
        """Refuse limits that no connected network meets.

        Raises:
            BudgetError: names the smallest reachable cost of every kind asked for.
        """
        if not bool(self.fits(self._smallest())):
            raise self._refusal()

    def _refusal(self) -> BudgetError:
        """What to raise where no connected network is within the limits."""
        reachable = smallest_costs(self.analysis)
        limits = dict(zip(self.kinds, self.limits.tolist(), strict=True))
        limited = [k for k, v in limits.items() if v != float("inf")]
        dense = self.analysis.cost.dense_costs
        parts = [
            f"{k}: asked {int(limits[k]):,}, smallest reachable {reachable[k]:,} "
            f"({reachable[k] / dense[k]:.2%} of {dense[k]:,}{KIND[k].unit})"
            for k in limited
        ]
        together = all(reachable[k] <= limits[k] for k in limited)
        return BudgetError(
            (
                "no connected network meets all of the budget at once, each kind alone could be met. "
                if together
                else "the budget is below what a connected network costs. "
            )
            + "; ".join(parts)
            + ". Ask for more"
            + (" of at least one kind." if len(limited) > 1 else ".")
        )

    def solve(self, floor: float | Sequence[float] = 0.0, full: bool = True) -> Tensor:
        """Boolean mask ``[gates]``: the gates of highest score within the limits.

        Args:
            floor: fraction of every site's gates that is kept before scores decide, where the limits allow it; or
                one for each site.
            full: spend what is left of the budget gate by gate. Without it only free gates are opened.

        Raises:
            BudgetError: the limits cannot be met.
        """
        units = self.units
        order = torch.argsort(units.scores, descending=True, stable=True)
        kept = self._protected(order, floor)
        if kept is None:
            if self._narrow is None:
                raise self._refusal()
            return Hardener(*self._narrow).solve(floor, full)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))

        # More open gates never cost less: bisect the number of gates taken by score.
        low, high = 0, len(order)
        while low < high:
            middle = (low + high + 1) // 2
            if bool(self.fits((rank < middle) | kept)):
                low = middle
            else:
                high = middle - 1
        mask = units.canonical((rank < low) | kept)
        mask = self._open_free(mask)
        return units.gates(self._fill(mask, order) if full else mask)

    # -- what must stay -----------------------------------------------------------------------------------
    def _protected(self, order: Tensor, floor: float | Sequence[float]) -> Tensor | None:
        """What holds the network together and, where it fits, the floor; None where nothing fits."""
        units = self.units
        kept = units.always.clone()
        floors = [floor] * len(units.of_site) if isinstance(floor, (int, float)) else floor
        if any(floors):
            for part, mine in zip(floors, units.of_site, strict=True):
                if len(mine) and part > 0:
                    best = mine[torch.argsort(units.scores[mine], descending=True, stable=True)]
                    covered = units.size[best].cumsum(0)
                    enough = floor_width(part, int(covered[-1]))
                    kept[best[covered - units.size[best] < enough]] = True
            if not units.connected(kept):
                kept |= self._skeleton(order.flip(0))
            if bool(self.fits(kept)):
                return kept
        kept = self._skeleton(order.flip(0))
        if bool(self.fits(kept)):
            return kept
        kept = self._smallest()
        return kept if bool(self.fits(kept)) else None

    def _skeleton(self, removal: Tensor) -> Tensor:
        """Close units in the order ``removal`` wherever the network stays connected; what remains is minimal."""
        s = self.units
        removal = removal[~s.always[removal]]
        mask = torch.ones(s.count, dtype=torch.bool)

        def closed(first: int, last: int) -> Tensor:
            trial = mask.clone()
            trial[removal[first:last]] = False
            return trial

        i, n = 0, len(removal)
        while i < n:
            step, good = 1, i  # gallop, then bisect, to the longest run that can be closed
            while good < n and s.connected(closed(i, min(i + step, n))):
                good, step = min(i + step, n), step * 2
            bad = min(i + step, n) + 1 if good == n else min(i + step, n)
            while bad - good > 1:
                middle = (good + bad) // 2
                if s.connected(closed(i, middle)):
                    good = middle
                else:
                    bad = middle
            mask = closed(i, good)
            i = good + 1  # gate ``good`` holds the network together
        return s.canonical(mask)

    def _smallest(self) -> Tensor:
        """A connected mask of small cost in the kinds that are limited; one within the limits if any is found.

        First each kind by itself; then mixtures, in which a kind weighs more the further the last mask was above
        its limit.
        """
        limited = self.limits < float("inf")
        candidates = []
        for kind in torch.nonzero(limited).flatten().tolist():
            weights = torch.zeros(len(self.kinds), dtype=torch.float64)
            weights[kind] = 1
            candidates.append(_cheapest(self.units, weights, self._skeleton))
            if bool(self.fits(candidates[-1])):
                return candidates[-1]
        weights = torch.where(limited, 1 / self.limits.clamp(min=1), 0)
        for _ in range(6 if len(candidates) > 1 else 0):
            mask = _cheapest(self.units, weights, self._skeleton)
            if bool(self.fits(mask)):
                return mask
            weights = weights * (self.units.cost(mask) / self.limits.clamp(min=1)).clamp(min=1e-3)
        return candidates[0]

    # -- spending the rest --------------------------------------------------------------------------------
    def _open_free(self, mask: Tensor) -> Tensor:
        """Open gates that cost nothing (the rows exist anyway) and do something."""
        s = self.units
        for _ in range(8):
            gain = self._gradient(mask)
            free = ~mask & (gain.abs().sum(-1) < 1e-9) & s.ready(mask)
            trial = s.canonical(mask | free)
            if bool((trial == mask).all()) or not self._same_cost(trial, mask):
                return mask
            mask = trial
        return mask

    def _same_cost(self, a: Tensor, b: Tensor) -> bool:
        both = self.units.cost(torch.stack([a, b]))
        return bool((both[0] == both[1]).all())

    def _gradient(self, point: Tensor) -> Tensor:
        """d cost / d unit at ``point``: ``[units, kinds]``; kinds with several parts told apart."""
        x = point.double().clone().requires_grad_()
        with torch.enable_grad():
            costs = self.analysis.cost.by_part(self.units.gates(x))
            rows = [torch.autograd.grad(c, x, retain_graph=True, allow_unused=True)[0] for c in costs]
        return torch.stack(
            [torch.zeros_like(point, dtype=torch.float64) if r is None else r for r in rows], -1
        )

    def _fill(self, mask: Tensor, order: Tensor) -> Tensor:
        """Open shut gates, best first, as long as one fits.

        Gates of one site that have the same derivatives of every cost at the mask and at a point inside the
        cube are interchangeable: one that does not fit speaks for all.
        """
        s = self.units
        changed = True
        while changed:
            changed = False
            keys = torch.cat([self._gradient(mask), self._gradient(0.25 + 0.5 * mask)], -1)
            site = s.site.tolist()
            name = {g: (site[g], *row) for g, row in enumerate(keys.round(decimals=6).tolist())}
            refused: set[object] = set()
            waiting = [g for g in order.tolist() if not mask[g]]
            while waiting:
                ready = s.ready(mask)
                seen: set[object] = set()
                batch: list[int] = []
                for g in waiting:
                    if ready[g] and name[g] not in refused and name[g] not in seen:
                        seen.add(name[g])
                        batch.append(g)
                        if len(batch) == _BATCH:
                            break
                if not batch:
                    break
                trial = mask.repeat(len(batch), 1)
                trial[torch.arange(len(batch)), torch.tensor(batch)] = True
                good = self.fits(trial)
                good &= s.useful(trial)[torch.arange(len(batch)), torch.tensor(batch)]
                taken = None
                for row, g in enumerate(batch):
                    if bool(good[row]):
                        taken = g
                        break
                    refused.add(name[g])
                if taken is not None:
                    mask = mask.clone()
                    mask[taken] = True
                    changed = True
                    waiting.remove(taken)
                    if len(waiting) > 0:  # a run of equals: take as many as fit at once
                        ready = s.ready(mask)
                        equals = [
                            g for g in waiting if name[g] == name[taken] and g not in s.partial and ready[g]
                        ]
                        mask, run = self._take_equals(mask, equals)
                        waiting = [g for g in waiting if g not in run]
                waiting = [g for g in waiting if name[g] not in refused]
        return s.canonical(mask)

    def _take_equals(self, mask: Tensor, equals: list[int]) -> tuple[Tensor, set[int]]:
        low, high = 0, len(equals)
        while low < high:
            middle = (low + high + 1) // 2
            trial = mask.clone()
            trial[equals[:middle]] = True
            if bool(self.fits(trial)):
                low = middle
            else:
                high = middle - 1
        mask = mask.clone()
        mask[equals[:low]] = True
        return mask, set(equals[:low])


def _of_blocks(analysis: Analysis, scores: Tensor) -> Tensor:
    """Scores in which a gate of a whole block is worth what the best of its heads or features is."""
    scores = scores.clone()
    for block in (site for site in analysis.sites if site.host.part == "block" and site.free):
        parts = [s.gates for s in analysis.sites if s.host.weight == block.host.weight]
        inside = torch.from_numpy(np.unique(np.concatenate(parts)))
        scores[block.gates.max()] = scores[inside[inside >= 0]].max()
    return scores


def _cheapest(units: Units, weights: Tensor, skeleton: Callable[[Tensor], Tensor]) -> Tensor:
    """Remove the most expensive sites first, the same channels last everywhere. ``weights``: of the kinds.

    What is expensive differs between the dense network and one channel per site (a wide branch of cheap channels
    against a narrow one of dear ones): both orders are tried.
    """
    ones = torch.ones(units.count, dtype=torch.float64)
    thin = units.always.double()
    thin[[int(mine[0]) for mine in units.of_site if len(mine)]] = 1
    index = torch.zeros(units.count, dtype=torch.float64)
    for mine in units.of_site:
        index[mine] = torch.arange(len(mine), dtype=torch.float64)
    masks = []
    for start in (ones, thin):
        share = torch.zeros(len(units.of_site), dtype=torch.float64)
        for i, mine in enumerate(units.of_site):
            shut = start.clone()
            shut[mine] = 0
            share[i] = (units.cost(start) - units.cost(shut)) @ weights
        # Lexicographic: expensive sites first, then high channel indices first.
        by_index = torch.argsort(index, descending=True, stable=True)
        by_share = torch.argsort(share[units.site][by_index], descending=True, stable=True)
        masks.append(skeleton(by_index[by_share]))
    return min(masks, key=lambda m: float(units.cost(m) @ weights))


def smallest_costs(analysis: Analysis) -> dict[str, int]:
    """The smallest cost of each kind that a connected network has (each by itself)."""
    kinds = analysis.cost.kinds
    costs = {k: analysis.cost(smallest_mask(analysis, k).double()) for k in kinds}
    return {k: round(float(cost[kinds.index(k)])) for k, cost in costs.items()}


def smallest_mask(analysis: Analysis, kind: str) -> Tensor:
    """A connected mask ``[gates]`` of small cost in one kind."""
    analysis = analysis.priced([kind])
    kinds = analysis.cost.kinds
    weights = torch.zeros(len(kinds), dtype=torch.float64)
    weights[kinds.index(kind)] = 1
    solver = Hardener(analysis, {kind: 0})
    return solver.units.gates(_cheapest(solver.units, weights, solver._skeleton))
