"""What can be said of slots? Five kinds of facts, and records of costs, sizes and reasons.

A **slot** is one channel of one tensor. Operators that only move channels (views, concatenations, shuffles) make no
slots: they move labels. Every other operator emits one **fact** of the five kinds below. Everything that is known
of a network (what can be pruned, what a channel costs, what the compact network is) is read from these facts;
nothing downstream looks at an operator again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]
Realisation = Literal["plain", "indexed"]
Heads = Literal["narrow", "whole", "both"]
"""What attention loses: the same features of all heads, whole heads, or both."""


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
    """An operator counts or orders all that it reads: a mean over channels, attention."""
    FIXED_WIDTH = "fixed width"
    """A number in the forward, or a tensor that they meet, says how many there are."""
    NEVER_EMPTY = "never empty"
    """A width must not become 0: one channel is there whatever the mask, and may be zero."""
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
    """A note that an operator ties slots."""

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
    """The affine parameters that a gate multiplies: ``weight`` along ``axis``, and ``bias``.

    ``module`` is the module whose forward reads them, its own or those of modules inside. Gates are folded in
    around its calls. ``output`` is None, or there are no such parameters and the gate multiplies the module's
    output along this axis. Then the weight is computed, or the module has none and ``weight`` is the module's own
    name.
    """

    module: str
    weight: str
    bias: str | None
    axis: int = 0
    output: int | None = None
    data: bool = False
    """Is the parameter used as data (a class token), and no layer's?"""
    part: str = ""
    """What the gates of a second site on the same weight are of (``heads``, ``block``)."""
    rows: tuple[int, ...] = ()
    """The rows that gates of a second site multiply."""

    @property
    def key(self) -> str:
        """Its name among the hosts of a network."""
        return f"{self.weight} {self.part}" if self.part else self.weight

    @property
    def is_layer(self) -> bool:
        """Does the module have affine parameters, computed or not?"""
        return self.weight != self.module

    @property
    def name(self) -> str:
        """What reports call it: the path of the layer, or of the weight where the module has several."""
        name = self.weight.removesuffix(".weight") if self.is_layer else self.module
        return f"{name} {self.part}" if self.part else name


@dataclass(frozen=True)
class Source:
    """Channels that nothing in the network computes: the input, padding, constants, parameters used as data.

    ``live``: can they be non-zero? ``flow``: do they carry the network's input? ``host``: a parameter used as data
    can hold gates.
    """

    dst: Slots
    live: bool
    flow: bool
    host: Host | None = None


@dataclass(frozen=True)
class Map:
    """Each ``dst[i]`` is computed from the ``srcs[k][i]`` alone.

    ``kind`` says when it is non-zero. ``or``: where any source is (a sum). ``and``: where all are (a product).
    ``const``: even where all are zero (a sigmoid). ``place``: likewise, but it is an index, which means something
    only together with the values at it. ``host``: a second gate of what a layer wrote, here ``srcs[0]``.
    """

    dst: Slots
    srcs: tuple[Slots, ...]
    kind: Literal["or", "and", "const", "place"]
    host: Host | None = None


@dataclass(frozen=True)
class Mix:
    """A convolution or linear layer: every ``dst`` reads every ``src`` of its group.

    ``bias``: it is non-zero even where everything that it reads is zero.
    """

    dst: Slots
    src: Slots
    groups: int
    bias: bool
    host: Host | None
    module: str = ""


@dataclass(frozen=True)
class Norm:
    """A normalisation: each ``dst[i]`` reads ``src[i]``.

    ``groups``: the statistics mix the channels of each group, so each ``dst`` reads all ``src`` of its group. 0:
    every channel has its own statistics. ``statistics``: those of ``all`` channels, and a zero does not stay one;
    or of ``live`` ones: a channel of zeros does not count, and stays one.
    """

    dst: Slots
    src: Slots
    host: Host | None
    groups: int = 0
    module: str = ""
    statistics: Literal["all", "live"] = "all"


@dataclass(frozen=True)
class Barrier:
    """An operator that needs all of ``src`` as they are, and gives ``dst``, which no mask changes."""

    dst: Slots
    src: Slots
    output: bool = False


Fact = Source | Map | Mix | Norm | Barrier


def sources_of(fact: Fact) -> tuple[Slots, ...]:
    """The slots that a fact reads."""
    if isinstance(fact, Source):
        return ()
    return fact.srcs if isinstance(fact, Map) else (fact.src,)


@dataclass(frozen=True)
class Layer:
    """One call of a convolution or linear layer.

    It costs ``macs_per * |rows| * |cols|`` multiply-accumulates and ``area * |rows|`` activations. Both are zero
    where the call is dead (none of its rows is live and needed) or reads nothing.

    ``across``: channels that lie along another axis than the one that it mixes (tokens). It works on each of them,
    so both costs are those of one.
    """

    fact: int
    name: str
    weight: str
    rows: Slots
    cols: Slots
    macs_per: int
    area: int
    across: Slots | None = None


@dataclass(frozen=True)
class Product:
    """A product of two tensors. It costs ``macs_per`` multiply-accumulates for each of ``slots`` that exists."""

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
    """An index map around a module. The module's tensor has the channels ``inner``, the network's has ``outer``."""

    module: str
    side: Literal["input", "output"]
    axis: int
    outer: Slots
    inner: Slots


@dataclass(frozen=True)
class Number:
    """A size that a module keeps as a number: ``module.name``, or its element ``index``.

    It counts each of ``slots`` as often as it stands there, and ``rest`` more. It never becomes less than
    ``minimum``.
    """

    module: str
    name: str
    index: int | None
    slots: Slots
    rest: int = 0
    minimum: int = 0


@dataclass(frozen=True)
class Note:
    """What a user should know about a number that does not follow, and the slots that it may count."""

    text: str
    slots: Slots


@dataclass(frozen=True)
class Rescaled:
    """A module that divides by a mean over ``slots``, of which zeros add nothing but their number.

    Of k channels of n it is n / k times as large. Surgery makes up for that: it multiplies each of ``numbers``, a
    parameter or a float of the module, by n / k to the power that stands there. Global response normalisation
    divides by the mean plus ``eps``, and multiplies by a weight: both have the power 1. RMS norm divides by a root:
    its weight has the power 1/2.
    """

    module: str
    numbers: Mapping[str, float]
    slots: Slots


@dataclass(frozen=True)
class Queries:
    """A layer that writes the queries of attention, which divides by the root of their width.

    Of k features of n it divides by less. Surgery makes up for that: it multiplies the rows ``at`` of parameters
    (``names``) by the root of k / n. Those rows write ``slots``.
    """

    names: tuple[str, ...]
    at: Slots
    slots: Slots


@dataclass(frozen=True)
class LiveNorm:
    """A module that normalises over channels, and nothing else.

    In the masked network its statistics are those of channels that exist, and it gives zeros for the others. So
    what ships is the module as it is, with fewer channels.

    ``axis``: of channels; ``over``: axes that statistics are over. Both count from the last axis of its input.
    ``centred``: it subtracts the mean. ``weight``, ``bias``: names of its affine parameters. Without ``weight`` its
    output is linear in what it normalises. ``eps``: what is added to the variance; None: the least of its type.

    ``dense``: its statistics are those of all channels, those that go counting as zeros. What ships is a norm of
    ours that counts them.
    """

    module: str
    axis: int
    over: tuple[int, ...]
    centred: bool
    weight: str | None
    bias: str | None
    eps: float | None = None
    dense: bool = False


@dataclass(frozen=True)
class Frozen:
    """A layer that computes its weight from parameters of its own (weight standardisation, parametrisations).

    Surgery puts a plain layer in its place, with the weight as it is then. ``shape``: of the weight. ``axis``: of
    the channels in the layer's output. ``same``: it pads its input by the input's size, as TensorFlow does.
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
