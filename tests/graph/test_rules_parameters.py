"""Parameters as data (class tokens, positions, registers, learnt queries, scales) are cut with what they meet."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import randomised
from rule_cases import gains
from torch import Tensor, nn

import chipnet
from chipnet import Structure


class Tokens(nn.Module):
    """A stream of tokens: patches and positions behind a class token and registers, a block with a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.head = nn.Linear(4, 7), nn.LayerNorm(7), nn.Linear(7, 3)
        self.up, self.down = nn.Linear(7, 10), nn.Linear(10, 7)
        self.first, self.registers = nn.Parameter(torch.randn(1, 1, 7)), nn.Parameter(torch.randn(1, 2, 7))
        self.positions, self.scale = nn.Parameter(torch.randn(1, 8, 7)), nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        first, registers = self.first.expand(n, -1, -1), self.registers.expand(n, -1, -1)
        x = torch.cat([first, registers, self.patch(x)], 1) + self.positions
        x = x + self.scale * self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x[:, 0])


def test_tokens_and_positions_are_writers_of_the_stream():
    """The layer scale has no gate of its own: it goes with what it scales."""
    s, found = gains(
        Tokens,
        {"patch": 7, "first": 7, "registers": 7, "positions": 7, "up": 10, "down": 7},
        (2, 5, 4),
    )
    assert s.gates == 17  # the stream's are shared
    widths = {small.first.shape[2] for small, *_ in found}
    assert len(widths) > 1
    for small, *_ in found:
        parts = small.registers, small.positions, small.scale, small.norm.weight
        assert {p.shape[-1] for p in parts} == {small.first.shape[2]}


class Queries(nn.Module):
    """Learnt queries are the first of a stream, and have a batch axis in the middle as DETR's."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(6, 7))
        self.k, self.v, self.out, self.head = (
            nn.Linear(4, 7),
            nn.Linear(4, 7),
            nn.Linear(7, 7),
            nn.Linear(7, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        q = self.queries.unsqueeze(1).repeat(1, x.shape[0], 1).transpose(0, 1)
        y = F.scaled_dot_product_attention(q + self.k(x)[:, :1], self.k(x), self.v(x), scale=0.3)
        return self.head((q + self.out(y)).mean(1))


class Decoder(Queries):
    """Its stream begins as zeros, as wide as the queries, which are positions of it: DETR's."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.out, self.head = nn.Linear(7, 5), nn.Linear(5, 7), nn.Linear(7, 3)
        self.image = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.queries.unsqueeze(0).repeat(x.shape[0], 1, 1)
        stream = torch.zeros_like(positions)
        stream = stream + self.out(F.relu(self.values(stream + positions)))
        return self.head(stream + self.image(x).mean(1, keepdim=True))


def test_a_stream_that_begins_as_zeros_is_as_wide_as_its_positions():
    _, found = gains(Decoder, {"queries": 7, "values": 5, "out": 7, "image": 7}, (2, 5, 4))
    assert len({small.queries.shape[1] for small, *_ in found}) > 1


def test_learnt_queries_lose_columns_and_no_rows():
    _, found = gains(Queries, {"queries": 7, "k": 7, "v": 7, "out": 7}, (2, 5, 4))
    assert {small.queries.shape[0] for small, *_ in found} == {6}


class Shifted(nn.Module):
    """A learnt shift after the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shift = (
            nn.Conv2d(3, 7, 3),
            nn.Conv2d(7, 3, 1),
            nn.Parameter(torch.randn(7, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)) + self.shift).mean((2, 3))


def test_a_learnt_shift_has_the_gates_of_what_it_shifts():
    s, _ = gains(Shifted, {"a": 7, "shift": 7})
    assert s.gates in (7, 14)  # shared or not


class Biased(nn.Module):
    """A hidden layer makes a bias of positions, as in Swin transformers of the second version."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.hidden, self.bias = nn.Linear(4, 7), nn.Linear(2, 9), nn.Linear(9, 1)
        self.head = nn.Linear(7, 3)
        self.register_buffer("places", torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((F.relu(self.a(x)) + self.bias(F.relu(self.hidden(self.places)))).mean(1))


def test_what_no_input_reaches_is_not_dead():
    """It is a constant of the dense network: with all gates open nothing is cut, and its gates can be shut."""
    s, _ = gains(Biased, {"a": 7, "hidden": 9}, (2, 5, 4))
    every = torch.ones(s.gates, dtype=torch.bool)
    assert torch.equal(s.canonical(every), every)
    assert not s.plan(every).zero
    assert s.cost.exact(every) == s.cost.dense


@pytest.mark.parametrize("method", ["uniform", "magnitude", "fisher", "taylor"])
def test_gates_on_parameters_as_data_in_a_pruner(method):
    torch.manual_seed(0)
    model, x = randomised(Tokens()), torch.randn(2, 5, 4, dtype=torch.float64)
    dense = model(x)
    pruner = chipnet.Pruner(model, x, "macs=0.5", steps=2, method=method)
    with pruner.hardened(torch.ones(pruner.structure.gates, dtype=torch.bool)):
        torch.testing.assert_close(model(x), dense)
    model.train()(x).square().sum().backward()
    pruner.step()
    plan = pruner.harden(early=True)
    soft = model.eval()(x)
    pruner.detach()
    torch.testing.assert_close(model(x), dense)
    torch.testing.assert_close(soft, chipnet.masked(model, plan)(x))
    torch.testing.assert_close(soft, chipnet.compact(model, plan)(x))


def test_a_parameter_that_two_modules_read_has_no_gate():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 7), nn.Linear(7, 3)
            self.inner = nn.Module()
            self.inner.shift = nn.Parameter(torch.randn(7))
            self.add = Add(self.inner)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.add(self.a(x)) + self.inner.shift)

    class Add(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner.shift

    s = Structure(Twice(), torch.randn(2, 4))
    assert not any(site.host.data for site in s.sites)
