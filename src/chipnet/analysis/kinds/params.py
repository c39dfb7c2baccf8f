"""Elements of all parameters."""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import ClassVar

from chipnet.analysis.kinds.base import Counts, Kind, Term


class Params(Kind):
    name = "params"
    about = "``sum(p.numel() for p in model.parameters())``"
    units: ClassVar = {"param": Fraction(1)}

    def parts(self, counts: Counts) -> Iterable[Iterable[Term]]:
        yield counts.parameters()

    def dense(self, counts: Counts) -> int:
        return sum(math.prod(shape) for shape in counts.shapes.values())


KIND = Params()
