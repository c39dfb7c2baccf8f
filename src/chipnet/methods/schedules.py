"""Schedules: frozen values called with progress = step / total steps, in [0, 1].

Nothing here counts steps, so the same schedule serves a run of 300 steps and one of 100,000, and calling it
twice or out of order changes nothing. Each schedule raises `ConfigError` (a `ValueError`) for progress
outside [0, 1].

    >>> from chipnet.methods.schedules import Linear
    >>> warm = Linear(0.0, 1.0)
    >>> total = 4
    >>> [warm(step / total) for step in range(total + 1)]
    [0.0, 0.25, 0.5, 0.75, 1.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from chipnet.errors import ConfigError

Schedule = Callable[[float], float]
"""Anything that turns progress in [0, 1] into a number: the classes below, or a function of the user's."""


def _checked(progress: float) -> float:
    # Written so that NaN fails too.
    if not 0.0 <= progress <= 1.0:
        raise ConfigError(
            f"progress must be in [0, 1], got {progress!r}; pass step / total_steps, not a step or an epoch"
        )
    return progress


def _check_part(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise ConfigError(f"{name} is the part of the run that it takes, in (0, 1], got {value!r}")


@dataclass(frozen=True)
class Constant:
    """The same value throughout.

    Examples:
        >>> Constant(0.5)(0.3)
        0.5
    """

    value: float

    def __call__(self, progress: float) -> float:
        _checked(progress)
        return self.value


@dataclass(frozen=True)
class Linear:
    """start + (end − start) · min(p / until, 1): a straight line that reaches `end` at progress `until`.

    Examples:
        >>> Linear(0.0, 10.0)(0.25)
        2.5
        >>> Linear(0.0, 10.0, until=0.5)(0.25), Linear(0.0, 10.0, until=0.5)(0.75)
        (5.0, 10.0)
    """

    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        _check_part("until", self.until)

    def __call__(self, progress: float) -> float:
        t = min(_checked(progress) / self.until, 1.0)
        # Not start + (end − start)·t: this form returns both end points exactly.
        return (1.0 - t) * self.start + t * self.end


@dataclass(frozen=True)
class Exponential:
    """start · (end / start)^p: equal ratios in equal time. Both ends must be positive.

    Examples:
        >>> round(Exponential(1.0, 100.0)(0.5), 6)
        10.0
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.end > 0):
            raise ConfigError(
                f"an exponential schedule needs start > 0 and end > 0, got {self.start!r} and "
                f"{self.end!r}; use Linear to start from or reach zero"
            )

    def __call__(self, progress: float) -> float:
        p = _checked(progress)
        return self.start ** (1.0 - p) * self.end**p


@dataclass(frozen=True)
class Doubling:
    """min(start · 2^⌊p · doublings⌋, cap): doubled `doublings` times over the run, never above `cap`.

    Examples:
        >>> gamma = Doubling(2.0, cap=256.0, doublings=10)
        >>> gamma(0.0), gamma(0.1), gamma(0.35), gamma(1.0)
        (2.0, 4.0, 16.0, 256.0)
    """

    start: float
    cap: float
    doublings: int

    def __call__(self, progress: float) -> float:
        # The slack lets step / total reach a doubling on its very step: 29 / 100 · 100 is 28.999… in floats.
        done = math.floor(_checked(progress) * self.doublings + 1e-9)
        return min(self.start * 2.0**done, self.cap)


@dataclass(frozen=True)
class Cubic:
    """end + (start − end) · (1 − min(p / until, 1))³: fast at first, then gently into `end`.

    The shrinking of a budget, after Zhu & Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878 (their
    equation is for sparsity, one minus what remains).

    Examples:
        >>> budget = Cubic(1.0, 0.25, until=0.5)
        >>> budget(0.0), budget(0.25), budget(0.5), budget(1.0)
        (1.0, 0.34375, 0.25, 0.25)
    """

    start: float
    end: float
    until: float = 0.4

    def __post_init__(self) -> None:
        _check_part("until", self.until)

    def __call__(self, progress: float) -> float:
        left = 1.0 - min(_checked(progress) / self.until, 1.0)
        # Weights that sum to one return both ends exactly; end + (start − end) may miss start by a rounding.
        return (1.0 - left**3) * self.end + left**3 * self.start


@dataclass(frozen=True)
class Cosine:
    """end + (start − end) · (1 + cos πp) / 2: half a cosine from `start` to `end`.

    Loshchilov & Hutter, "SGDR", 2017, arXiv:1608.03983, one cycle without restarts.

    Examples:
        >>> Cosine(1.0, 0.0)(0.0), Cosine(1.0, 0.0)(0.5), Cosine(1.0, 0.0)(1.0)
        (1.0, 0.5, 0.0)
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return _half_cosine(self.start, self.end, _checked(progress))


@dataclass(frozen=True)
class Steps:
    """start · factor^k after the k-th of the moments `at`.

    Examples:
        >>> lr = Steps(1.0, factor=0.1, at=(0.5, 0.75))
        >>> lr(0.49), lr(0.5), round(lr(0.75), 6), round(lr(1.0), 6)
        (1.0, 0.1, 0.01, 0.01)
    """

    start: float
    factor: float = 0.1
    at: tuple[float, ...] = (0.5, 0.75)

    def __post_init__(self) -> None:
        for moment in self.at:
            _check_part("at", moment)

    def __call__(self, progress: float) -> float:
        p = _checked(progress)
        passed = sum(p >= moment for moment in self.at)
        return self.start * self.factor**passed


@dataclass(frozen=True)
class OneCycle:
    """Up from peak / `start_factor` to `peak` in the first `warmup` of a run, down to peak / `end_factor`.

    Smith & Topin, "Super-Convergence", 2018, arXiv:1708.07120, with half cosines in place of straight legs.

    Examples:
        >>> lr = OneCycle(1.0, warmup=0.25, start_factor=10.0, end_factor=100.0)
        >>> lr(0.0), lr(0.25), round(lr(0.625), 6), lr(1.0)
        (0.1, 1.0, 0.505, 0.01)
    """

    peak: float
    warmup: float = 0.3
    start_factor: float = 25.0
    end_factor: float = 1e4

    def __post_init__(self) -> None:
        if not 0.0 < self.warmup < 1.0:
            raise ConfigError(
                f"warmup is the part of the run before the peak, in (0, 1), got {self.warmup!r}; "
                "use Cosine for a run without warm-up"
            )

    def __call__(self, progress: float) -> float:
        p = _checked(progress)
        if p < self.warmup:
            return _half_cosine(self.peak / self.start_factor, self.peak, p / self.warmup)
        return _half_cosine(self.peak, self.peak / self.end_factor, (p - self.warmup) / (1.0 - self.warmup))


def _half_cosine(start: float, end: float, t: float) -> float:
    w = 0.5 * (1.0 - math.cos(math.pi * t))
    return (1.0 - w) * start + w * end


class Sharpness(NamedTuple):
    """How sharp the projections are at one moment: β of `logistic`, γ of `heaviside`, s of `sharpen`."""

    beta: float
    gamma: float
    s: float


@dataclass(frozen=True)
class Continuation:
    """The three sharpness parameters as schedules of progress; called, it returns a `Sharpness`.

    Continuation starts with a smooth problem and sharpens it slowly, so that gradients reach every channel
    early and masks are nearly discrete at the end.

    Examples:
        >>> now = Continuation.paper()(0.5)
        >>> now.beta, now.gamma, now.s
        (1.2, 64.0, 60.0)
        >>> Continuation(beta=Constant(1.0), gamma=Linear(2.0, 32.0), s=Constant(20.0))(0.0)
        Sharpness(beta=1.0, gamma=2.0, s=20.0)
    """

    beta: Schedule
    gamma: Schedule
    s: Schedule

    def __call__(self, progress: float) -> Sharpness:
        return Sharpness(self.beta(progress), self.gamma(progress), self.s(progress))

    @classmethod
    def paper(cls) -> Continuation:
        """Return the settings of Tiwari et al. 2021 (20 epochs) as functions of progress.

        β grows from 1 by 0.02 an epoch to 1.4 (the cap of 6 is out of reach in 20 epochs); γ doubles from 2
        every 2 epochs up to 256; s grows from 10 by 5 an epoch and meets its cap of 60 half-way. β moves
        continuously here, in steps of an epoch in the paper: they differ by 0.02 at most.

        Examples:
            >>> Continuation.paper()(0.0), Continuation.paper()(1.0)
            (Sharpness(beta=1.0, gamma=2.0, s=10.0), Sharpness(beta=1.4, gamma=256.0, s=60.0))
        """
        return cls(
            beta=Linear(1.0, 1.4),
            gamma=Doubling(2.0, cap=256.0, doublings=10),
            s=Linear(10.0, 60.0, until=0.5),
        )
