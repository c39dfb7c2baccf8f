"""Widths of least loss within a budget."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from chipnet import Structure
from chipnet.budget.ranking import best_mask
from chipnet.widths.curves import Curve, _filled
from chipnet.widths.knapsack import Knapsack, best_ranking, rankings


def _structure(widths=(4, 5, 3), **options) -> Structure:
    sizes = (3, *widths)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return Structure(nn.Sequential(*layers, nn.Linear(sizes[-1], 2)), torch.ones(1, 3), **options)


def _curves(s: Structure, seed: int) -> list[Curve]:
    """Convex curves at random; no site may die."""
    generator = np.random.default_rng(seed)
    curves = []
    for site, gates in enumerate(s.analysis.site_gates):
        if len(gates):
            gains = np.sort(generator.exponential(size=len(gates)))[::-1]
            losses = np.concatenate([[np.inf], gains[::-1].cumsum()[::-1][1:], [0]])
            curves.append(Curve(site, gates, losses))
    return curves


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("left", [0.7, 0.4, 0.2])
def test_it_is_near_the_best_of_all(seed, left):
    """Against all widths there are. With a price only corners of the front are found; what is left of the budget is
    spent channel by channel."""
    s = _structure()
    curves, limits = _curves(s, seed), s.limits({"macs": left})
    knapsack = Knapsack(s.analysis, curves, limits)
    all_widths = list(itertools.product(*(range(1, len(c.gates) + 1) for c in curves)))
    costs = knapsack.costs(all_widths)[:, 0]
    losses = np.array([knapsack.loss(w) for w in all_widths])
    best, worst = losses[costs <= 1].min(), losses[costs <= 1].max()
    mask = best_mask(s.analysis, limits, best_ranking(s.analysis, curves, limits))
    found = knapsack.loss([int(mask[c.gates].sum()) for c in curves])
    assert s.cost.exact(mask).macs <= limits["macs"]
    assert best <= found + 1e-9 and found - best <= 0.3 * (worst - best)


def test_several_kinds():
    s = _structure((8, 8, 8))
    curves, limits = _curves(s, 1), s.limits("macs=0.5,channels=0.6")
    mask = best_mask(s.analysis, limits, best_ranking(s.analysis, curves, limits))
    cost = s.cost.exact(mask)
    assert cost.macs <= limits["macs"] and cost.channels <= limits["channels"]


def test_only_widths_that_the_options_allow():
    s = _structure((8, 16, 8), round_to=4, min_channels=4)
    knapsack = Knapsack(s.analysis, _curves(s, 0), s.limits({"macs": 0.5}))
    widths, _ = knapsack.solve()
    assert all(w % 4 == 0 and w for w in widths)
    assert bool((knapsack.costs([widths]) <= 1).all())


def test_a_smaller_network_within_a_larger_one():
    s = _structure((8, 8, 8))
    curves = _curves(s, 3)
    large = best_mask(s.analysis, limits := s.limits({"macs": 0.6}), best_ranking(s.analysis, curves, limits))
    limits = s.limits({"macs": 0.3})
    knapsack = Knapsack(s.analysis, curves, limits, large)
    widths, _ = knapsack.solve()
    assert not bool((knapsack.mask(widths) & ~large).any())


def test_gates_of_the_best_widths_come_first_and_in_order():
    s = _structure()
    curves, limits = _curves(s, 2), s.limits({"macs": 0.5})
    scores = best_ranking(s.analysis, curves, limits).scores
    widths, _ = Knapsack(s.analysis, curves, limits).solve()
    inside = torch.cat([scores[c.gates[:w]] for c, w in zip(curves, widths, strict=True)])
    outside = torch.cat([scores[c.gates[w:]] for c, w in zip(curves, widths, strict=True)])
    assert inside.min() > outside.max()
    assert all(bool((scores[c.gates].diff() < 0).all()) for c in curves)


def test_a_branch_dies_where_that_is_cheaper():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down, self.head = (
                nn.Linear(*s) for s in ((3, 4), (4, 32), (32, 4), (4, 2))
            )

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head(x + self.down(self.up(x).relu()))

    s = Structure(Net(), torch.ones(1, 3))
    curves = []
    for site, gates in enumerate(s.analysis.site_gates):
        if len(gates):
            branch = s.sites[site].name == "up"
            losses = np.linspace(0.01 if branch else 10.0, 0, len(gates) + 1)
            curves.append(Curve(site, gates, losses))
    limits = s.limits({"macs": 0.15})
    widths, _ = Knapsack(s.analysis, curves, limits).solve()
    assert {s.sites[c.site].name: w for c, w in zip(curves, widths, strict=True)} == {"stem": 4, "up": 0}


def test_losses_between_measured_widths_go_as_the_error_does():
    """Measured at 0, 1 and 2 of 4; at 3 there are half the errors of 2, so half its loss."""
    errors = np.array([16.0, 4.0, 2.0, 1.0, 0.0])
    losses = _filled({2: 0.2, 1: 0.8, 0: 0.5}, errors)
    np.testing.assert_allclose(losses, [0.8, 0.8, 0.2, 0.1, 0.0])  # it never rises with the width
    losses = _filled({2: 0.2, 0: 3.2}, errors)  # log 0.2 to log 3.2 as log 2 to log 16: a third of the way
    np.testing.assert_allclose(losses[1], 0.2 * 16 ** (1 / 3))
    assert np.isinf(_filled({2: 0.2, 1: 0.8}, errors)[0])


def test_even_widths_and_such_between():
    s = _structure((8, 16, 8))
    curves, limits = _curves(s, 0), s.limits({"macs": 0.3})
    best, even, between = (
        [int(best_mask(s.analysis, limits, r)[c.gates].sum()) for c in curves]
        for r in rankings(s.analysis, curves, limits)
    )
    parts = [width / len(c.gates) for c, width in zip(curves, even, strict=True)]
    assert max(parts) - min(parts) <= 1 / 8
    assert best != even
    assert all(min(a, b) - 1 <= m <= max(a, b) + 1 for a, b, m in zip(best, even, between, strict=True))
