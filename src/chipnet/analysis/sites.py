"""Where do gates act, and why do they not?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from chipnet.graph.facts import Host, Pin, Slots, Tie

Ids = NDArray[np.int64]


class Ungated(Enum):
    """Why channels of a site have no gate of their own."""

    COVERED = "covered"
    """A gate further down their channel-wise chain acts for them."""
    FOLLOWS = "follows"
    """Gates of what they read act for them: a zero stays one."""
    GOES = "goes"
    """They go where nothing that is read needs them: a head's queries with its values."""
    PINNED = "pinned"
    """They are kept whole; a pin says why."""
    NOT_ZERO = "not zero"
    """What reads them cannot drop them where they are zero."""
    BREAKS = "breaks"
    """A pruned copy did not run, or computed something else."""
    PART = "part"
    """Their weight has gates of several kinds, and not each row has one of each."""
    ONE_STAYS = "one stays"
    """Without any channel the forward breaks."""


_TEXTS = {
    Ungated.COVERED: "follows the gates further down its chain",
    Ungated.FOLLOWS: "follows the gates of what it reads",
    Ungated.GOES: "goes with what it is multiplied by",
    Ungated.NOT_ZERO: "a zero here is not zero where it is read",
    Ungated.PART: "its weight has gates of several kinds: of features, of heads, of the block",
    Ungated.ONE_STAYS: "one channel stays: without any, the forward breaks",
}
_ELSEWHERE = frozenset((Ungated.COVERED, Ungated.FOLLOWS, Ungated.GOES))
"""Reasons of sites for which gates of others act."""


@dataclass(frozen=True)
class Reason:
    """Why some or all channels of a site are not gated, as it holds for most of them."""

    code: Ungated
    pin: Pin | None = None
    """Operator, module and line, where the channels are kept whole."""
    said: str = ""
    """What went wrong with a pruned copy."""

    def __str__(self) -> str:
        return self.said or (str(self.pin) if self.pin is not None else _TEXTS[self.code])


@dataclass(frozen=True)
class Site:
    """A place where a vector of gates acts: the output channels of one affine layer.

    ``gates[i]`` is the gate of channel ``i``, or -1 where the channel has none. Channels that must be removed
    together share a gate (``tied``).
    """

    name: str
    host: Host
    gates: Ids
    slots: Slots
    tied: bool
    why: Reason | None
    """None where every channel is gated; else why some or all are not."""
    ties: tuple[Tie, ...] = ()
    """The operators that tie its channels to those of other sites."""

    @property
    def reason(self) -> str:
        """`why` as text; empty where every channel is gated."""
        return "" if self.why is None else str(self.why)

    @property
    def pin(self) -> Pin | None:
        """What keeps most of the ungated channels whole."""
        return None if self.why is None else self.why.pin

    @property
    def covered(self) -> bool:
        """Do gates elsewhere in its channel-wise chain act for it?"""
        return self.why is not None and self.why.code in _ELSEWHERE

    @property
    def channels(self) -> int:
        return len(self.gates)

    @property
    def free(self) -> int:
        """How many gates act here."""
        return len(np.unique(self.gates[self.gates >= 0]))
