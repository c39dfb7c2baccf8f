"""Least squares from sums: which weight gives, of the inputs that are left, the outputs nearest to what they were?

With ``X`` the inputs of a layer, ``Y`` the outputs wanted and ``W0`` the weight it has,

    W = (XᵀX/n + λI)⁻¹ (XᵀY/n + λW0)        (ridge regression towards W0)

has no larger error than ``W0`` for any λ ≥ 0. With an offset, ``X`` and ``Y`` are centred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chipnet._util.finite import all_finite
from chipnet.errors import ConfigError

SHRINKAGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""What λ is chosen from, in mean squares of the inputs."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over positions, in float64: all that least squares need, whatever the number of images.

    Attributes:
        count: of positions.
        x: ``[groups, columns]``, of inputs. y: ``[groups, outputs]``.
        xx: ``[groups, columns, columns]``. xy: ``[groups, columns, outputs]``.
        yy: ``[groups, outputs]``, of squares.
    """

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Sums:
        """The sums of rows ``[groups, positions, columns]`` and ``[groups, positions, outputs]``."""
        return cls(x.shape[1], x.sum(1), y.sum(1), x.mT @ x, x.mT @ y, y.square().sum(1))

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def check(self, layer: str) -> Sums:
        """Refuse what is not finite."""
        if not bool(all_finite((self.xx, self.xy, self.yy))):
            raise ConfigError(
                f"on these inputs, what the layer of '{layer}' reads or gives is NaN or infinite: look for such "
                "numbers in the inputs; a network in half precision may need .float()"
            )
        return self

    def centred(self, offset: bool) -> Moments:
        """Means of products; of differences from the mean with an ``offset``."""
        n = max(self.count, 1)
        x, y = self.x / n * offset, self.y / n * offset
        return Moments(
            x,
            y,
            self.xx / n - x.unsqueeze(2) * x.unsqueeze(1),
            self.xy / n - x.unsqueeze(2) * y.unsqueeze(1),
            self.yy / n - y.square(),
            torch.finfo(torch.float64).eps * x.square().sum(1) * x.shape[1],
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """Means of inputs, outputs and their products, as `Sums` has them; all about the means where ``x`` and ``y``
    are not zero. ``rounding``: ``[groups]``, what may be wrong in an eigenvalue of ``xx``, since it is a difference
    of numbers that may be much larger."""

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor
    rounding: Tensor

    def solve(self, start: Tensor, shrinkage: float) -> Tensor:
        """The weight ``[groups, columns, outputs]``; ``shrinkage`` is λ in mean squares of the inputs."""
        regular, ridge = ridged(self.xx, shrinkage, self.rounding)
        factor, failed = torch.linalg.cholesky_ex(regular)
        if bool(failed.any()):
            return start
        return torch.cholesky_solve(self.xy + ridge * start, factor)

    def error(self, weight: Tensor) -> Tensor:
        """Mean squared error of each output, ``[groups, outputs]``, with the best offset where there is one."""
        fitted = ((self.xx @ weight - 2 * self.xy) * weight).sum(1)
        return (self.yy + fitted).clamp(min=0)

    def missing(self, weight: Tensor) -> Tensor:
        """The offset that makes means agree, ``[groups, outputs]``."""
        return self.y - (self.x.unsqueeze(1) @ weight).squeeze(1)


def ridged(squares: Tensor, part: float, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices ``[..., columns, columns]`` with something added to their diagonals, and what was: a ``part`` of the
    diagonal's mean, ``[..., 1, 1]``. It is not less than ``rounding`` ``[...]``, so the matrices have inverses."""
    mean = squares.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = torch.maximum(part * mean, rounding).clamp(min=torch.finfo(torch.float64).tiny)
    regular = squares.clone()
    regular.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
    return regular, ridge[..., None, None]


def fit(halves: Sequence[Sums], start: Tensor, offset: bool) -> tuple[Tensor, float]:
    """The weight ``[groups, columns, outputs]``, and λ in mean squares of the inputs: of `SHRINKAGES` the one with
    which each half of the images tells most about the other; the largest where there is one half."""
    chosen = SHRINKAGES[-1]
    if len(halves) == 2:
        first, second = (half.centred(offset) for half in halves)
        pairs = ((first, second), (second, first))
        told = [sum(float(b.error(a.solve(start, s)).sum()) for a, b in pairs) for s in SHRINKAGES]
        chosen = SHRINKAGES[told.index(min(told))]
    return sum(halves[1:], halves[0]).centred(offset).solve(start, chosen), chosen
