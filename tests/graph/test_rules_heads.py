"""Heads go whole, with ``heads="whole"``: queries, keys, values and biases of positions. Attributes that count
heads follow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import randomised
from rule_cases import gains
from torch import Tensor, nn

import chipnet
from chipnet import Structure


class Fused(nn.Module):
    """As timm writes it: one layer for queries, keys and values, and heads in an attribute."""

    def __init__(self, literal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.literal = 3, 4, literal
        self.qkv, self.out = nn.Linear(4, 36), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        heads = 3 if self.literal else self.num_heads
        q, k, v = self.qkv(x).reshape(n, t, 3, heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Apart(nn.Module):
    """As Hugging Face writes it: three layers, and a view that counts heads by -1. Values have their own width."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 12)
        self.out, self.how = nn.Linear(12, 3), how
        self.bias = nn.Parameter(torch.randn(3, 5, 5))
        self.table = nn.Parameter(torch.randn(9, 3))
        self.register_buffer("apart", (torch.arange(5)[:, None] - torch.arange(5)).flatten() + 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).view(*x.shape[:2], -1, 2).transpose(1, 2) for f in (self.q, self.k))
        v = self.v(x).view(*x.shape[:2], -1, 4).transpose(1, 2)
        bias: Tensor | None = None
        if self.how != "plain":
            table = self.table[self.apart].view(5, 5, -1).permute(2, 0, 1)
            bias = (self.bias if self.how == "bias" else table).unsqueeze(0)
        if self.how == "written out":
            y = ((q * 0.4) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, bias)
        return self.out(y.transpose(1, 2).flatten(2))


def test_heads_of_one_layer_go_with_their_queries_keys_and_values():
    """One head is there, be it zero: a reshape counts heads. Their width and scale stay."""
    _, found = gains(Fused, {"qkv": 3}, (2, 5, 4), heads="whole")
    assert {small.num_heads for small, *_ in found} == {1, 3}
    for small, plan, _ in found:
        assert small.head_dim == 4
        assert small.qkv.out_features == 3 * small.num_heads * 4
        assert not plan.rows


def test_which_rows_a_head_has_as_worked_out_by_hand():
    torch.manual_seed(0)
    model, x = randomised(Fused()), torch.randn(2, 5, 4, dtype=torch.float64)
    s = Structure(model, x, heads="whole")
    mask = torch.ones(s.gates, dtype=torch.bool)
    (site,) = (site for site in s.sites if site.name == "qkv")
    mask[site.gates[24 + 4 * 1]] = False  # of the second head's values
    small = chipnet.compact(model, s.plan(mask))
    rows = [r for part in (0, 12, 24) for r in (*range(part, part + 4), *range(part + 8, part + 12))]
    assert torch.equal(small.qkv.weight, model.qkv.weight[rows])
    assert torch.equal(small.out.weight, model.out.weight[:, [0, 1, 2, 3, 8, 9, 10, 11]])
    assert (small.num_heads, model.num_heads) == (2, 3)


@pytest.mark.parametrize("how", ["plain", "bias", "table", "written out"])
def test_heads_of_three_layers_and_their_biases(how):
    _, found = gains(lambda: Apart(how), {"v": 3}, (2, 5, 4), heads="whole")
    heads = {small.v.out_features // 4 for small, *_ in found}
    assert heads >= {1, 3}
    for small, *_ in found:
        left = small.v.out_features // 4
        assert small.q.out_features == small.k.out_features == 2 * left
        if how == "bias":
            assert small.bias.shape == (left, 5, 5)
        elif how != "plain":
            assert small.table.shape == (9, left)


def test_where_the_number_of_heads_is_a_literal_features_go():
    _, found = gains(lambda: Fused(literal=True), {"qkv": 4}, (2, 5, 4), heads="whole")
    assert {small.qkv.out_features // small.head_dim for small, *_ in found} == {9}
    assert {small.head_dim for small, *_ in found} > {1}


def test_heads_of_pytorchs_attention():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.attention = nn.Linear(4, 12), nn.MultiheadAttention(12, 3, batch_first=True)
            self.head = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.head(x + self.attention(x, x, x)[0])

    _, found = gains(
        Net,
        {"a": 12, "attention.in_proj_weight": 3, "attention.out_proj": 12},
        (2, 5, 4),
        heads="whole",
    )
    assert {small.attention.num_heads for small, *_ in found} >= {1, 3}


def test_what_is_said_of_heads():
    s = Structure(Apart("bias"), torch.randn(2, 5, 4), heads="whole")
    said = {site.name: site for site in s.sites}
    assert said["q"].reason == said["bias"].reason == "goes with what it is multiplied by"
    assert said["q"].covered
    with pytest.raises(chipnet.ConfigError, match="heads must be 'narrow', 'whole' or 'both', got 'wide'"):
        Structure(Apart("bias"), torch.randn(2, 5, 4), heads="wide")  # type: ignore[arg-type]


def test_a_pruner_of_whole_heads_computes_what_ships():
    torch.manual_seed(0)
    model, x = randomised(Apart("table")), torch.randn(2, 5, 4, dtype=torch.float64)
    pruner = chipnet.Pruner(model, x, "macs=0.6", steps=2, method="uniform", heads="whole")
    plan = pruner.harden(early=True)
    soft = model(x)
    pruner.detach()
    torch.testing.assert_close(soft, chipnet.masked(model, plan)(x))
    torch.testing.assert_close(soft, chipnet.compact(model, plan)(x))
