"""How is time taken? Calls are timed in turns, so that what else the machine does hits all of them.

Times are wall-clock seconds per call. What is compared are medians and quartiles over rounds. In a round every call
is timed once, and the order rotates.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chipnet._util.device import device_of
from chipnet._util.sizes import check_size
from chipnet.errors import ConfigError
from chipnet.program.inputs import Inputs

SAMPLE = 0.002
"""A sample takes at least so many seconds: fast calls are repeated, as a clock is not exact."""

SECONDS = 2.0
"""`side_by_side` measures for so many seconds."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one network in one runtime: median, quartiles and shortest over rounds."""

    median: float
    low: float
    high: float
    best: float
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """
        >>> Timing.of([3.0, 1.0, 2.0, 5.0, 4.0])
        Timing(median=3.0, low=2.0, high=4.0, best=1.0, rounds=5)
        """
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, min(samples), len(samples))

    @classmethod
    def ratio(cls, first: Sequence[float], second: Sequence[float]) -> Timing:
        """The second call's time as a part of the first's, round by round.

        >>> Timing.ratio([2.0, 2.0, 4.0], [1.0, 3.0, 2.0]).median
        0.5
        """
        return cls.of([b / a for a, b in zip(first, second, strict=True)])

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, as a part of the median."""
        return (self.high - self.low) / 2 / self.median


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 3.0,
    rounds: int = 9,
    sync: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time calls in turns: in every round each is timed once, and the order rotates.

    Args:
        calls: what to time, by name.
        seconds: rounds go on until these have passed.
        rounds: how many there are at least.
        sync: waits until the device has done its work; see `sync_of`.

    Returns:
        Per name the seconds per call of every round; sample ``i`` of all names is of the same round.

    Raises:
        ConfigError: there are no calls.

    Example:
        >>> times = interleaved({"a": lambda: sum(range(9)), "b": lambda: sum(range(9999))}, seconds=0.1)
        >>> len(times["a"]) == len(times["b"]) >= 9 and min(times["b"]) > min(times["a"])
        True
    """
    if not isinstance(calls, Mapping) or not calls or not all(map(callable, calls.values())):
        raise ConfigError("calls must be functions by name, at least one: give {'dense': lambda: dense(x)}")
    repeats = {name: _warmed(call, min(seconds / 10, 0.3), sync) for name, call in calls.items()}
    samples: dict[str, list[float]]
    names, done, samples = list(calls), 0, {name: [] for name in calls}
    until = time.perf_counter() + seconds
    while done < rounds or (time.perf_counter() < until and done < 1000):
        turn = done % len(names)
        for name in names[turn:] + names[:turn]:
            call, count = calls[name], repeats[name]
            sync()
            begin = time.perf_counter()
            for _ in range(count):
                call()
            sync()
            samples[name].append((time.perf_counter() - begin) / count)
        done += 1
    return samples


def _warmed(call: Callable[[], Any], seconds: float, sync: Callable[[], None]) -> int:
    """Warm a call up; how often it is repeated for one sample."""
    sync()
    until, count = time.perf_counter() + seconds, 0
    begin = time.perf_counter()
    while count < 3 or time.perf_counter() < until:
        call()
        count += 1
    sync()
    return max(1, math.ceil(SAMPLE * count / (time.perf_counter() - begin)))


@torch.no_grad()
def side_by_side(dense: nn.Module, compact: nn.Module, inputs: Inputs) -> dict[str, Timing]:
    """One forward of each in eager mode (``"dense"``, ``"compact"``), and the ``"ratio"`` round by round."""
    device = device_of(dense)
    given = inputs.to(device)
    calls = {
        "dense": lambda: dense(*given.args, **given.kwargs),
        "compact": lambda: compact(*given.args, **given.kwargs),
    }
    samples = interleaved(calls, seconds=SECONDS, rounds=15, sync=sync_of(device))
    found = {name: Timing.of(times) for name, times in samples.items()}
    return {**found, "ratio": Timing.ratio(samples["dense"], samples["compact"])}


# -- the machine ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What limits a layer on this machine, measured.

    Attributes:
        macs: multiply-accumulates a second, of a matrix product.
        bytes: bytes a second, of a copy.
        call: seconds that a call takes which computes nearly nothing.
    """

    macs: float
    bytes: float
    call: float

    @classmethod
    def measured(cls, device: torch.device) -> Machine:
        square = torch.randn(384, 384, device=device)
        many = torch.randn(1 << 23, device=device)
        into = torch.empty_like(many)
        tiny, one = nn.Conv2d(1, 1, 1).to(device), torch.zeros(1, 1, 1, 1, device=device)
        calls = {
            "macs": lambda: square @ square,
            "bytes": lambda: into.copy_(many),
            "call": lambda: tiny(one),
        }
        samples = interleaved(calls, seconds=0.3, rounds=5, sync=sync_of(device))
        took = {name: statistics.median(times) for name, times in samples.items()}
        return cls(384**3 / took["macs"], 2 * many.nbytes / took["bytes"], took["call"])


def sync_of(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has done its work. A CPU has done it when a call returns."""
    return torch.cuda.synchronize if device.type == "cuda" else (lambda: None)


def device_name(device: torch.device) -> str:
    """What the device is called: a GPU's name, or a CPU's as the system gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return f"{device.type} {platform.machine()} {model}".strip()


@contextmanager
def threads_set_to(count: int | None) -> Iterator[int]:
    """PyTorch computes with so many threads inside; None: with as many as before. Gives their number."""
    was = torch.get_num_threads()
    if count is not None:
        check_size("threads", count)
    torch.set_num_threads(count or was)
    try:
        yield count or was
    finally:
        torch.set_num_threads(was)
