"""Output elements of every call of a convolution or linear layer, for the example inputs."""

from collections.abc import Iterable

from chipnet.analysis.kinds.base import Counts, Kind, Term


class Volume(Kind):
    name = "volume"
    about = "output elements of every call of a convolution or linear layer, for the example inputs"

    def parts(self, counts: Counts) -> Iterable[Iterable[Term]]:
        yield [(layer.area, (*counts.runs(layer), counts.count(layer.rows))) for layer in counts.graph.layers]

    def dense(self, counts: Counts) -> int:
        return sum(layer.area * len(layer.rows) for layer in counts.graph.layers)


KIND = Volume()
