"""Methods: ways to give every gate a value. Everything else (gates, costs, hardening, compaction) is shared.

A method is one file with one class; ``METHODS`` is the table of all of them.
"""

from chipnet.methods._base import Method
from chipnet.methods._chipnet import ChipNet
from chipnet.methods._paper import ChipNetPaper
from chipnet.methods._scores import Magnitude, Random, Uniform

METHODS: dict[str, type[Method]] = {m.name: m for m in (ChipNet, ChipNetPaper, Magnitude, Random, Uniform)}

__all__ = ["METHODS", "ChipNet", "ChipNetPaper", "Magnitude", "Method", "Random", "Uniform"]
