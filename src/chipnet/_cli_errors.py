"""How the command line ends: refusals and failures in one line, and what Ctrl-C does. Part of `chipnet.cli`."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from chipnet._errors import ChipNetError, ConfigError


def one_line(error: BaseException) -> str:
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    ended = [line if line[-1] in ".:;,?!" else f"{line}." for line in lines[:-1]]
    return " ".join([*ended, *lines[-1:]])


def first() -> bool:
    """Is this the first of the processes that Lightning or torchrun have started?"""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def say(error: BaseException) -> None:
    if first() or not isinstance(error, ConfigError):  # the others refuse the same request
        print(f"error: {one_line(error)}", file=sys.stderr)


@contextmanager
def refusals() -> Iterator[None]:
    """A request that cannot be used: one line and exit code 2."""
    # torch.export logs, and prints as whole graphs, what it is about to raise; the error says it better.
    logging.getLogger("torch.fx.experimental.symbolic_shapes").setLevel(logging.ERROR)
    held = io.StringIO()
    try:
        with contextlib.redirect_stderr(held):
            yield
    except ChipNetError as error:
        say(error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("stopped before training", file=sys.stderr)
        raise typer.Exit(130) from None
    except BaseException:
        sys.stderr.write(held.getvalue())
        raise
    sys.stderr.write(held.getvalue())


@contextmanager
def failures() -> Iterator[None]:
    """What goes wrong while training: one line and exit code 1, or 130 where the user stopped it."""
    try:
        yield
    except (ChipNetError, OSError) as error:
        say(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as error:
        if first():
            print(str(error) or "stopped", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM (how batch systems end jobs) ask the run to save and stop; a second one ends it."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        if first():
            print("stopping after this step; once more stops at once", file=sys.stderr)

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        old = [signal.signal(number, ask) for number in signals]
    except ValueError:  # only the main thread may set handlers
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in zip(signals, old, strict=True):
            signal.signal(number, handler)
