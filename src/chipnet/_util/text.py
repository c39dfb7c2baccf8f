"""Text for people: escaped for a terminal, commands to copy, long lists and values cut short, what a misspelt name
meant."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

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


def amount(number: int, noun: str, plural: str = "") -> str:
    """A number and what it counts.

    >>> amount(1, "epoch"), amount(2, "epoch"), amount(0, "batch"), amount(2, "axis", "axes")
    ('1 epoch', '2 epochs', '0 batches', '2 axes')
    """
    if number != 1:
        noun = plural or noun + ("es" if noun.endswith(("s", "x", "tch", "sh")) else "s")
    return f"{number:,} {noun}"


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


def type_text(value: Any) -> str:
    """What a value is, in an error.

    >>> type_text(None), type_text({}), type_text(3), type_text(dict)
    ('None', 'a dict', 'an int', 'the class dict')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def value_text(value: Any) -> str:
    """A value as Python writes it, where that is short; else what it is.

    >>> value_text("a"), value_text(list(range(99)))
    ("'a'", 'a list')
    """
    try:
        text = repr(value)
    except Exception:  # whole numbers of thousands of digits, and objects whose own text fails
        return type_text(value)
    return text if len(text) <= 80 and "\n" not in text else type_text(value)
