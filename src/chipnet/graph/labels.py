"""Labels: the slot of every element of a tensor, and pure operations on them.

Labels are stored at the smallest shape that broadcasts to the tensor's (``[1, C, 1, 1]`` for a feature map).
Operators that only move data are run on labels as they would be on data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from chipnet._util.torch_private import tree_leaves
from chipnet.graph.facts import Slots
from chipnet.program.names import shape_of


@dataclass(frozen=True)
class Labels:
    """Labels of one tensor of a shape: ``core`` broadcasts to it."""

    core: Tensor
    shape: tuple[int, ...]

    @property
    def varying(self) -> list[int]:
        """Axes along which labels differ."""
        return [a for a, n in enumerate(self.core.shape) if n > 1]

    def full(self) -> Tensor:
        """Labels at the tensor's own shape."""
        return self.core.expand(self.shape)

    def along(self, axis: int) -> Slots:
        """Labels along an axis, of the first of each of the others."""
        core = self.core.movedim(axis, 0).reshape(self.core.shape[axis], -1)[:, 0]
        return core.expand(self.shape[axis]).numpy().copy()

    def slots(self) -> Slots:
        """All labels, flat."""
        return self.core.reshape(-1).numpy()


@dataclass(frozen=True)
class Param:
    """A parameter or buffer as it is: it has no labels before an operator uses it as data.

    Attributes:
        name: of the parameter; where it is computed from several, of the largest of these.
        shape: of the tensor.
        frozen: it is the weight of a layer that computes it from parameters of its own; surgery puts a plain
            layer in its place.
        made: how it is computed, where it goes on being so.
        turned: its two axes have changed places.
    """

    name: str
    shape: tuple[int, ...]
    frozen: bool = False
    made: Made | None = None
    turned: bool = False

    @property
    def varying(self) -> list[int]:
        """It has no labels."""
        return []


Value = Labels | Param
"""What stands for a tensor, where a rule is called."""


@dataclass(frozen=True)
class Made:
    """How a layer's weight (or bias) is made.

    ``along``: for each of its first two axes, the nodes behind it with the axis of each that goes with that one;
    None where indices along it are mixed. ``leaves``: the parameters and buffers behind it.
    """

    along: Mapping[int, Mapping[Node, int] | None]
    leaves: Mapping[Node, str]

    def param(self, node: Node) -> Param:
        """What stands for ``node``, which is made so."""
        largest = max(self.leaves, key=lambda n: math.prod(shape_of(n)))
        return Param(self.leaves[largest], shape_of(node), made=self)


def uniform(slot: int, shape: tuple[int, ...]) -> Labels:
    """A tensor all of whose elements share one slot.

    Example:
        >>> uniform(7, (2, 3)).full().tolist()
        [[7, 7, 7], [7, 7, 7]]
    """
    return Labels(torch.full([1] * len(shape), slot, dtype=torch.int64), shape)


def along(slots: Slots, axis: int, shape: tuple[int, ...]) -> Labels:
    """A tensor whose label depends on the index along ``axis`` only.

    Example:
        >>> along(np.array([4, 5]), -1, (3, 2)).full().tolist()
        [[4, 5], [4, 5], [4, 5]]
    """
    core = torch.from_numpy(np.ascontiguousarray(slots))
    return Labels(core.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))]), shape)


def shrink(full: Tensor) -> Tensor:
    """The smallest core of a full label tensor.

    Example:
        >>> shrink(torch.tensor([[4, 5], [4, 5]]))
        tensor([[4, 5]])
    """
    for axis, n in enumerate(full.shape):
        if n > 1:
            first = full.narrow(axis, 0, 1)
            if full.stride(axis) == 0 or bool((full == first).all()):
                full = first
    return full


def axes_of(ndim: int, dims: Any) -> list[int]:
    """Axes of a tensor of ``ndim`` axes, counted from the first; all where ``dims`` names none.

    Example:
        >>> axes_of(4, -1), axes_of(4, (2, -1)), axes_of(2, None)
        ([3], [2, 3], [0, 1])
    """
    named = [dims] if isinstance(dims, int) and not isinstance(dims, bool) else dims
    named = list(named) if isinstance(named, Sequence) and len(named) else range(ndim)
    return [d % ndim for d in named]


def values_in(*trees: Any) -> list[Value]:
    """All labels and parameters in arguments of an operator, in their order."""
    return [a for a in tree_leaves(trees) if isinstance(a, Value)]
