"""Recurrent layers lose the columns that read pruned features."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from rule_cases import gains
from torch import Tensor, nn

from chipnet import Structure


class OverTime(nn.Module):
    """A convolution over time, a recurrent layer, a linear layer."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.a, self.norm, self.layer = nn.Conv1d(4, 9, 3, padding=1), nn.BatchNorm1d(9), layer
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        x = x.transpose(1, 2) if self.layer.batch_first else x.permute(2, 0, 1)
        out, _ = self.layer(x)
        return self.fc(out)


LAYERS = {
    "lstm": (lambda: nn.LSTM(9, 5), 5),
    "lstm, two ways": (lambda: nn.LSTM(9, 5, 2, batch_first=True, bidirectional=True), 10),
    "lstm, projected": (lambda: nn.LSTM(9, 5, proj_size=4, batch_first=True, bidirectional=True), 8),
    "gru without biases": (lambda: nn.GRU(9, 5, 2, bias=False), 5),
    "rnn": (lambda: nn.RNN(9, 5, nonlinearity="relu"), 5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_recurrent_layer_reads_fewer_features(name):
    build, width = LAYERS[name]
    _, found = gains(lambda: OverTime(build(), width), {"norm": 8}, (2, 4, 6))
    for small, *_ in found:
        layer, left = small.layer, small.a.out_channels
        assert layer.input_size == layer.weight_ih_l0.shape[1] == left
        assert layer.weight_hh_l0.shape == build().weight_hh_l0.shape
        assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))
        copy.deepcopy(layer)(torch.randn(3, 2, left, dtype=torch.float64))
    dense = OverTime(build(), width).double().eval()
    weights = list(dense.layer._flat_weights)
    Structure(dense, torch.randn(2, 4, 6, dtype=torch.float64))
    assert all(a is b for a, b in zip(dense.layer._flat_weights, weights, strict=True))
    assert min(small.layer.input_size for small, *_ in found) == 1


class Steps(nn.Module):
    """A cell that reads the same features again and again; its first state is computed from them, too."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.a, self.start, self.cell, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), cell, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).mean((2, 3))
        h = torch.tanh(self.start(x))
        for _ in range(3):
            h = self.cell(x, (h, h))[0] if isinstance(self.cell, nn.LSTMCell) else self.cell(x, h)
        return self.fc(h)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_reads_fewer_features(cell):
    s, found = gains(lambda: Steps(cell(8, 5)), {"a": 7})
    assert next(site for site in s.sites if site.name == "start").reason
    for small, *_ in found:
        assert small.cell.input_size == small.cell.weight_ih.shape[1] == small.a.out_channels


class Blur(nn.Module):
    """Blur pooling: one kernel in a buffer, expanded to as many channels as there are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.register_buffer(
            "kernel", torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1]))[None, None] / 16
        )
        self.how, self.channels = how, 12

    def forward(self, x: Tensor) -> Tensor:
        c = self.channels if self.how == "attribute" else x.shape[1]
        if self.how == "repeat":
            return F.conv2d(F.pad(x, [1] * 4, "reflect"), self.kernel.repeat(c, 1, 1, 1), stride=2, groups=c)
        if self.how == "twice":
            return F.conv2d(x, self.kernel.repeat(2 * c, 1, 1, 1), groups=c)
        if self.how == "transposed":
            return F.conv_transpose2d(x, self.kernel.expand(c, 1, 3, 3), stride=2, groups=c)
        return F.conv2d(x, self.kernel.expand(c, -1, -1, -1), padding=1, groups=c)


class Blurred(nn.Module):
    """A convolution, a blur, a convolution."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.blur = nn.Conv2d(3, 12, 3, padding=1), Blur(how)
        self.b, self.fc = nn.Conv2d(24 if how == "twice" else 12, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.blur(F.relu(self.a(x))))).mean((2, 3)))


@pytest.mark.parametrize("how", ["expand", "repeat", "twice", "transposed", "attribute"])
def test_one_kernel_for_every_channel_follows_their_number(how):
    gains(lambda: Blurred(how), {"a": 11, "b": 5})
