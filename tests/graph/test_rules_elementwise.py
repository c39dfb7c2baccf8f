"""Rules of elementwise operators of several tensors, and of functions of one channel written by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rule_cases import ALL, NO, Around, gains, in_batches
from torch import Tensor


def simam(x: Tensor) -> Tensor:
    """The attention without parameters of SimAM."""
    n = x.shape[2] * x.shape[3] - 1
    d = (x - x.mean(dim=[2, 3], keepdim=True)).pow(2)
    y = d / (4 * (d.sum(dim=[2, 3], keepdim=True) / n + 1e-4)) + 0.5
    return x * torch.sigmoid(y)


def standardised(x: Tensor) -> Tensor:
    """An instance norm by hand."""
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-5)


ELEMENTWISE: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, int]]] = {
    "attention without parameters": (simam, ALL),
    "instance norm by hand": (standardised, ALL),
    "divided by a sum of channels": (lambda x: x / (x.abs().sum(1, keepdim=True) + 1), ALL),
    "divided by its own spread": (lambda x: x / (x.std((2, 3), keepdim=True)), NO),
    "divided by another, shifted": (lambda x: x.relu() / (1 + torch.flip(x, [1]).abs()), {"a": 6, "b": 5}),
    "leaky, by hand": (lambda x: torch.where(x > 0, x, 0.1 * x), ALL),
    "leaky, the other way": (lambda x: torch.where(x >= 0, x, 0.1 * x), ALL),
    "chosen by another channel": (lambda x: torch.where(x.flip(1) > 0, x, 0.1 * x), {"a": 6, "b": 5}),
    "lerp": (lambda x: torch.lerp(x, x.relu(), 0.3).lerp(x.abs(), x.sigmoid()), ALL),
    "addcdiv": (lambda x: torch.addcdiv(x, x, x.abs() + 1), ALL),
    "powers": (lambda x: x.float_power(2) + x.pow(3) + x.abs().pow(0.5), ALL),
    "a power of channels": (lambda x: 2**x, NO),
    "remainders": (lambda x: x % 2 + x.fmod(0.7), ALL),
    "remainder of channels": (lambda x: x % (x.abs() + 1), NO),
    "hypot": (lambda x: x.hypot(x * 2) + torch.atan2(x, x.relu()) + torch.fmax(x, x * 2), ALL),
    "logaddexp": (lambda x: torch.logaddexp(x, x * 2), NO),
    "complex": (lambda x: torch.view_as_real(torch.complex(x, x * 2).conj().resolve_conj()).sum(-1), ALL),
    "polar": (lambda x: torch.polar(x.abs(), x).real + torch.complex(x, x * 3).imag, ALL),
    "view_as_complex": (
        lambda x: torch.view_as_complex(x.unflatten(3, (3, 2)).contiguous()).imag,
        ALL,
    ),
    "eval-mode dropouts": (
        lambda x: F.feature_alpha_dropout(F.alpha_dropout(x, 0.5, False), 0.5, False),
        ALL,
    ),
    "rrelu": (lambda x: F.rrelu(x) + F.hardshrink(x) + F.hardtanh_(x.clone()), ALL),
    "signs": (lambda x: x.sign() * x + torch.heaviside(x.detach(), x.detach()), ALL),
    "masks": (lambda x: (x > 0) * x + torch.logical_not(x > 0) * x + x.masked_fill(x > 1, 0), ALL),
    "masked with a number": (lambda x: x.masked_fill(x > 1, 2.0), NO),
    "logit": (lambda x: x.sigmoid().logit(eps=0.1), NO),
    "clamped": (lambda x: x.clamp(-x.abs() / 2, x.abs()), ALL),
    "clamped above 1": (lambda x: x.clamp(min=1.0), NO),
    "other names": (lambda x: torch.multiply(x, x).subtract(x).divide(2) + torch.special.expit(x) * x, ALL),
    "rounded": (
        lambda x: (x * 2).round(decimals=1) + x.trunc() + x.detach() // 2 + x.div(3, rounding_mode="floor"),
        ALL,
    ),
}


@pytest.mark.parametrize(("f", "gates", "c"), in_batches({k: (*v, 12) for k, v in ELEMENTWISE.items()}))
def test_what_an_elementwise_operator_leaves_prunable(f, gates, c):
    gains(lambda: Around(f), gates)
