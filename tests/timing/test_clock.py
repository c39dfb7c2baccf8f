"""Calls are timed in turns; times are seconds a call."""

import time

from chipnet.timing import clock
from chipnet.timing.clock import Timing, interleaved


def test_every_round_times_every_call_once_and_the_order_rotates(monkeypatch):
    monkeypatch.setattr(clock, "SAMPLE", 0.0)  # one call a sample
    order = []
    times = interleaved({n: lambda n=n: order.append(n) for n in "abc"}, seconds=0.0, rounds=4)
    assert {n: len(t) for n, t in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert "".join(order[9:]) == "abcbcacababc"  # after three calls each to warm up


def test_times_are_seconds_per_call():
    times = interleaved({"short": lambda: time.sleep(0.0005), "long": lambda: time.sleep(0.004)}, seconds=0.1)
    short, long = Timing.of(times["short"]), Timing.of(times["long"])
    assert 0.0005 <= short.low <= short.median <= short.high
    assert 0.004 <= long.median < 0.02
    assert short.median < long.median
    assert short.spread == (short.high - short.low) / 2 / short.median
