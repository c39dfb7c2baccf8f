"""The channel graph: what channels a network has and which facts tie them.

A **slot** is one channel of one tensor. Operators that only move channels (views, concatenations, shuffles)
create no slots: they move labels. Every other operator emits one **fact** of the five kinds below. All that
the project knows of a network (what may be pruned, what a channel costs, what the compact network is) is
read off these facts; nothing downstream looks at an operator again.

Slots that must exist together (the two sides of an addition, a norm's input and output, the rows of a weight
that is used twice) are *tied*: they form one class. What must be kept whole is *pinned*, with a reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]
Realisation = Literal["plain", "indexed"]


def is_within(name: str, module: str) -> bool:
    """Is a module, parameter or buffer ``name`` the module itself, or in it?

    Example:
        >>> is_within("conv1.weight", "conv1"), is_within("conv10.weight", "conv1"), is_within("conv1", "")
        (True, False, True)
    """
    return not module or name == module or name.startswith(f"{module}.")


@dataclass(frozen=True)
class Host:
    """The affine parameters that a gate multiplies: rows of ``weight`` along ``axis``, and ``bias``.

    ``module`` is the module whose forward reads them (gates are folded in around that call). ``output``: there is
    no such parameter, so the gate multiplies the module's output along this axis instead. Either the weight is
    computed, or the module has none (``weight`` is then the module's own name).
    """

    module: str
    weight: str
    bias: str | None
    axis: int = 0
    output: int | None = None

    @property
    def is_layer(self) -> bool:
        """Has the module affine parameters, though they may be computed?"""
        return self.weight != self.module


@dataclass(frozen=True)
class Source:
    """New channels that nothing in the network computes: the input, padding, constants.

    ``live``: can they be non-zero? ``flow``: do they carry the network's input?
    """

    dst: Slots
    live: bool
    flow: bool


@dataclass(frozen=True)
class Map:
    """``dst[i]`` is computed from ``srcs[k][i]`` alone.

    ``kind``: ``or`` (sum, max: non-zero where any side is), ``and`` (product), ``const`` (non-zero even where the
    sources are zero, as after a sigmoid), ``place`` (where a value stood: likewise, but only read beside values).
    """

    dst: Slots
    srcs: tuple[Slots, ...]
    kind: Literal["or", "and", "const", "place"]


@dataclass(frozen=True)
class Mix:
    """A convolution or linear layer: in each of ``groups`` groups every ``dst`` reads every ``src``.

    ``bias``: the output is non-zero even where all that is read is zero.
    """

    dst: Slots
    src: Slots
    groups: int
    bias: bool
    host: Host | None
    module: str = ""


@dataclass(frozen=True)
class Norm:
    """A normalisation: ``dst[i]`` reads ``src[i]`` and is non-zero even where that is zero.

    ``groups``: statistics mix the channels of each group, so every ``dst`` reads all ``src`` of its group. Without
    them every channel is by itself.
    """

    dst: Slots
    src: Slots
    host: Host | None
    groups: int = 0
    module: str = ""


@dataclass(frozen=True)
class Barrier:
    """An operator that needs all of ``src``, whole, and gives ``dst`` of a fixed size."""

    dst: Slots
    src: Slots
    output: bool = False


Fact = Source | Map | Mix | Norm | Barrier


@dataclass(frozen=True)
class Layer:
    """One call of a convolution, linear layer or other counted operator.

    Cost: ``macs_per * |rows| * |cols|`` multiply-accumulates, ``area * |rows|`` activations; zero where the call
    is dead (no row is live and needed) or reads nothing.
    """

    fact: int
    name: str
    weight: str
    rows: Slots
    cols: Slots
    macs_per: int
    area: int


@dataclass(frozen=True)
class Product:
    """A product of two tensors, summed or not: ``macs_per`` multiply-accumulates for each of ``slots`` there is."""

    slots: Slots
    macs_per: int


@dataclass(frozen=True)
class Resize:
    """An index map around a module: its tensor has channels ``inner``, the network's has ``outer``."""

    module: str
    side: Literal["input", "output"]
    axis: int
    outer: Slots
    inner: Slots


@dataclass(frozen=True)
class Number:
    """A size that a module keeps as a number: ``module.name`` (or its element ``index``) counts ``slots``, each as
    often as it is there, and ``rest`` more. It becomes ``least`` at least."""

    module: str
    name: str
    index: int | None
    slots: Slots
    rest: int = 0
    least: int = 0


@dataclass(frozen=True)
class Note:
    """What a user should know of a number that does not follow, and the slots that it may count."""

    text: str
    slots: Slots


@dataclass(frozen=True)
class Rescaled:
    """A module that divides by a mean over ``slots`` (plus its ``eps``) and multiplies by its parameter ``weight``,
    as global response normalisation does. Fewer channels make the mean larger: surgery makes both larger too."""

    module: str
    weight: str
    slots: Slots


@dataclass(frozen=True)
class Frozen:
    """A layer whose weight is computed from parameters of its own (standardised, parametrised): surgery puts a
    plain layer with the weight as it is then in its place.

    ``shape``: of the weight. ``axis``: of channels in the layer's output. ``same``: it pads its input as TensorFlow
    does (by the input's size).
    """

    module: str
    shape: tuple[int, ...]
    axis: int
    same: bool


@dataclass(frozen=True)
class Risk:
    """An operator with integer arguments that may be numbers of the user's. ``slots``: channels that it reads."""

    line: str
    slots: Slots


@dataclass(frozen=True)
class Pin:
    """Why a class of slots is kept whole."""

    reason: str
    node: str
    module: str
    line: str

    def __str__(self) -> str:
        where = f" in '{self.module}'" if self.module else ""
        line = f" ({self.line})" if self.line else ""
        return f"{self.reason}{where}{line}"


@dataclass
class ChannelGraph:
    """Everything capture found. Built once by the rules, then only read."""

    facts: list[Fact] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    resizes: list[Resize] = field(default_factory=list)
    axes: dict[str, dict[int, Slots]] = field(default_factory=dict)
    """Parameter or buffer name -> axis -> the slot that each index along it belongs to."""
    along: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    """Parameter and axis -> vectors with an element for each index along it."""
    owners: dict[str, list[int]] = field(default_factory=dict)
    """Module -> its facts, for modules that a constant can stand in for when all their facts are dead."""
    pools: dict[str, Slots] = field(default_factory=dict)
    """Pooling module -> its channels: it must be spared an input without any."""
    fixed_macs: int = 0
    """Multiply-accumulates of operators that no mask changes."""
    pins: dict[int, Pin] = field(default_factory=dict)
    """Class root -> reason. Complete once capture has ended."""
    risky: dict[str, Risk] = field(default_factory=dict)
    """Node -> what is known of operators whose integer arguments may be numbers of the user's."""
    literal: dict[str, str] = field(default_factory=dict)
    """Nodes whose sizes turned out not to follow widths, with the reason."""
    numbers: dict[tuple[str, str, int | None], Number] = field(default_factory=dict)
    """Sizes in attributes that surgery updates."""
    notes: list[Note] = field(default_factory=list)
    """Numbers that may count widths and do not follow. Complete once capture has ended."""
    pieces: list[tuple[str, Slots]] = field(default_factory=list)
    """Module whose forward splits a tensor along channels, and each of the pieces."""
    frozen: dict[str, Frozen] = field(default_factory=dict)
    """Module -> how its computed weight becomes a plain one."""
    rescaled: dict[str, Rescaled] = field(default_factory=dict)
    """Module -> the mean over channels that surgery makes up for."""
    outputs: dict[str, tuple[str, Slots]] = field(default_factory=dict)
    """Node -> the module whose output it is, and its channels: gates may go there if nowhere else."""
    meetings: list[tuple[int, Pin]] = field(default_factory=list)
    """A slot of a class, and an operator that tied classes there: why sites are tied."""
    _parent: list[int] = field(default_factory=list)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the network as it is."""
        layers = sum(layer.macs_per * len(layer.rows) * len(layer.cols) for layer in self.layers)
        return self.fixed_macs + layers + sum(p.macs_per * len(p.slots) for p in self.products)

    # -- slots ------------------------------------------------------------------------------------------
    @property
    def slots(self) -> int:
        return len(self._parent)

    def new(self, n: int) -> Slots:
        """``n`` new slots, each a class of its own."""
        first = len(self._parent)
        self._parent.extend(range(first, first + n))
        return np.arange(first, first + n, dtype=np.int64)

    def find(self, slot: int) -> int:
        """The representative of the slot's class."""
        p = self._parent
        while p[slot] != slot:
            p[slot] = p[p[slot]]
            slot = p[slot]
        return slot

    def classes(self, slots: Slots) -> Slots:
        """Class representatives of ``slots``, elementwise."""
        flat = [self.find(int(s)) for s in slots.ravel()]
        return np.array(flat, dtype=np.int64).reshape(slots.shape)

    def tie(self, a: Slots, b: Slots) -> None:
        """``a[i]`` and ``b[i]`` exist together from now on."""
        for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            self._join(x, y)

    def tie_all(self, slots: Iterable[int]) -> None:
        """All of ``slots`` exist together from now on."""
        it = iter(slots)
        first = next(it, None)
        for s in it:
            self._join(int(first), int(s))  # type: ignore[arg-type]

    def _join(self, x: int, y: int) -> None:
        x, y = self.find(x), self.find(y)
        if x == y:
            return
        if x > y:
            x, y = y, x
        self._parent[y] = x
        if y in self.pins:
            self.pins.setdefault(x, self.pins.pop(y))

    def pin(self, slots: Slots, why: Pin) -> None:
        """Keep the classes of ``slots`` whole."""
        for s in np.unique(slots).tolist():
            self.pins.setdefault(self.find(s), why)

    @contextlib.contextmanager
    def unpinned(self) -> Iterator[None]:
        """Inside, pins hold for new slots only: no output that matters reads what an operator makes of the old."""
        slots, known = self.slots, {id(why) for why in self.pins.values()}
        yield
        for root, why in list(self.pins.items()):
            if root < slots and id(why) not in known:
                del self.pins[root]

    def pinned(self, slots: Slots) -> NDArray[np.bool_]:
        """Which of ``slots`` are in a pinned class."""
        flat = [self.find(int(s)) in self.pins for s in slots.ravel()]
        return np.array(flat, dtype=bool).reshape(slots.shape)

    # -- parameters -------------------------------------------------------------------------------------
    def own(self, name: str, axis: int, slots: Slots) -> None:
        """Index ``i`` of the parameter's axis belongs to ``slots[i]``; a second use ties the two."""
        mine = self.axes.setdefault(name, {})
        if axis in mine:
            self.tie(mine[axis], slots)
        else:
            mine[axis] = slots
        for vector in self.along.get((name, axis), ()):
            self.own(vector, 0, slots)
