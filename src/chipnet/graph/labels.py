"""Labels: which slot does each element of a tensor belong to?

Labels are stored at the smallest shape that broadcasts to the tensor's, ``[1, C, 1, 1]`` for a feature map.
Operators that only move data are run on labels as on data.
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
    """The labels of one tensor. ``core`` broadcasts to the tensor's ``shape``."""

    core: Tensor
    shape: tuple[int, ...]

    @property
    def varying(self) -> list[int]:
        """The axes along which labels differ."""
        return [a for a, n in enumerate(self.core.shape) if n > 1]

    def full(self) -> Tensor:
        """The labels at the tensor's own shape."""
        return self.core.expand(self.shape)

    def along(self, axis: int) -> Slots:
        """The labels along an axis, at the first index of every other axis."""
        core = self.core.movedim(axis, 0).reshape(self.core.shape[axis], -1)[:, 0]
        return core.expand(self.shape[axis]).numpy().copy()

    def slots(self) -> Slots:
        """All labels in one row."""
        return self.core.reshape(-1).numpy()


@dataclass(frozen=True)
class Param:
    """A parameter or buffer as it is. It gets labels when an operator uses it as data.

    Attributes:
        name: its name; for a weight that is computed from several parameters, the name of the largest.
        shape: the shape of the tensor.
        frozen: a layer computes this weight, and surgery puts a plain layer in its place.
        made: how a weight is computed that goes on being so.
        turned: its two axes have changed places.
        axes: of data that was moved, for each axis of ``shape`` its own axis; None where it is repeated, or new.
        const: it is data that went through a function which is not zero at zero.
    """

    name: str
    shape: tuple[int, ...]
    frozen: bool = False
    made: Made | None = None
    turned: bool = False
    axes: tuple[int | None, ...] | None = None
    const: bool = False

    def own(self, axis: int) -> int | None:
        """The parameter's own axis behind an axis of ``shape``."""
        return axis if self.axes is None else self.axes[axis]

    @property
    def long(self) -> list[int]:
        """The axes of ``shape`` along which it has several elements of its own."""
        return [a for a, n in enumerate(self.shape) if n > 1 and self.own(a) is not None]

    @property
    def varying(self) -> list[int]:
        """None: it has no labels."""
        return []


Value = Labels | Param
"""What stands for a tensor, where a rule is called."""


@dataclass(frozen=True)
class Made:
    """How a layer computes its weight or bias.

    ``along``: for each of the first two axes, the nodes behind it, each with the axis that belongs to it; None
    where indices are mixed. ``leaves``: the parameters and buffers behind it.
    """

    along: Mapping[int, Mapping[Node, int] | None]
    leaves: Mapping[Node, str]

    def param(self, node: Node) -> Param:
        """What stands for ``node``, which is computed so."""
        largest = max(self.leaves, key=lambda n: math.prod(shape_of(n)))
        return Param(self.leaves[largest], shape_of(node), made=self)


def uniform(slot: int, shape: tuple[int, ...]) -> Labels:
    """Labels of a tensor whose elements all share one slot.

    Example:
        >>> uniform(7, (2, 3)).full().tolist()
        [[7, 7, 7], [7, 7, 7]]
    """
    return Labels(torch.full([1] * len(shape), slot, dtype=torch.int64), shape)


def along(slots: Slots, axis: int, shape: tuple[int, ...]) -> Labels:
    """Labels of a tensor that depend on the index along ``axis`` only.

    Example:
        >>> along(np.array([4, 5]), -1, (3, 2)).full().tolist()
        [[4, 5], [4, 5], [4, 5]]
    """
    core = torch.from_numpy(np.ascontiguousarray(slots))
    return Labels(core.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))]), shape)


def smallest_core(full: Tensor) -> Tensor:
    """The smallest core of labels at a tensor's own shape.

    Example:
        >>> smallest_core(torch.tensor([[4, 5], [4, 5]]))
        tensor([[4, 5]])
    """
    for axis, n in enumerate(full.shape):
        if n > 1:
            first = full.narrow(axis, 0, 1)
            if full.stride(axis) == 0 or bool((full == first).all()):
                full = first
    return full


def axes_of(ndim: int, dims: Any) -> list[int]:
    """The axes that ``dims`` names, counted from the first of ``ndim``; all where it names none.

    Example:
        >>> axes_of(4, -1), axes_of(4, (2, -1)), axes_of(2, None)
        ([3], [2, 3], [0, 1])
    """
    named = [dims] if isinstance(dims, int) and not isinstance(dims, bool) else dims
    named = list(named) if isinstance(named, Sequence) and len(named) else range(ndim)
    return [d % ndim for d in named]


def values_in(*trees: Any) -> list[Value]:
    """All labels and parameters among the arguments of an operator, in their order."""
    return [a for a in tree_leaves(trees) if isinstance(a, Value)]
