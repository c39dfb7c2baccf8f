"""What does a method ask of a solver, and what does a solver answer?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from chipnet.analysis.analysis import Analysis
from chipnet.budget.landing import Landing
from chipnet.budget.solver import Hardener


@dataclass(frozen=True, eq=False)
class Ranking:
    """Which gates to keep first.

    Attributes:
        scores: ``[gates]``; gates with larger ones are kept longer.
        floor: the part of every site's gates that scores cannot take away, where the limits allow it; or one part
            for each site.
        minimum: ``[sites]``, how many of a site's gates are open if any are; empty: one.
    """

    scores: Tensor
    floor: float | Sequence[float] = 0.0
    minimum: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class Solution:
    """A Boolean mask ``[gates]`` that meets its limits, and what was measured where a limit is one of time."""

    mask: Tensor
    landing: Landing | None = None


Solver = Callable[[Mapping[str, int], Ranking], Solution]
"""Makes a mask of limits (kind -> largest integer cost) and a ranking. A `BudgetError` where none meets them."""


def counting_solver(analysis: Analysis) -> Solver:
    """The solver for costs that are counted, exactly (`chipnet.budget.solver`)."""
    return lambda limits, ranking: Solution(best_mask(analysis, limits, ranking))


def best_mask(
    analysis: Analysis, limits: Mapping[str, int], ranking: Ranking, *, full: bool = True
) -> Tensor:
    """The Boolean mask ``[gates]`` of the gates that rank highest within the limits.

    Args:
        analysis: of the network.
        limits: kind -> largest integer cost.
        ranking: of its gates.
        full: spend what is left of the limits gate by gate. Without it only gates that cost nothing are opened.

    Raises:
        BudgetError: no connected network meets the limits.
    """
    return Hardener(analysis, limits, ranking.scores, ranking.minimum).solve(ranking.floor, full)
