"""Which masks take no longer than a latency budget allows, when their compact networks are measured?

A model of the time is not a measurement. So the compact network of a mask is built and measured in turns with the
dense one, and the limit of the modelled time is moved until the measured time fits.

Of two ratios to the dense network's time the larger counts: that of the shortest times (what else a machine does
can only add to a time, and adds more to longer ones) and the median over rounds (a shortest time may be luck).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

from chipnet._util.device import device_of
from chipnet.analysis.analysis import Analysis
from chipnet.analysis.kinds import LATENCY
from chipnet.budget.budget import Budget
from chipnet.budget.landing import Landing, target_text
from chipnet.budget.ranking import Ranking, Solution, Solver, best_mask
from chipnet.errors import BudgetError
from chipnet.timing.clock import device_name, side_by_side
from chipnet.timing.tables import networks

_NETWORKS = 7
"""So many networks are built and measured at most."""
_CLOSE = 0.97
"""A network that takes this part of the target is close enough to it."""


def measuring(model: nn.Module, analysis: Analysis, budget: Budget) -> Solver:
    """The solver for a budget that names latency: what it returns has been measured on the model's device.

    Args:
        model: the dense network, with or without gates.
        analysis: of it, with the costs of `chipnet.timing.tables.with_latency`.
        budget: the latency that is wanted.
    """
    value = dict(budget.targets)[LATENCY]
    target = float(value) if isinstance(value, Fraction) else value

    def measure(mask: Tensor, count: int) -> Landing:
        return _measured(model, analysis, mask, target, count)

    def solver(limits: Mapping[str, int], ranking: Ranking) -> Solution:
        return land(limits, target, lambda tighter: best_mask(analysis, tighter, ranking), measure)

    return solver


def land(
    limits: Mapping[str, int],
    target: int | float,
    solve: Callable[[Mapping[str, int]], Tensor],
    measure: Callable[[Tensor, int], Landing],
) -> Solution:
    """The mask of ``solve(limits)`` whose compact network, as measured, takes at most ``target``.

    The limit of the modelled time is moved by the ratio of target and measured time, between the largest limit that
    fitted and the smallest that did not, until the measured time is at most the target and close to it. Of several
    that fit, the slowest is taken.

    Args:
        limits: kind -> largest integer cost; of the modelled time, where to begin.
        target: a part of the dense network's time (a float), or nanoseconds (an int).
        solve: a mask ``[gates]`` within limits.
        measure: what a mask's network takes; its second argument counts the networks measured so far, this one too.

    Raises:
        BudgetError: none that was built fits; names the fastest.
    """
    limit, fitted, above = float(limits[LATENCY]), 0.0, float("inf")
    tried: list[tuple[Landing, Tensor]] = []
    for count in range(1, _NETWORKS + 1):
        try:
            mask = solve({**limits, LATENCY: int(limit)})
        except BudgetError:  # below what any network is modelled to take
            fitted, limit = limit, (limit + above) / 2
            if above == float("inf"):
                raise
            continue
        found = measure(mask, count)
        tried.append((found, mask))
        if found.measured > target:
            above = min(above, limit)
        elif found.measured >= _CLOSE * target or bool(mask.all()):
            break
        else:
            fitted = max(fitted, limit)
        limit = limit * target * (1 + _CLOSE) / 2 / found.measured
        if not fitted < limit < above:  # measurements that contradict the model: halve what is left between
            limit = (fitted + above) / 2 if above < float("inf") else 2 * fitted
    if fitting := [(found, mask) for found, mask in tried if found.measured <= target]:
        slowest, mask = max(fitting, key=lambda pair: pair[0].measured)
        return Solution(mask, slowest)
    fastest = min((found for found, _ in tried), key=lambda found: found.measured)
    raise BudgetError(
        f"no network was found that takes at most {target_text(target)} when it is measured. The fastest of those "
        f"that were built: {fastest}. Ask for more time, or measure on a machine that does nothing else."
    )


def _measured(model: nn.Module, analysis: Analysis, mask: Tensor, target: int | float, count: int) -> Landing:
    """What the compact network of ``mask`` takes, measured in turns with the dense one.

    Args:
        model, analysis: the dense network.
        mask: ``[gates]``.
        target: what is wanted; see `land`.
        count: how many networks were measured, this one too.
    """
    dense, small = networks(model, analysis, mask)
    took = side_by_side(dense, small, analysis.inputs)
    ratio = took["ratio"]
    return Landing(
        asked=target,
        dense=1e9 * took["dense"].best,
        compact=1e9 * took["compact"].best,
        median=ratio.median,
        low=ratio.low,
        high=ratio.high,
        spread=took["compact"].spread,
        threads=torch.get_num_threads(),
        device=device_name(device_of(dense)),
        networks=count,
    )
