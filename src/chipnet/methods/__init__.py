"""Methods: ways to give every gate a value. Everything else (gates, costs, hardening, compaction) is shared.

A method is one file with one class; ``METHODS`` is the table of all of them, tried by ``tests/test_methods.py``.
"""

from chipnet.methods._bar import BAR
from chipnet.methods._base import Method
from chipnet.methods._chipnet import ChipNet
from chipnet.methods._fisher import Fisher
from chipnet.methods._magnitude import Magnitude
from chipnet.methods._paper import ChipNetPaper
from chipnet.methods._random import Random
from chipnet.methods._slimming import Slimming
from chipnet.methods._taylor import Taylor
from chipnet.methods._uniform import Uniform

METHODS: dict[str, type[Method]] = {
    m.name: m for m in (ChipNet, ChipNetPaper, BAR, Slimming, Magnitude, Taylor, Fisher, Random, Uniform)
}

__all__ = [
    "BAR",
    "METHODS",
    "ChipNet",
    "ChipNetPaper",
    "Fisher",
    "Magnitude",
    "Method",
    "Random",
    "Slimming",
    "Taylor",
    "Uniform",
]
