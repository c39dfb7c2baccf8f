"""Text for people: what other people's names may not do to a terminal, and commands to copy."""

from __future__ import annotations

import re
import shlex

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
