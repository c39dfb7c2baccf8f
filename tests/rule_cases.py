"""Minimal networks around an operator: the gates that its rule must leave, and exact pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import Pruned, conforms, corner_masks, random_mask, randomised
from torch import Tensor, nn

from chipnet import Structure

Build = Callable[[], nn.Module]
Case = tuple[Callable[[Tensor], Tensor], dict[str, int], int]
ALL, NO = {"a": 12, "b": 5}, {"b": 5}
"""Gates in `Around`: of both convolutions, or only after what keeps the first whole."""


def gains(
    build: Build,
    gates: Mapping[str, int],
    shape: Sequence[int] = (2, 3, 6, 6),
    *,
    train: bool = True,
    **options: Any,
) -> tuple[Structure, list[Pruned]]:
    """Exactly the given sites are free, with so many gates each; pruning conforms in both realisations. ``options``
    are those of `Structure`."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return randomised(build())

    model, x = made(), torch.randn(*shape, dtype=torch.float64)
    for realisation in ("indexed", "plain"):
        s = Structure(model, x, realisation=realisation, **options)  # type: ignore[arg-type]
        masks = [random_mask(s, d) for d in (0.5, 0.25, 0.75)] if s.gates else []
        found = conforms(model, x, s, [*masks, *corner_masks(s)], factory=made, train=train)
    assert {site.name: site.free for site in s.sites if site.free} == dict(gates)
    return s, found


def reasons(s: Structure) -> str:
    return "\n".join(site.reason for site in s.sites)


class Around(nn.Module):
    """conv 3>12, ``f``, conv c>5, mean, fc: what ``f`` leaves of the first convolution's gates."""

    def __init__(self, f: Callable[[Tensor], Tensor], c: int = 12) -> None:
        super().__init__()
        self.a, self.f, self.b, self.fc = (
            nn.Conv2d(3, 12, 3, padding=1),
            f,
            nn.Conv2d(c, 5, 1),
            nn.Linear(5, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.f(self.a(x)))).mean((2, 3)))


def in_batches(cases: Mapping[str, Case], size: int = 8) -> list[Any]:
    """Cases as parameters of a test; those that leave all 12 channels free, several in one network: a mean over the
    positions of each, added."""
    free = [name for name, (_, gates, c) in cases.items() if gates == ALL and c == 12]
    batches = [free[i : i + size] for i in range(0, len(free), size)]

    def added(names: list[str]) -> Callable[[Tensor], Tensor]:
        def f(x: Tensor) -> Tensor:
            results = [cases[name][0](x) for name in names]
            return sum(y.mean(tuple(range(2, y.dim())), keepdim=True) for y in results)  # type: ignore[return-value]

        return f

    alone = [pytest.param(*case, id=name) for name, case in cases.items() if name not in free]
    return [*(pytest.param(added(b), ALL, 12, id=", ".join(b)) for b in batches), *alone]
