"""What came of a latency budget: the target, and what was measured. Plain numbers, which any program can read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Landing:
    """The target of a latency budget, and the times of the dense and the compact network, measured in turns.

    Attributes:
        asked: the target: a part of the dense time (a float), or nanoseconds (an int).
        dense, compact: the shortest times, in nanoseconds.
        median, low, high: of the compact network's time as a part of the dense one's, round by round.
        spread: half of the distance between the quartiles of the compact network's times, as a part of the median.
        threads, device: where.
        networks: how many were built and measured.
    """

    asked: int | float
    dense: float
    compact: float
    median: float
    low: float
    high: float
    spread: float
    threads: int
    device: str
    networks: int

    @property
    def left(self) -> float:
        """Part of the dense time that is left: the ratio of the shortest times, or the median if larger."""
        return max(self.compact / self.dense, self.median)

    @property
    def measured(self) -> float:
        """What counts, in the unit of the target."""
        return self.left if isinstance(self.asked, float) else self.left * self.dense

    @property
    def dense_measured(self) -> float:
        """The dense network's time, in the unit of the target."""
        return 1.0 if isinstance(self.asked, float) else self.dense

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"latency: {self.left:.1%} of the dense time; asked {target_text(self.asked)}. Shortest "
            f"{milliseconds(self.compact)} of {milliseconds(self.dense)}, {self.compact / self.dense:.1%}; median "
            f"of the rounds {self.median:.1%} "
            f"({self.low:.1%} to {self.high:.1%}); {self.device}, {self.threads} thread(s)"
        )


def target_text(target: int | float) -> str:
    """A target, for people.

    >>> target_text(0.5), target_text(3_000_000)
    ('50.00% of the dense time', '3 ms')
    """
    return f"{target:.2%} of the dense time" if isinstance(target, float) else milliseconds(target)


def milliseconds(nanoseconds: float) -> str:
    """A time, for people."""
    return f"{nanoseconds / 1e6:.3g} ms"
