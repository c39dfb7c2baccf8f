"""Channel shuffles by view, transpose and reshape: the number of groups is a literal, which stays."""

import pytest
import torch
from torch import nn

import chipnet
from chipnet import Structure


def shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Unit(nn.Module):
    """Half of the channels go through a branch; then all are shuffled."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()
        )

    def forward(self, x):
        kept, through = x.chunk(2, 1)
        return shuffle(torch.cat([kept, self.branch(through)], 1))


class Shuffled(nn.Module):
    """The output is nearly constant: what goes wrong in the units hardly shows."""

    def __init__(self, units):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.units = nn.Sequential(*(Unit() for _ in range(units)))
        self.last, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
        nn.init.normal_(self.head.weight, std=1e-5)
        nn.init.ones_(self.head.bias)

    def forward(self, x):
        return self.head(self.last(self.units(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("units", [1, 2, 3])
def test_a_branch_that_dies_leaves_both_groups(units):
    net, x = Shuffled(units).eval(), torch.randn(2, 3, 6, 6)
    structure = Structure(net, x)
    died = 0
    for gates in structure.analysis.site_gates:
        mask = torch.ones(structure.gates, dtype=torch.bool)
        mask[gates] = False
        if len(gates) and structure.connected(mask):
            plan = structure.plan(structure.canonical(mask))
            difference, _ = chipnet.verify_compact(net, chipnet.compact(net, plan, verify=False), plan, x)
            assert difference < 1e-12
            died += 1
    assert died >= units
