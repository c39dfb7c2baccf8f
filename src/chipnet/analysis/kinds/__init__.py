"""The kinds of cost: one object in one file each. Files of this folder are found by themselves.

>>> print(*KIND)
channels volume params macs latency memory
"""

import importlib
import pkgutil
from collections.abc import Mapping

from chipnet.analysis.kinds.base import KINDS, Kind

LATENCY = "latency"
"""The name of the kind that is measured."""


def _found() -> Mapping[str, Kind]:
    files = [m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"]
    kinds: list[Kind] = [importlib.import_module(f"{__name__}.{file}").KIND for file in sorted(files)]
    table = {kind.name: kind for kind in kinds}
    return {name: table[name] for name in (*KINDS, *(n for n in table if n not in KINDS))}


KIND = _found()
"""Name -> kind: first those that are counted for every network."""

__all__ = ["KIND", "KINDS", "LATENCY", "Kind"]
