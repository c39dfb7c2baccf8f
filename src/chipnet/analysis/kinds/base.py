"""What a kind of cost is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol

from chipnet.graph.channels import ChannelGraph
from chipnet.graph.facts import Layer, Slots

KINDS = ("channels", "volume", "params", "macs")
"""What is counted for every network, in the order in which files and tables list it."""

Term = tuple[int, tuple[int, ...]]
"""A coefficient, and the counts that it is multiplied by, as indices."""


@dataclass(frozen=True)
class CountedCall:
    """One call of a layer, with indices of counts.

    ``works`` and ``reads`` count 1 or 0: is what it writes needed, and is there anything to read? ``rows`` and
    ``cols`` count channels of it that exist, ``across`` those along another axis; where there are none, it is the
    number 1.
    """

    layer: Layer
    works: int
    reads: int
    rows: int
    cols: int
    across: int


class Counts(Protocol):
    """Numbers of channels that exist, each known by an index; index 0 is the number 1."""

    graph: ChannelGraph
    shapes: Mapping[str, tuple[int, ...]]
    """The shape of every parameter of the dense network."""
    calls: Sequence[CountedCall]
    """Calls of layers, in order."""

    def count(self, slots: Slots) -> int:
        """How many of these slots exist, each as often as it stands there."""
        ...

    def parameters(self) -> Iterable[Term]:
        """Numbers of elements of all parameters."""
        ...


class Kind:
    """One kind of cost: what a budget of it may say, and how it is counted.

    The cost is the largest of its ``parts``, and most kinds have one; a part is a sum of terms.
    """

    name: str
    about: str
    """What is counted, for people."""
    units: ClassVar[Mapping[str, Fraction]] = {}
    """Units that a count of a budget may have -> how many of what is counted one of them is."""
    unit_hint: str = ""
    """What is said of a count without a unit, where it needs one."""
    measured: bool = False
    """Is it measured (`chipnet.timing`), not counted?"""
    unit: str = ""
    """Behind a number, in messages."""

    def parts(self, counts: Counts) -> Iterable[Iterable[Term]]:
        raise NotImplementedError

    def dense(self, counts: Counts) -> int:
        """The cost of the network as given: also what is computed for nothing, or frozen by surgery."""
        raise NotImplementedError

    def read(self, text: str) -> tuple[str, int] | None:
        """A text with a unit of its own: the number as written and how many of what is counted one is; or None."""
        return None

    def write(self, value: int) -> str:
        """An absolute value, so that it reads back exactly."""
        return str(value)

    def show(self, value: float) -> str:
        """An absolute value, for people."""
        return f"{value:,}"
