"""Parameters, buffers and numbers that lie beside channels: windows, indices, kernels, states, turned weights."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rule_cases import Around, gains
from torch import Tensor, nn

Rule = Callable[["Held", Tensor], Tensor]


class Held(nn.Module):
    """Computes each of ``rules`` of its 12 channels, with what it holds; a mean over positions of each, added."""

    def __init__(self, *rules: Rule) -> None:
        super().__init__()
        self.rules, self.c = rules, 12
        self.register_buffer("window", torch.tensor([0.3, 1.0, -0.5, 2.0, 0.7, -1.0]))
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 5, 4]))
        self.register_buffer("kernel", torch.tensor([[[[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]]]) / 16)
        self.register_buffer("bell", torch.tensor([[[0.5, 1.0, 0.5]]]))
        self.square, self.scale = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return sum(f(self, x).mean((2, 3), keepdim=True) for f in self.rules)  # type: ignore[return-value]


ALL_FREE: dict[str, Rule] = {
    "a window over columns": lambda m, x: x * m.window,
    "a window over rows": lambda m, x: x + x * m.window[:, None],
    "a window over rows and columns": lambda m, x: x * (m.window[:, None] + m.window),
    "columns by a condition": lambda m, x: torch.where(m.order > 2, x, x * 0.5),
    "masked columns": lambda m, x: x.masked_fill(m.window > 0, 0.0),
    "gather with a buffer": lambda m, x: x.gather(3, m.order.expand_as(x)),
    "gather with a buffer, repeated": lambda m, x: x.gather(
        2, m.order.view(1, 1, -1, 1).repeat(x.shape[0], x.shape[1], 1, x.shape[3])
    ),
    "scatter_add with a buffer": lambda m, x: torch.zeros_like(x).scatter_add(3, m.order.expand_as(x), x),
    "zeros above": lambda m, x: torch.cat(
        [torch.zeros(x.shape[0], x.shape[1], 1, 6, dtype=x.dtype), x], 2
    ),
    "ones beside": lambda m, x: x * torch.cat(
        [x[..., 1:], torch.ones(x.shape[0], x.shape[1], 6, 1, dtype=x.dtype)], 3
    ),
    "tensordot over columns": lambda m, x: torch.tensordot(x, m.square, dims=([3], [0])),
    "a matrix times a vector": lambda m, x: x * torch.mv(m.square, m.square[0]),
    "between two tensors, by one number": lambda m, x: torch.lerp(x, x.flip(2), torch.sigmoid(m.scale)),
    "instance norm without parameters": lambda m, x: F.instance_norm(x),
}  # fmt: skip
ONE_STAYS: dict[str, Rule] = {
    "a kernel repeated to an attribute": lambda m, x: F.conv2d(
        x, m.kernel.to(x.dtype).repeat(m.c, 1, 1, 1), padding=1, groups=m.c
    ),
    "a kernel of one long axis": lambda m, x: F.conv1d(
        x.flatten(2), m.bell.to(x.dtype).expand(x.shape[1], -1, -1), padding=1, groups=x.shape[1]
    ).view_as(x),
    "zeros of an attribute above": lambda m, x: torch.cat([x.new_zeros(x.shape[0], m.c, 1, 6), x], 2),
}


def in_fours(cases: dict[str, Rule]) -> list:
    names = list(cases)
    fours = [names[i : i + 4] for i in range(0, len(names), 4)]
    return [pytest.param([cases[n] for n in four], id=", ".join(four)) for four in fours]


@pytest.mark.parametrize("rules", in_fours(ALL_FREE))
def test_what_lies_along_other_axes_leaves_channels_free(rules):
    gains(lambda: Around(Held(*rules)), {"a": 12, "b": 5})


@pytest.mark.parametrize("rules", in_fours(ONE_STAYS))
def test_what_is_as_wide_as_an_attribute_leaves_all_but_one_free(rules):
    gains(lambda: Around(Held(*rules)), {"a": 11, "b": 5})


def test_a_split_at_half_of_an_attribute_and_at_the_rest():
    def halves(m: Held, x: Tensor) -> Tensor:
        a, b = x.split((m.c // 2, m.c - m.c // 2), 1)
        return torch.cat([a, -2 * b], 1)

    gains(lambda: Around(Held(halves)), {"a": 6, "b": 5})


class Turned(nn.Module):
    """Weights that are turned to be multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(6, 8))
        self.c, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).mean((2, 3)) @ self.b.t()
        return torch.addmm(self.bias, F.relu(x), self.c.T)


def test_a_weight_that_is_turned_to_be_multiplied_with_is_that_weight():
    gains(Turned, {"a": 7, "b": 5})


class ConvLSTM(nn.Module):
    """Cells and outputs that begin as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 6
        self.gates, self.fc = nn.Conv2d(9, 24, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.hidden, *x.shape[2:])
        c = torch.zeros_like(h)
        for _ in range(2):
            i, f, o, g = self.gates(torch.cat([x, h], 1)).split(self.hidden, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.fc(h.mean((2, 3)))


def test_a_cell_that_begins_like_a_state_of_zeros():
    gains(ConvLSTM, {"gates": 6})
