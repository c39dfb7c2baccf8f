"""Which slots exist together, and which classes of them are kept whole?

The two sides of an addition, a norm's input and output, the rows of a weight that is used twice are *tied*: they
form one class. What must be kept whole is *pinned*, with a reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chipnet.graph.facts import Pin, PinCode, Slots


class Partition(Protocol):
    """Slots in classes, some of which are pinned."""

    def classes(self, slots: Slots) -> Slots: ...

    def pinned(self, slots: Slots) -> NDArray[np.bool_]: ...


class Classes:
    """Slots in classes that grow as slots are tied (union-find). A class is named by its first slot.

    Example:
        >>> classes = Classes()
        >>> a, b = classes.new(2), classes.new(2)
        >>> classes.tie(a, b)
        >>> classes.classes(np.arange(4))
        array([0, 1, 0, 1])
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self.pins: dict[int, Pin] = {}
        """Class -> reason."""

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self._parent)

    def new(self, n: int) -> Slots:
        """``n`` new slots, each a class of its own."""
        first = len(self._parent)
        self._parent.extend(range(first, first + n))
        return np.arange(first, first + n, dtype=np.int64)

    def find(self, slot: int) -> int:
        """The class of a slot."""
        p = self._parent
        while p[slot] != slot:
            p[slot] = p[p[slot]]
            slot = p[slot]
        return slot

    def classes(self, slots: Slots) -> Slots:
        """Classes of ``slots``, elementwise."""
        flat = [self.find(int(s)) for s in slots.ravel()]
        return np.array(flat, dtype=np.int64).reshape(slots.shape)

    def tie(self, a: Slots, b: Slots) -> None:
        """``a[i]`` and ``b[i]`` exist together from now on."""
        for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            self._join(x, y)

    def tie_all(self, slots: Slots) -> None:
        """All of ``slots`` exist together from now on."""
        flat = slots.ravel().tolist()
        for s in flat[1:]:
            self._join(flat[0], s)

    def _join(self, x: int, y: int) -> None:
        x, y = self.find(x), self.find(y)
        if x == y:
            return
        if x > y:
            x, y = y, x
        self._parent[y] = x
        if y in self.pins:
            self._pin(x, self.pins.pop(y))

    def pin(self, slots: Slots, why: Pin) -> None:
        """Keep the classes of ``slots`` whole. The first reason stays, unless it lets them be zero."""
        for s in np.unique(slots).tolist():
            self._pin(self.find(s), why)

    def _pin(self, root: int, why: Pin) -> None:
        if root not in self.pins or self.pins[root].code is PinCode.NEVER_EMPTY:
            self.pins[root] = why

    def pinned(self, slots: Slots) -> NDArray[np.bool_]:
        """Which of ``slots`` are in a pinned class."""
        flat = [self.find(int(s)) in self.pins for s in slots.ravel()]
        return np.array(flat, dtype=bool).reshape(slots.shape)

    @contextlib.contextmanager
    def unpinned(self) -> Iterator[None]:
        """While the block lasts, old slots get no pins: no output that matters reads what is made of them."""
        slots, before = self.slots, dict(self.pins)
        yield
        known = {id(why) for why in before.values()}
        for root, why in list(self.pins.items()):
            if root < slots and id(why) not in known:
                del self.pins[root]
        for root, why in before.items():
            self._pin(self.find(root), why)
