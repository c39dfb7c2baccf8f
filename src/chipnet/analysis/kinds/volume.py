"""Output elements of every call of a convolution or linear layer, for the example inputs."""

from collections.abc import Iterable

from chipnet.analysis.kinds.base import Counts, Kind, Term


class Volume(Kind):
    name = "volume"
    about = "output elements of every call of a convolution or linear layer, for the example inputs"

    def parts(self, counts: Counts) -> Iterable[Iterable[Term]]:
        yield [(call.layer.area, (call.works, call.reads, call.rows)) for call in counts.calls]

    def dense(self, counts: Counts) -> int:
        return sum(layer.area * len(layer.rows) for layer in counts.graph.layers)


KIND = Volume()
