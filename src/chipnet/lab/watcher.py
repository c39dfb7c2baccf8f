"""Who is told how a run goes, and how one ends that is stopped."""

from __future__ import annotations

from typing import Protocol


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a run; the text says how far it came, what is on disk and how to go on."""


class Watcher(Protocol):
    """Who is told how a run goes: a progress bar, a log, or nobody (`Silent`)."""

    def start(self, phase: str, steps: int) -> None:
        """A phase of so many optimiser steps begins."""

    def tick(self, text: str) -> None:
        """One more look at the losses; `text` says how it stands."""

    def advance(self, steps: int) -> None:
        """So many steps are done since the last call."""

    def epoch(self, text: str) -> None:
        """An epoch is over, and scored. A watcher without this method is not told."""

    def end(self, text: str) -> None:
        """The phase is over; `text` sums it up."""


class Silent:
    """A `Watcher` that tells nobody."""

    def start(self, phase: str, steps: int) -> None: ...
    def tick(self, text: str) -> None: ...
    def advance(self, steps: int) -> None: ...
    def epoch(self, text: str) -> None: ...
    def end(self, text: str) -> None: ...
