"""Output elements of every call of a convolution or linear layer, for the example inputs."""

from collections.abc import Iterable

from chipnet.analysis.kinds.base import Counts, Kind, Term


class Volume(Kind):
    name = "volume"
    about = "output elements of every call of a convolution or linear layer, for the example inputs"

    def parts(self, counts: Counts) -> Iterable[Iterable[Term]]:
        yield [(call.layer.area, (call.works, call.reads, call.rows, call.across)) for call in counts.calls]

    def dense(self, counts: Counts) -> int:
        layers = counts.graph.layers
        return sum(x.area * len(x.rows) * (1 if x.across is None else len(x.across)) for x in layers)


KIND = Volume()
