"""How long do networks take, and which widths take no longer than a latency budget allows?"""

from chipnet.timing.clock import Timing, interleaved
from chipnet.timing.comparison import RUNTIMES, Comparison, compare

__all__ = ["RUNTIMES", "Comparison", "Timing", "compare", "interleaved"]
