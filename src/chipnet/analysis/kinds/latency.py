"""Nanoseconds of one forward on the example inputs, as measured: see `chipnet.timing.tables`."""

import re

from chipnet.analysis.kinds.base import Kind

_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "µs": 10**3, "ns": 1}
_TIME = re.compile(r"(\d+\.?\d*|\.\d+)\s*(ns|us|µs|ms|s)")


class Latency(Kind):
    name = "latency"
    about = "nanoseconds of one forward on the example inputs, measured on this machine"
    unit_hint = "a time needs its unit: write '3ms', '250us' or '0.01s'"
    measured = True
    unit = " ns"

    def read(self, text: str) -> tuple[str, int] | None:
        match = _TIME.fullmatch(text)
        return (match[1], _UNITS[match[2]]) if match else None

    def write(self, value: int) -> str:
        unit = next(u for u in ("s", "ms", "us", "ns") if value % _UNITS[u] == 0)
        return f"{value // _UNITS[unit]}{unit}"

    def show(self, value: float) -> str:
        return f"{value / 1e6:.4g} ms"


KIND = Latency()
