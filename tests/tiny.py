"""A tiny network, its kin, and a recipe that trains them in a moment."""

from __future__ import annotations

import csv

import torch
from torch import nn

from chipnet.lab.data import load_data
from chipnet.lab.train import Recipe

TINY = Recipe(1, 2, 2, batch_size=32, train_lr=0.05, prune_lr=0.05, limit=160, limit_test=60)


class TinyNet(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(in_channels, 11, 3, padding=1, bias=False), nn.BatchNorm2d(11)
        self.a, self.norm_a = nn.Conv2d(11, 13, 3, padding=1, bias=False), nn.BatchNorm2d(13)
        self.b, self.norm_b = nn.Conv2d(13, 11, 3, padding=1, bias=False), nn.BatchNorm2d(11)
        self.fc = nn.Linear(11, num_classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))))
        return self.fc(x.mean((2, 3)))


class Branching(TinyNet):
    def __init__(self):
        super().__init__(10, 1)

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


def tiny_net(num_classes, in_channels):
    """conv 11 -> norm -> [conv 13 -> norm -> conv 11 -> norm] + -> fc"""
    return TinyNet(num_classes, in_channels)


def not_exportable(num_classes, in_channels):
    return Branching()


def features(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 7, 3))


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def own_digits(data_dir, seed, limit, limit_test):
    """Data of a user's own, which normalises by itself."""
    return load_data("digits", seed=seed, limit=limit, limit_test=limit_test)
