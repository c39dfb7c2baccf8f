"""What the user asks for: how much of a network may remain.

This file reads and writes budgets. It does not know what a network costs (`chipnet.analysis`) nor how a budget is
met (`chipnet.budget.solver`).
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from chipnet._util.text import did_you_mean, type_text, value_text
from chipnet.analysis.kinds import KIND
from chipnet.errors import BudgetError

_ALIASES = {"flops": "macs"}
_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_UNITS = {unit: (kind.name, size) for kind in KIND.values() for unit, size in kind.units.items()}
"""Unit -> (the kind that it measures, how many of what is counted one unit is). One MAC is two FLOPs."""
_NUMBER = re.compile(
    r"(?P<number>[+-]?(?:\d+(?:_\d+)*\.?(?:\d+)?|\.\d+)(?:e[+-]?\d+)?)\s*"
    r"(?:(?P<percent>%)|(?P<prefix>[kmgb]?)\s*(?P<unit>(?:"
    rf"{'|'.join(_UNITS)})s?)?)",
    re.IGNORECASE,
)
_MOST, _DIGITS = 10**18, 100
"""No network costs more than the first; no value is written with more digits than the second."""
_FRACTION_HINT = (
    "a fraction is what remains, 0.25 keeps a quarter; for an absolute count write '2M' or an int"
)


@dataclass(frozen=True)
class Budget:
    """An upper limit on one or several costs of a network. Make one with `Budget.parse`.

    A target is a fraction of the dense cost that *remains* or an absolute count. The kinds are `channels`
    (kept channels), `volume` (elements of kept activations), `params` (weights left) and `macs`
    (multiply-accumulates left; `flops` is read as the same kind), `latency` (time of one forward on the example
    inputs, measured here), and `memory` (bytes of activations that are alive at once, at the most).

    Attributes:
        targets: (kind, value) pairs in the order of `chipnet.analysis.kinds.KIND`. A value is a `Fraction` in
            (0, 1] of the dense cost, or an `int` of at least 2, an absolute count; of latency, nanoseconds; of
            memory, bytes.

    Examples:
        >>> budget = Budget.parse("macs=0.25, params=2M")
        >>> print(budget)
        params=2000000,macs=0.25
        >>> budget.limits({"macs": 1001, "params": 5_000_000})
        {'params': 2000000, 'macs': 250}
    """

    targets: tuple[tuple[str, Fraction | int], ...]

    @classmethod
    def parse(cls, spec: Budget | Mapping[str, Any] | str | Iterable[str]) -> Budget:
        """Read a budget as people write it.

        Args:
            spec: a `Budget` (returned as is), a mapping from kind to value, a string
                `"kind=value,kind=value"`, or several such strings. A value is

                - a float in (0, 1], or its text, or a percentage `"25%"`: the fraction that remains. `1` is
                  the whole;
                - of `latency`, a time with its unit: `"3ms"`, `"250us"`; of `memory`, a size: `"64MB"`, `"512KiB"`;
                - an int above 1, or its text (`"2_000_000"`): an absolute count;
                - a text with a suffix K, M, G or B (a billion, as G) and perhaps a unit: `"2M"`, `"1.5G"`,
                  `"800k params"`, `"40MMACs"`. The unit must belong to the kind. One MAC is two FLOPs, so
                  `"80MFLOPs"` is 40 million MACs. A count that is not whole is rounded down.

        Raises:
            BudgetError: naming every problem of `spec`, each with its fix.

        Examples:
            >>> Budget.parse({"macs": 0.25}) == Budget.parse("macs=25%") == Budget.parse(["flops=0.25"])
            True
            >>> print(Budget.parse({"macs": "80MFLOPs"}))
            macs=40000000
            >>> Budget.parse({"mac": 0.25})  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ...
            chipnet.errors.BudgetError: cannot use the budget {'mac': 0.25}:
              - unknown kind 'mac'; did you mean 'macs'? the kinds are channels, volume, params, macs, ...
        """
        if isinstance(spec, Budget):
            return spec
        problems: list[str] = []
        seen: set[str] = set()
        targets: dict[str, Fraction | int] = {}
        for name, raw in _pairs(spec, problems):
            kind = _ALIASES.get(name.strip().lower(), name.strip().lower())
            if kind not in KIND:
                problems.append(_unknown(name))
                continue
            if kind in seen:
                also = " (flops and macs are one kind)" if kind == "macs" else ""
                problems.append(f"{kind} is given twice{also}; keep one")
                continue
            seen.add(kind)
            try:
                targets[kind] = _value(name.strip().lower(), kind, raw)
            except ValueError as error:
                problems.append(f"{name.strip()}={_written(raw, str)}: {error}")
        if not targets and not problems:
            problems.append("it is empty; name at least one limit, for example 'macs=0.25'")
        if problems:
            told = "\n".join(f"  - {p}" for p in problems)
            raise BudgetError(f"cannot use the budget {_written(spec, repr)}:\n{told}")
        return cls(tuple((kind, targets[kind]) for kind in KIND if kind in targets))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are limited.

        >>> Budget.parse("macs=0.25,params=2M").kinds
        ('params', 'macs')
        """
        return tuple(kind for kind, _ in self.targets)

    def limits(self, dense: Mapping[str, int]) -> dict[str, int]:
        """Return the largest whole cost allowed per limited kind: ⌊fraction · dense⌋, or min(count, dense).

        A fraction is taken as the decimal that was written, not as the float next to it, so 0.1 of 10 is 1.

        Args:
            dense: the cost of the dense network, for at least every kind of this budget.

        Raises:
            BudgetError: it has no such cost.

        Examples:
            >>> Budget.parse("channels=0.1,macs=2M").limits({"channels": 10, "macs": 500})
            {'channels': 1, 'macs': 500}
        """
        try:
            counts = {kind: dense[kind] for kind in self.kinds}
        except (TypeError, LookupError, AttributeError) as error:
            raise BudgetError(
                f"the dense costs must be a mapping that has {', '.join(self.kinds)}: give structure.cost.dense"
            ) from error
        return {
            kind: math.floor(value * counts[kind])
            if isinstance(value, Fraction)
            else min(value, counts[kind])
            for kind, value in self.targets
        }

    def to_json(self) -> dict[str, str]:
        """Return a JSON-serialisable mapping from kind to the exact text of its value.

        >>> Budget.parse("macs=25%,params=2M").to_json()
        {'params': '2000000', 'macs': '0.25'}
        """
        return {kind: _text(value, kind) for kind, value in self.targets}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Budget:
        """Read what `to_json` wrote; the result equals the original.

        >>> Budget.from_json({"macs": "0.25"})
        Budget.parse('macs=0.25')
        """
        return cls.parse(data)

    def __str__(self) -> str:
        return ",".join(f"{kind}={text}" for kind, text in self.to_json().items())

    def __repr__(self) -> str:
        return f"Budget.parse({str(self)!r})"


def _pairs(spec: Mapping[str, Any] | str | Iterable[str], problems: list[str]) -> list[tuple[str, Any]]:
    """Split a spec into (kind as written, value as written)."""
    if isinstance(spec, Mapping):
        return [(str(kind), raw) for kind, raw in spec.items()]
    pairs: list[tuple[str, Any]] = []
    if isinstance(spec, str):
        spec = [spec]
    if not isinstance(spec, Iterable):
        problems.append("a budget is text or a mapping; name what it limits, for example 'macs=0.25'")
        return pairs
    for text in spec:
        if not isinstance(text, str):
            problems.append(f"{value_text(text)} is not text; write for example ['macs=0.25', 'params=2M']")
            continue
        for part in filter(None, (part.strip() for part in text.split(","))):
            kind, equals, raw = part.partition("=")
            if equals:
                pairs.append((kind, raw.strip()))
            else:
                problems.append(f"{part!r} does not say what it limits; write for example 'macs={part}'")
    return pairs


def _unknown(name: str) -> str:
    guess = did_you_mean(name.strip().lower(), [*KIND, *_ALIASES])
    return f"unknown kind {name.strip()!r}; {guess and guess + ' '}the kinds are {', '.join(KIND)}"


def _value(written_kind: str, kind: str, raw: Any) -> Fraction | int:
    """Return a `Fraction` that remains, or an absolute `int`; raise a bare ValueError otherwise."""
    if isinstance(raw, str):
        return _from_text(written_kind, kind, raw)
    if isinstance(raw, bool) or not isinstance(raw, numbers.Real):
        raise ValueError(f"a {type(raw).__name__} is not a number; {_FRACTION_HINT}")
    if isinstance(raw, numbers.Integral):
        return _fraction_or_count(written_kind, int(raw))
    try:
        value = float(raw)
    except OverflowError:  # of a ratio of whole numbers
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"not finite; {_FRACTION_HINT}")
    # The shortest decimal that reads back as this float is what was typed; the float itself is not.
    return _fraction(Fraction(repr(value)))


def _from_text(written_kind: str, kind: str, text: str) -> Fraction | int:
    if (own := KIND[kind].read(text.strip())) is not None:
        return _count(kind, _number(own[0]) * own[1], with_unit=True)
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a number; write a fraction '0.25', a percentage '25%' or a count '2M'")
    number = _number(match["number"])
    if match["percent"]:
        return _fraction(number / 100)
    prefix, unit = (match["prefix"] or "").lower(), (match["unit"] or "").lower().removesuffix("s")
    if not prefix and not unit:
        is_count = re.fullmatch(r"[+-]?[\d_]+(e\+?\d+)?", match["number"], re.IGNORECASE)
        return _fraction_or_count(written_kind, int(number)) if is_count else _fraction(number)
    count = number * _PREFIXES[prefix]
    if not unit:
        return _count(written_kind, count)
    measured, per_unit = _UNITS[unit]
    if measured != kind:
        raise ValueError(f"{match['unit']} measure {measured}, not {kind}; write {measured}={text.strip()}")
    return _count(kind, count * per_unit)


def _number(text: str) -> Fraction:
    """The number as written; a bare ValueError for one that would fill the memory."""
    exponent = text.lower().partition("e")[2]
    if len(text) > len("0.") + _DIGITS or len(exponent) > 4:
        raise ValueError("a number of so many digits is no budget; write '0.25', '25%' or '2M'")
    return Fraction(text.replace("_", ""))


def _fraction_or_count(written_kind: str, number: int) -> Fraction | int:
    return _fraction(Fraction(number)) if number <= 1 else _count(written_kind, Fraction(number))


def _fraction(fraction: Fraction) -> Fraction:
    if fraction * _MOST < 1:
        raise ValueError(f"nothing would remain; {_FRACTION_HINT}")
    if fraction > 1:
        raise ValueError(f"above 1; {_FRACTION_HINT}")
    if (fraction * 10**_DIGITS).denominator != 1:
        raise ValueError(f"more than {_DIGITS} digits; {_FRACTION_HINT}")
    return fraction


def _count(written_kind: str, count: Fraction, with_unit: bool = False) -> int:
    if written_kind in KIND and (hint := KIND[written_kind].unit_hint) and not with_unit:
        raise ValueError(hint)
    # As a ratio FLOPs and MACs are the same; as a count they differ by two, and people mean either. Ask.
    if written_kind == "flops":
        raise ValueError(
            "a count of flops without a unit may mean FLOPs or MACs; write '80MFLOPs' or '40MMACs'"
        )
    if count < 2:
        raise ValueError(f"a count must be at least 2; {_FRACTION_HINT}")
    if count > _MOST:
        raise ValueError(f"above 10**18, which no network costs; {_FRACTION_HINT}")
    return math.floor(count)


def _written(value: Any, how: Callable[[Any], str]) -> str:
    """A value in an error: Python refuses to write whole numbers of thousands of digits."""
    try:
        text = how(value)
    except ValueError:
        return "with a number of thousands of digits"
    return text if isinstance(value, str) or "\n" not in text else type_text(value)


def _text(value: Fraction | int, kind: str) -> str:
    """Write a value so that it reads back exactly. Every fraction that can be read is a finite decimal."""
    if isinstance(value, int):
        return KIND[kind].write(value)
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    scaled = str(value * 10**digits).rjust(digits + 1, "0")
    return f"{scaled[:-digits]}.{scaled[-digits:]}" if digits else f"{scaled}.0"
