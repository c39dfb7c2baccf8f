"""A small network with a residual branch, and the training of it."""

import copy
import functools

import torch
import torch.nn.functional as F
from torch import nn

from chipnet import Pruner, Structure

STEPS = 12


class Small(nn.Module):
    """conv 31 -> norm -> [conv 23 -> norm -> conv 31 -> norm] + -> conv 37 (bias, no norm) -> relu -> fc 2"""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 31, 3, padding=1, bias=False), nn.BatchNorm2d(31)
        self.a, self.norm_a = nn.Conv2d(31, 23, 3, padding=1, bias=False), nn.BatchNorm2d(23)
        self.b, self.norm_b = nn.Conv2d(23, 31, 3, padding=1, bias=False), nn.BatchNorm2d(31)
        self.last, self.fc = nn.Conv2d(31, 37, 1), nn.Linear(37, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu(x + self.norm_b(self.b(self.relu(self.norm_a(self.a(x))))))
        return self.fc(self.relu(self.last(x)).mean((2, 3)))


@functools.cache
def made():
    torch.manual_seed(0)
    net = Small()
    structure = Structure(net, torch.zeros(1, 3, 4, 4))
    x = torch.randn(6, 3, 4, 4)
    return net, structure, x, (x[:, 0].mean((1, 2)) > 0).long()


def fresh(method, budget, *, steps=STEPS, seed=0):
    net, structure, *_ = made()
    net = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    return Pruner(net, structure, budget, steps=steps, method=method, seed=seed), net, optimizer


def train(pruner, net, optimizer, steps):
    *_, x, y = made()
    for _ in range(steps):
        loss = F.cross_entropy(net(x), y) + pruner.loss()
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
