"""The channel graph: what a walk has found out. It does not change, and it prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from chipnet._util.text import amount
from chipnet.graph.facts import (
    Activation,
    Fact,
    Frozen,
    Layer,
    LiveNorm,
    Note,
    Number,
    Pin,
    PinCode,
    Place,
    Product,
    Queries,
    Rescaled,
    Resize,
    Risk,
    Slots,
    Tie,
)
from chipnet.graph.text import fact_text, param_texts, pin_texts, tie_texts


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Everything that a walk found. It does not change; it prints one line for each fact, parameter, tie and pin.

    Attributes:
        root: of every slot, the class that it is in: the first slot of that.
        pins: class -> why it is kept whole.
        facts: in the order of the operators.
        places: where each of the facts is from.
        layers, products: what costs depend on.
        fixed_macs: multiply-accumulates of operators that no mask changes.
        axes: parameter or buffer -> axis -> the slot that each index along it belongs to.
        owners: module -> its facts, for modules that a constant can stand in for when all of these are dead.
        pools: pooling module -> its channels: it must be spared an input without any.
        resizes: index maps around modules.
        activations: memory that operators of the eval forward take for their results.
        risky: node -> what is known of operators whose integer arguments may be numbers of the user's.
        literal: nodes whose sizes do not follow widths, with the reason.
        numbers: sizes in attributes that surgery updates.
        notes: numbers that may count widths and do not follow.
        frozen: module -> how its computed weight becomes a plain one.
        rescaled: module -> the mean over channels that surgery makes up for.
        live: module -> a norm whose statistics are those of channels that exist, and the channels that it reads.
        queries: weight -> a layer that writes queries of attention, which surgery scales.
        outputs: node -> the module whose output it is, and its channels: gates may go there if nowhere else.
        groups: slot -> a slot with whose class it shares a gate though both are not tied; None: it has none.
        boxed: weights whose rows write heads and features that both go.
        extents: slots that are there where any of the slots at one head, or one feature, is.
        ties: a slot of a class, and an operator that ties slots of it: why sites share gates.

    Example:
        >>> import torch, chipnet
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
        >>> print(chipnet.Structure(network, torch.ones(1, 1, 3, 3)).graph)
        10 slots in 10 classes, 6 of them pinned
        source 0 live
        source 1
        source 2 live flows  # input
        mix 3-6 = sum(2) + bias, gate 0.weight  # conv2d in 0 (conv.py:...)
        mix 7-8 = sum(3-6) + bias, gate 2.weight  # conv2d_1 in 2 (conv.py:...)
        output 9 = all(7-8)  # conv2d_1 in 2 (conv.py:...)
        cut 0.weight[0: 3-6; 1: 2]
        cut 0.bias[0: 3-6]
        cut 2.weight[0: 7-8; 1: 3-6]
        cut 2.bias[0: 7-8]
        pin 0-1 constant: a constant
        pin 2 input: an input of the network  # input
        pin 7-9 output: an output of the network  # conv2d_1
    """

    root: Slots
    pins: Mapping[int, Pin]
    facts: Sequence[Fact]
    places: Sequence[Place]
    layers: Sequence[Layer] = ()
    products: Sequence[Product] = ()
    fixed_macs: int = 0
    axes: Mapping[str, Mapping[int, Slots]] = field(default_factory=dict)
    owners: Mapping[str, Sequence[int]] = field(default_factory=dict)
    pools: Mapping[str, Slots] = field(default_factory=dict)
    resizes: Sequence[Resize] = ()
    activations: Sequence[Activation] = ()
    risky: Mapping[str, Risk] = field(default_factory=dict)
    literal: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[tuple[str, str, int | None], Number] = field(default_factory=dict)
    notes: Sequence[Note] = ()
    frozen: Mapping[str, Frozen] = field(default_factory=dict)
    rescaled: Mapping[str, Rescaled] = field(default_factory=dict)
    live: Mapping[str, tuple[LiveNorm, Slots]] = field(default_factory=dict)
    queries: Mapping[str, Queries] = field(default_factory=dict)
    outputs: Mapping[str, tuple[str, Slots]] = field(default_factory=dict)
    groups: Mapping[int, int | None] = field(default_factory=dict)
    boxed: frozenset[str] = frozenset()
    extents: Mapping[int, Slots] = field(default_factory=dict)
    ties: Sequence[tuple[int, Tie]] = ()

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self.root)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the network as it is."""
        layers = sum(
            x.macs_per * len(x.rows) * len(x.cols) * (1 if x.across is None else len(x.across))
            for x in self.layers
        )
        return self.fixed_macs + layers + sum(p.macs_per * len(p.slots) for p in self.products)

    def classes(self, slots: Slots) -> Slots:
        """Classes of ``slots``, elementwise."""
        return self.root[slots]

    def pinned(self, slots: Slots) -> NDArray[np.bool_]:
        """Which of ``slots`` are in a pinned class."""
        return np.isin(self.root[slots], list(self.pins))

    def held(self, slots: Slots) -> NDArray[np.bool_]:
        """Which of ``slots`` are in a pinned class that must not be zero either."""
        return np.isin(
            self.root[slots], [r for r, p in self.pins.items() if p.code is not PinCode.NEVER_EMPTY]
        )

    def with_pins(self, more: Iterable[tuple[Slots, Pin]]) -> ChannelGraph:
        """The same with more classes kept whole. Of several reasons for one class the first stays."""
        pins = dict(self.pins)
        for slots, why in more:
            for root in self.root[np.unique(slots)].tolist():
                if root not in pins or pins[root].code is PinCode.NEVER_EMPTY:
                    pins[root] = why
        return replace(self, pins=pins)

    def __str__(self) -> str:
        classes = amount(len(np.unique(self.root)), "class")
        first = f"{amount(self.slots, 'slot')} in {classes}, {len(self.pins)} of them pinned"
        facts = map(fact_text, self.facts, self.places)
        return "\n".join(
            [first, *facts, *param_texts(self.axes), *tie_texts(self.root), *pin_texts(self.pins)]
        )
