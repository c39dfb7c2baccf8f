"""Attention keeps heads; the features of queries and keys are pruned, and those of values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rule_cases import gains
from torch import Tensor, nn

import chipnet
from chipnet import Structure


class Attention(nn.Module):
    """Self-attention whose values have a width of their own, in heads or not."""

    def __init__(self, heads: int = 0, causal: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.q, self.k, self.v = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 10)
        self.out, self.heads, self.causal = nn.Linear(10, 3), heads, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.heads:
            q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        return self.out(y.transpose(1, 2).flatten(2) if self.heads else y)


@pytest.mark.parametrize(("heads", "gates"), [(0, (6, 10)), (2, (3, 5))])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_features_of_queries_and_keys_and_of_values_are_pruned_apart(heads, gates, causal, scale):
    """One of each stays. The scale of 1 / root of the width is made up for; a given one stays."""
    features, values = gates
    _, found = gains(
        lambda: Attention(heads, causal, scale), {"q": features, "k": features, "v": values}, (2, 5, 4)
    )
    scaled = {rows.parameter for _, plan, _ in found for rows in plan.rows}
    assert scaled == (set() if scale else {"q.weight", "q.bias"})


def test_the_factor_of_queries_as_worked_out_by_hand():
    torch.manual_seed(0)
    model, x = Attention().double(), torch.randn(2, 5, 4, dtype=torch.float64)
    s = Structure(model, x)
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[next(site for site in s.sites if site.name == "q").gates[[2, 4]]] = False
    plan = s.plan(mask)
    assert {(r.parameter, r.at, r.factor) for r in plan.rows} == {
        (name, (0, 1, 2, 3), (4 / 6) ** 0.5) for name in ("q.weight", "q.bias")
    }
    small = chipnet.compact(model, plan)
    torch.testing.assert_close(small.q.weight, model.q.weight[[0, 1, 3, 5]] * (4 / 6) ** 0.5)
    torch.testing.assert_close(small.k.weight, model.k.weight[[0, 1, 3, 5]])
    assert chipnet.Plan.from_json(plan.to_json()) == plan


class Fused(nn.Module):
    """Queries, keys and values of one layer, as timm has them; with queries that are read elsewhere or changed."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how, self.heads, self.head_dim = how, 2, 5
        self.qkv, self.out = nn.Linear(4, 30), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.how == "curved":
            q = F.gelu(q)
        y = F.scaled_dot_product_attention(q, q if self.how == "shared" else k, v)
        y = y + q if self.how == "read" else y
        return self.out(y.transpose(1, 2).flatten(2))


class WrittenOut(nn.Module):
    """Attention by hand, with a bias for each pair of positions in each head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 10)
        self.out, self.heads, self.scale = nn.Linear(10, 3), heads, 0.4
        self.bias = nn.Parameter(torch.randn(heads, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = (q * self.scale) @ k.transpose(-2, -1) + self.bias
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_written_out_attention_loses_features_in_each_head():
    gains(lambda: WrittenOut(2), {"q": 3, "k": 3, "v": 5}, (2, 5, 4))


def test_fused_queries_keys_and_values_lose_the_same_features_in_each_head():
    _, found = gains(Fused, {"qkv": 5}, (2, 5, 4))
    assert {small.head_dim for small, *_ in found} > {1}
    assert all(small.qkv.out_features == 6 * small.head_dim for small, *_ in found)


@pytest.mark.parametrize("how", ["read", "shared", "curved"])
def test_queries_that_cannot_be_scaled_are_kept_whole(how):
    s = Structure(Fused(how), torch.randn(2, 5, 4))
    assert {site.name: site.free for site in s.sites} == {"qkv": 0, "out": 0}
