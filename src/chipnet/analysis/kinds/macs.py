"""Multiply-accumulates as ``torch.utils.flop_counter`` counts them, for the example inputs."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import ClassVar

from chipnet.analysis.kinds.base import Counts, Kind, Term


class Macs(Kind):
    name = "macs"
    about = (
        "multiply-accumulates (2 FLOPs) as ``torch.utils.flop_counter`` counts them, for the example inputs"
    )
    units: ClassVar = {"mac": Fraction(1), "flop": Fraction(1, 2)}

    def parts(self, counts: Counts) -> Iterable[Iterable[Term]]:
        yield self._terms(counts)

    def _terms(self, counts: Counts) -> Iterator[Term]:
        for call in counts.calls:
            if call.layer.macs_per:
                yield call.layer.macs_per, (call.works, call.rows, call.cols, call.across)
        for product in counts.graph.products:
            yield product.macs_per, (counts.count(product.slots),)
        yield counts.graph.fixed_macs, ()

    def dense(self, counts: Counts) -> int:
        return counts.graph.macs


KIND = Macs()
