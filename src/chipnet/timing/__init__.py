"""How long do networks take, and which widths take no longer than a latency budget allows?"""

from chipnet.timing.clock import Timing, interleaved
from chipnet.timing.comparison import RUNTIMES, Comparison, compare
from chipnet.timing.layers import Part, parts

__all__ = ["RUNTIMES", "Comparison", "Part", "Timing", "compare", "interleaved", "parts"]
