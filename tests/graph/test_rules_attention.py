"""Attention keeps queries, keys and heads; the channels of its values are pruned."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from rule_cases import gains, reasons
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention whose values have a width of their own, in heads or not."""

    def __init__(self, heads: int = 0, causal: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 10)
        self.out, self.heads, self.causal = nn.Linear(10, 3), heads, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.heads:
            q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2) if self.heads else y)


@pytest.mark.parametrize(("heads", "gates"), [(0, 9), (2, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_the_values_of_attention_are_pruned(heads, gates, causal):
    s, _ = gains(lambda: Attention(heads, causal), {"v": gates}, (2, 5, 4))
    assert "queries and keys of attention" in reasons(s)
