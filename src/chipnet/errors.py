"""The errors of the library: one base, a few named kinds.

Every error that the library raises on purpose is a `ChipNetError`, so one `except` clause separates
"chipnet refuses" from a bug. The kinds that report an unusable value are a `ValueError` as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ChipNetError(Exception):
    """Base of all errors raised on purpose by chipnet."""

    option: str = ""
    """The option of `chipnet.lab.train.Request` that is to blame, if one is: the command line names its flag."""


class CaptureError(ChipNetError):
    """The network could not be captured as a graph, or has nothing to prune."""


class BudgetError(ChipNetError, ValueError):
    """A budget is malformed, or no network that still connects input to output can meet it."""


class PlanError(ChipNetError):
    """A plan does not fit the network that it is applied to."""


class LoadError(ChipNetError):
    """A saved file is missing a part, is damaged, or does not belong to the given network."""


class ExportError(ChipNetError):
    """A network cannot be written in a format, or what was written does not compute what the network does."""


class ConfigError(ChipNetError, ValueError):
    """An argument or a setting has a value that cannot be used."""


class Mistakes(ConfigError):  # noqa: N818
    """Several errors that do not depend on each other, told together.

    >>> Mistakes([ConfigError("a must be 1."), ConfigError("b must be 2.")])
    Mistakes('a must be 1; b must be 2.')
    """

    def __init__(self, errors: Iterable[ChipNetError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(one_line(e).removesuffix(".") for e in self.errors) + ".")


class Problems:
    """Collects errors of things that do not depend on each other, so that all are told at once.

    >>> problems = Problems()
    >>> for name in ("a", "b"):
    ...     with problems.collected():
    ...         raise ConfigError(f"{name} must be 1.")
    >>> problems.tell()
    Traceback (most recent call last):
    ...
    chipnet.errors.Mistakes: a must be 1; b must be 1.
    """

    def __init__(self) -> None:
        self.found: list[ChipNetError] = []

    @contextmanager
    def collected(self, option: str = "") -> Iterator[None]:
        """A `ChipNetError` in the block ends the block, and is kept, as the error of an option."""
        try:
            yield
        except Mistakes as several:
            self.found += several.errors
        except ChipNetError as error:
            error.option = option
            self.found.append(error)

    def add(self, text: str, option: str = "") -> None:
        """A value that cannot be used."""
        with self.collected(option):
            raise ConfigError(text)

    def tell(self) -> None:
        """Raise what was found: one error as it is, several as `Mistakes`."""
        found = list({str(error): error for error in self.found}.values())
        if len(found) == 1:
            raise found[0]
        if found:
            raise Mistakes(found)


def one_line(error: BaseException) -> str:
    """The text of an error whose lines are a list, in one line."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    ended = [line if line[-1] in ".:;,?!" else f"{line}." for line in lines[:-1]]
    return " ".join([*ended, *lines[-1:]])
