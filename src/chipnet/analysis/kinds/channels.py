"""Output channels of every convolution and linear layer; a layer used twice counts once."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import ClassVar

from chipnet.analysis.kinds.base import Counts, Kind, Term


class Channels(Kind):
    name = "channels"
    about = "output channels of every convolution and linear layer (a layer used twice counts once)"
    units: ClassVar = {"channel": Fraction(1)}

    def parts(self, counts: Counts) -> Iterable[Iterable[Term]]:
        yield self._terms(counts)

    def _terms(self, counts: Counts) -> Iterator[Term]:
        for call in {call.layer.weight: call for call in counts.calls}.values():
            yield 1, (call.works, call.reads, call.rows)

    def dense(self, counts: Counts) -> int:
        return sum({layer.weight: len(layer.rows) for layer in counts.graph.layers}.values())


KIND = Channels()
