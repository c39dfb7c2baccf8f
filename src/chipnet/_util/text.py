"""Text for people: escaped for a terminal, commands to copy, long lists cut short, what a misspelt name meant."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""Text whose control characters, which could command a terminal, are written as Python writes them.

    >>> printable("runs/\x1b[2Ja\nb")
    'runs/\\x1b[2Ja\nb'
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def shell_command(*words: object) -> str:
    """A command of the command line to copy, quoted for the shell.

    >>> shell_command("prune", "--resume", "my runs/a")
    "chipnet prune --resume 'my runs/a'"
    """
    return shlex.join(["chipnet", *map(str, words)])


def few(items: Sequence[str], most: int = 3, between: str = ", ", last: str = " and ") -> str:
    """The first of a list, and how many more there are.

    >>> few(["a", "b", "c"], 3), few(["a", "b", "c", "d"], 2)
    ('a, b, c', 'a, b and 2 more')
    """
    return between.join(items[:most]) + (f"{last}{len(items) - most:,} more" if len(items) > most else "")


def first_line(error: BaseException) -> str:
    r"""The type of an error and the first line of what it says.

    >>> first_line(ValueError("no such thing\nsee the manual"))
    'ValueError: no such thing'
    """
    return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6, prefix: str = "") -> str:
    """A question about the known name that is closest, or nothing.

    >>> did_you_mean("sead", ["seed", "data"]), did_you_mean("zzz", ["seed"])
    ("did you mean 'seed'?", '')
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean '{prefix}{close[0]}'?" if close else ""


def close_names(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A sentence with the known names that are close, or nothing.

    >>> close_names("mnis", ["mnist", "digits"])
    'Close names: mnist.'
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f"Close names: {', '.join(close)}." if close else ""
