"""What can be said of slots? Five kinds of facts, and records of costs, sizes and reasons.

A **slot** is one channel of one tensor. Operators that only move channels (views, concatenations, shuffles)
create no slots: they move labels. Every other operator emits one **fact** of the five kinds below. All that
the project knows of a network (what may be pruned, what a channel costs, what the compact network is) is
read off these facts; nothing downstream looks at an operator again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
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


# -- where and why ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Place:
    """A node of the captured graph, its module, and the user's line; "" where there is none."""

    node: str = ""
    module: str = ""
    line: str = ""


class PinCode(Enum):
    """Why a class of slots is kept whole."""

    INPUT = "input"
    """They are channels of the network's input."""
    OUTPUT = "output"
    """They are channels of an output that matters."""
    CONSTANT = "constant"
    """They are the same in every call, whatever the masks."""
    EXCLUDED = "excluded"
    """The user wants to keep them (``ignore``)."""
    NOT_CHOSEN = "not chosen"
    """The user wants to prune others (``only``)."""
    NO_RULE = "no rule"
    """An operator that reads them has no rule."""
    RULE_FAILED = "rule failed"
    """The rule of an operator that reads or writes them failed."""
    READ_WHOLE = "read whole"
    """An operator counts or orders all that it reads: a mean over channels, layer norm, attention."""
    FIXED_WIDTH = "fixed width"
    """A number in the forward, or a tensor that they meet, says how many there are."""
    ONE_STAYS = "one stays"
    """An operator or module does not work without any."""
    COMPUTED = "computed"
    """They belong to a weight that is computed, and that fewer parameters would change."""
    WHOLE_TENSOR = "whole tensor"
    """The slot stands for a tensor that has no channels: a sum over channels, the state of a recurrent layer."""


@dataclass(frozen=True)
class Pin:
    """A reason to keep a class of slots whole."""

    code: PinCode
    reason: str
    at: Place = Place()

    def __str__(self) -> str:
        return _with_place(self.reason, self.at)


@dataclass(frozen=True)
class Tie:
    """An operator that ties slots."""

    reason: str
    at: Place

    def __str__(self) -> str:
        return _with_place(self.reason, self.at)


def _with_place(text: str, at: Place) -> str:
    where = f" in '{at.module}'" if at.module else ""
    return f"{text}{where}{f' ({at.line})' if at.line else ''}"


# -- facts --------------------------------------------------------------------------------------------------------
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
class Activation:
    """Memory that an operator takes for its result: ``bytes`` for each of ``slots`` that exists, from operator
    number ``first`` to ``last``, the last that reads it."""

    slots: Slots
    bytes: int
    first: int
    last: int


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
