"""How the command line ends: refusals and failures in one line, and what Ctrl-C does. Part of `chipnet.lab.cli`."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from chipnet._util.text import printable
from chipnet.errors import ChipNetError, ConfigError, Mistakes, one_line
from chipnet.lab.cli.root import app


def first() -> bool:
    """Is this the first of the processes that Lightning or torchrun have started?"""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def say(error: BaseException, flags: Mapping[str, str] | None = None) -> None:
    """Print an error in one line, or several as a list. Options that flags gave are called by their flags."""
    if not first() and isinstance(error, ConfigError):  # every process refuses the same request
        return
    errors = error.errors if isinstance(error, Mistakes) else (error,)
    names = every_flag() if flags is None else flags
    lines = dict.fromkeys(by_flag(one_line(e), names, getattr(e, "option", "")) for e in errors)
    heading = [f"error: {len(lines)} mistakes:"] if len(lines) > 1 else []
    start = "  - " if heading else "error: "
    print(printable("\n".join([*heading, *(start + line for line in lines)])), file=sys.stderr, flush=True)


def every_flag() -> dict[str, str]:
    """Option -> flag, of the options of all commands whose names are no words of their own."""
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    options = (p for command in commands for p in command.params if p.opts[0].startswith("--"))
    return {
        p.name: p.opts[0]
        for p in options
        if "_" in p.name or p.name in ("threads", "seed", "limit", "validation")
    }


def by_flag(text: str, flags: Mapping[str, str], option: str = "") -> str:
    """An error about options, by their flags; ``option`` is the one to blame.

    >>> by_flag(
    ...     "train_lr must be above 0; prune_lr must be above 0.", {"train_lr": "--lr", "prune_lr": "--lr"}
    ... )
    '--lr must be above 0.'
    >>> by_flag("unknown method 'a'", {"method": "--method"}, "method")
    "--method: unknown method 'a'"
    """
    for name, flag in flags.items():
        text = re.sub(rf"(^|; |: )(the )?{name}(?= must | is | -?\d|: )", rf"\1{flag}", text)
        if "_" in name:
            text = re.sub(rf"(?<![\w./'\"-]){name}(?![\w./'\"=-])", flag, text)
    said = dict.fromkeys(text.removesuffix(".").split("; "))
    text = "; ".join(said) + "." * text.endswith(".")
    return f"{flags[option]}: {text}" if option in flags and flags[option] not in text else text


_NO_MEMORY = "there is not enough memory. Give smaller batches, smaller images or a smaller network"


def no_memory(error: BaseException) -> bool:
    """Is it Python's, PyTorch's or CUDA's way to say that there is no memory left?"""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def refusals(flags: Mapping[str, str] | None = None) -> Iterator[None]:
    """A request that cannot be used: one line, or a list, and exit code 2.

    Args:
        flags: option -> the flag that gave it.
    """
    # torch.export logs, and prints as whole graphs, what it is about to raise; the error says it better.
    logging.getLogger("torch.fx.experimental.symbolic_shapes").setLevel(logging.ERROR)
    held = io.StringIO()
    try:
        with contextlib.redirect_stderr(held):
            yield
    except ChipNetError as error:
        say(error, flags)
        raise typer.Exit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            sys.stderr.write(held.getvalue())
            raise
        say(ConfigError(f"{_NO_MEMORY}: {_first_line(error)}"), flags)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("stopped before training", file=sys.stderr)
        raise typer.Exit(130) from None
    except BaseException:
        sys.stderr.write(held.getvalue())
        raise
    sys.stderr.write(held.getvalue())


@contextmanager
def failures(more: str = "") -> Iterator[None]:
    """What goes wrong while training: one line and exit code 1, or 130 where the user stopped it; ``more`` is said
    after that."""
    try:
        yield
    except (ChipNetError, OSError) as error:
        say(error)
        raise typer.Exit(1) from None
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
        say(ChipNetError(f"{_NO_MEMORY}: {_first_line(error)}"))
        raise typer.Exit(1) from None
    except KeyboardInterrupt as error:
        if first():
            print(f"{str(error) or 'stopped'}{more}", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM (how batch systems end jobs) ask the run to save and stop; a second one ends it."""
    received: list[int] = []
    own = os.getpid()

    def ask(number: int, frame: Any) -> None:
        if os.getpid() != own:  # a worker of a data loader, which has inherited this
            return
        if received:
            raise KeyboardInterrupt
        received.append(number)
        if first():
            print("stopping after this step; once more stops at once", file=sys.stderr)

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        old = [signal.signal(number, ask) for number in signals]
    except ValueError:  # only the main thread may set handlers
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(signals, old, strict=True):
            signal.signal(number, handler)
