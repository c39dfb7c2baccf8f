"""What a forward computes for nobody runs in the compact network too, whatever became of what it reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from harness import conforms, corner_masks, random_mask, randomised
from torch import Tensor, nn

import chipnet
from chipnet import Structure


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


class Apart(nn.Module):
    """Attention of three layers and a parameter as its last one, which no stand-in can replace."""

    def __init__(self, heads: int, bias: bool, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6, bias=bias) for _ in range(3))
        self.heads, self.attend, self.out = heads, attend, nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return F.linear(self.attend(q, k, v).transpose(1, 2).flatten(2), self.out)


def attention(how: str, heads: int, bias: bool) -> nn.Module:
    if how == "fused":
        return Apart(heads, bias, F.scaled_dot_product_attention)
    if how == "written out":
        return Apart(heads, bias, written_out)
    return nn.MultiheadAttention(6, heads, bias=bias, add_bias_kv=bias, batch_first=True)


class Net(nn.Module):
    """A stream of 6 channels, and attention whose output nobody reads: alone, or added to the stream for nobody."""

    def __init__(self, how: str, heads: int, bias: bool, where: str) -> None:
        super().__init__()
        self.a, self.attention, self.c = nn.Linear(3, 6), attention(how, heads, bias), nn.Linear(6, 2)
        self.where = where

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x).relu()
        plain = not isinstance(self.attention, nn.MultiheadAttention)
        if self.where == "weights":
            return self.c(x), self.attention(x, x, x)[1]
        y = self.attention(x) if plain else self.attention(x, x, x, need_weights=False)[0]
        y = x + y if self.where == "residual" else y
        return self.c(x)


def checked(build: Callable[[], nn.Module], shape: tuple[int, ...], **options: object) -> Structure:
    torch.manual_seed(0)
    model, x = randomised(build()), torch.randn(*shape, dtype=torch.float64)
    s = Structure(model, x, **options)  # type: ignore[arg-type]
    conforms(model, x, s, [random_mask(s, 0.5), *corner_masks(s)])
    return s


@pytest.mark.parametrize("heads", [1, 3, 6])  # of 6 heads with one feature each, the operator needs all
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("where", ["alone", "residual"])
@pytest.mark.parametrize("how", ["fused", "written out", "PyTorch's"])
def test_attention_that_nobody_reads(how, heads, bias, where):
    checked(lambda: Net(how, heads, bias, where), (2, 4, 3))


@pytest.mark.parametrize("heads", [1, 3, 6])
def test_attention_whose_weights_alone_are_read(heads):
    checked(lambda: Net("PyTorch's", heads, True, "weights"), (2, 4, 3))


class Branch(nn.Module):
    """Two outputs. The second is a softmax over channels, and what comes after it."""

    def __init__(self, after: str) -> None:
        super().__init__()
        self.a, self.d, self.c, self.e = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2), nn.Linear(6, 2)
        self.w, self.shift, self.after = (
            nn.Parameter(torch.randn(2, 6)),
            nn.Parameter(torch.randn(6)),
            after,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x).relu()
        y = self.d(x).softmax(-1)
        match self.after:
            case "weight":
                y = F.linear(y, self.w)
            case "shift":
                y = y + self.shift
            case "numbers":
                y = y + torch.arange(6.0).to(y)
            case "sizes":
                y = y.view(-1, 2, 3)
            case "pieces":
                y = y.split([2, 4], -1)[0]
            case "places":
                y = y[:, [1, 5]]
            case "layer":
                y = self.e(y) * 2
        return self.c(x), y


@pytest.mark.parametrize("after", ["weight", "shift", "numbers", "sizes", "pieces", "places"])
def test_an_output_that_does_not_matter_keeps_the_widths_that_it_runs_at(after):
    s = checked(lambda: Branch(after), (4, 3), outputs="0")
    model, x = Branch(after), torch.randn(4, 3)
    small = chipnet.compact(model, s.plan(torch.arange(s.gates) < 1), x)
    assert (small.a.out_features, small.d.out_features) == (1, 6)


def test_an_output_that_does_not_matter_goes_where_it_runs_at_any_width():
    s = checked(lambda: Branch("layer"), (4, 3), outputs="0")
    small = chipnet.compact(Branch("layer"), s.plan(torch.arange(s.gates) < 1))
    assert not any(p.numel() for layer in (small.d, small.e) for p in layer.parameters())
