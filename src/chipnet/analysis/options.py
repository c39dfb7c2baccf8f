"""What the user decides about a structure: one record, passed whole."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal, get_args

from torch import nn

from chipnet._util.sizes import too_large
from chipnet._util.text import value_text
from chipnet.errors import CaptureError, ConfigError
from chipnet.graph.facts import Heads, Realisation
from chipnet.program.names import is_within

Pattern = str | type[nn.Module]
Patterns = Pattern | Iterable[Pattern]
"""One alone is a list of one."""


@dataclass(frozen=True)
class Options:
    """Options of a `chipnet.Structure`, which says what each means.

    Raises:
        ConfigError: an option has no such value.
    """

    realisation: Realisation = "plain"
    share: bool | None = None
    ignore: Patterns = ()
    only: Patterns = ()
    min_channels: int = 0
    round_to: int = 1
    outputs: Any = None
    heads: Heads = "narrow"
    norms: Literal["live", "dense"] = "live"

    def __post_init__(self) -> None:
        if self.realisation not in ("plain", "indexed"):
            raise ConfigError(f"realisation must be 'plain' or 'indexed', got {value_text(self.realisation)}")
        if self.share is not None and not isinstance(self.share, bool):
            raise ConfigError(
                f"share must be True, False or None (the default of the realisation), got {value_text(self.share)}"
            )
        if self.heads not in get_args(Heads):
            raise ConfigError(f"heads must be 'narrow', 'whole' or 'both', got {value_text(self.heads)}")
        if self.norms not in ("live", "dense"):
            raise ConfigError(f"norms must be 'live' or 'dense', got {value_text(self.norms)}")
        check_whole("min_channels", self.min_channels, 0)
        check_whole("round_to", self.round_to, 1)
        object.__setattr__(self, "ignore", read_patterns(self.ignore, "ignore"))
        object.__setattr__(self, "only", read_patterns(self.only, "only"))
        if self.round_to > 1 and self.realisation == "plain" and self.share is False:
            raise ConfigError("round_to needs share=True: separate masks of one stream have no common width")

    @property
    def shared(self) -> bool:
        """Do layers of one stream share their gates?"""
        return self.realisation == "plain" if self.share is None else self.share

    def ignored(self, model: nn.Module) -> frozenset[str]:
        """Modules that keep all of their channels, and what is in them.

        Raises:
            CaptureError: a pattern matches no module.
        """
        return _named(model, read_patterns(self.ignore, "ignore"), "ignore")

    def chosen(self, model: nn.Module) -> frozenset[str]:
        """Modules of which nothing but these is pruned, and what is in them; empty: all.

        Raises:
            CaptureError: a pattern matches no module.
        """
        return _named(model, read_patterns(self.only, "only"), "only")


def check_whole(name: str, value: Any, minimum: int, why: str = "") -> None:
    """Refuse what is no whole number of at least ``minimum``.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigError(f"{name} must be a whole number, got {value_text(value)}{why}")
    if value < minimum:
        raise ConfigError(f"{name} must be at least {minimum}, got {value}{why}")
    if said := too_large(name, value):
        raise ConfigError(said + why)


def read_patterns(given: Any, option: str) -> tuple[Pattern, ...]:
    """Patterns and classes as a tuple; one alone is a tuple of one.

    Raises:
        ConfigError: something else is among them.

    Example:
        >>> read_patterns("layer1.*", "ignore"), read_patterns(["a", nn.ReLU], "ignore")[1].__name__
        (('layer1.*',), 'ReLU')
    """
    if isinstance(given, (str, type)):
        given = (given,)
    patterns = tuple(given) if isinstance(given, Iterable) else (given,)
    if wrong := [p for p in patterns if not isinstance(p, (str, type))]:
        raise ConfigError(
            f"{option} takes patterns and classes of modules, not {value_text(wrong[0])}: 'layer1.*', "
            "'type:Linear', or a list of such"
        )
    return patterns


def _named(model: nn.Module, patterns: tuple[Pattern, ...], option: str) -> frozenset[str]:
    """Modules that the user's patterns name, and all that is in them."""
    modules = dict(model.named_modules(remove_duplicate=False))

    def matches(name: str, pattern: Pattern) -> bool:
        if isinstance(pattern, type):
            return isinstance(modules[name], pattern)
        if pattern.startswith("type:"):
            return fnmatch(type(modules[name]).__name__, pattern[5:])
        return fnmatch(name, pattern)

    found: set[str] = set()
    for pattern in patterns:
        mine = [n for n in modules if matches(n, pattern)]
        if not mine:
            kinds = sorted({type(m).__name__ for m in modules.values()})
            raise CaptureError(
                f"{option}: {pattern!r} matches no module. Names: {', '.join(n for n in modules if n)[:300]}. "
                f"Types: {', '.join(kinds)[:300]}"
            )
        found.update(mine)
    return frozenset(n for n in modules if any(is_within(n, m) for m in found if m or n == m))
