"""Masks and scores that users hand over: read in one place, everywhere."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from chipnet import Masks, PlanError, Pruner, Structure

NET = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
S = Structure(NET, torch.randn(2, 3))
P = Pruner(copy.deepcopy(NET), torch.randn(2, 3), "macs=0.5", steps=3)


def hardened(mask):
    with P.hardened(mask) as found:
        return found


READERS = {
    "plan": S.plan,
    "cost": S.cost.exact,
    "open": S.analysis.open,
    "connected": S.connected,
    "widths": S.widths,
    "useful": S.analysis.useful,
    "existing": S.analysis.existing,
    "alive": S.analysis.alive,
    "canonical": S.canonical,
    "pruner": P.harden,
    "hardened": hardened,
    "masks": lambda mask: Masks.of(S, mask),
}
BAD = [
    (torch.full((6,), 0.4), "holds 0.4"),
    (torch.tensor([1, 0, 1, 1, 0, 2]), "holds 2"),
    (torch.tensor([1, 0, 1, 1, 0, float("nan")]), "holds nan"),
    (np.full(6, -1), "holds -1"),
    (torch.ones(5, dtype=torch.bool), r"shape \(5,\)"),
    ([1] * 7, r"shape \(7,\)"),
    (torch.ones(6, 1), r"shape \(6, 1\)"),
    (torch.tensor(1), r"shape \(\)"),
    ("110101", "it is a str"),
    ({1: 0}, "it is a dict"),
    ([None] * 6, "must be a tensor, an array or a list"),
    (["a"] * 6, "must be a tensor, an array or a list"),
    (np.array(["a"] * 6), "must be a tensor, an array or a list"),
    ([10**400] * 6, "must be a tensor, an array or a list"),
    (torch.ones(6, dtype=torch.complex64), "complex64"),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("mask", "said"), BAD)
def test_what_is_no_mask_is_refused(reader, mask, said):
    with pytest.raises(PlanError, match=said):
        READERS[reader](mask)


@pytest.mark.parametrize("given", [list, tuple, np.array, torch.tensor, lambda m: torch.tensor(m).double()])
def test_zeros_and_ones_of_any_kind_are_a_mask(given):
    mask = [1, 0, 1, 1, 0, 1]
    assert S.plan(given(mask)).mask == tuple(map(bool, mask))
    assert P.harden(given(mask)).mask == tuple(map(bool, mask))
    assert S.widths(given([mask, mask])).shape == (2, 2)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (torch.full((6,), float("nan")), "6 of 6 scores are NaN or infinite"),
        ([1, 2, 3, 4, 5, float("inf")], r"1 of 6 .*\(inf first\)"),
        (torch.ones(5), r"shape \(5,\)"),
        (torch.ones(6, 1), r"shape \(6, 1\)"),
        ("abc", "it is a str"),
        (None, "it is a NoneType"),
    ],
)
def test_what_are_no_scores_is_refused(scores, said):
    with pytest.raises(PlanError, match=said):
        S.harden(scores, "macs=0.5")


def test_scores_may_be_a_list():
    assert S.harden([1, 2, 3, 4, 5, 6], "macs=0.5").tolist() == [False] * 3 + [True] * 3


def test_a_structure_can_be_copied_and_outlives_its_model():
    for other in (
        copy.deepcopy(S),
        pickle.loads(pickle.dumps(S)),
        Structure(copy.deepcopy(NET), torch.ones(2, 3)),
    ):
        assert other.plan([1] * 6).compact == S.cost.dense


def test_reprs_are_short():
    plan = S.plan([1, 0, 1, 1, 0, 1], None)
    for thing in (S, P, plan, Masks.of(S, plan.mask), P.harden()):
        assert len(repr(thing)) < 250, repr(thing)
    assert repr(plan) == (
        "Plan(plain: 1 of 2 sites narrower, channels 6 of 8, volume 12 of 16, params 26 of 38, macs 40 of 60)"
    )
