"""Plain values, as files and flags have them, become values of the types of options."""

from __future__ import annotations

import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from chipnet._util.sizes import too_large
from chipnet._util.text import did_you_mean
from chipnet.lab.config import Recipe, Request, options


def fitted(
    cls: type, values: Mapping[Any, Any], prefix: str, problems: list[str], extra: Iterable[str] = ()
) -> dict[str, Any]:
    known = options(cls)
    fitted = {}
    for name, value in values.items():
        if name not in known:
            problems.append(_unknown(str(name), prefix, [*known, *extra]))
            continue
        try:
            fitted[name] = _fit(value, known[name][0])
        except ValueError as error:
            problems.append(f"{prefix}{name} must be {error}, not {shown(value)}")
            continue
        if said := too_large(name, fitted[name]):
            problems.append(f"{prefix}{said}")
            del fitted[name]
    return fitted


def _unknown(name: str, prefix: str, known: list[str]) -> str:
    elsewhere = list(options(Request if prefix else Recipe))
    if name in elsewhere:
        where = "outside of recipe" if prefix else "inside of recipe"
        return f"there is no option '{prefix}{name}'; it belongs {where}"
    meant = did_you_mean(name.replace("-", "_"), known, 0.5, prefix) or f"known: {', '.join(sorted(known))}"
    return f"there is no option '{prefix}{name}'; {meant}"


def _fit(value: Any, wanted: Any) -> Any:
    """`value` as the type `wanted`; ValueError with what would do."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(" or ".join(map(repr, arguments)))
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _fit(value, arguments[0])
    if origin is tuple and arguments[0] is float:
        values = value if isinstance(value, (list, tuple)) else (value,)
        try:
            return tuple(_fit(v, float) for v in values)
        except ValueError:
            raise ValueError("a number, or one for each channel") from None
    if origin is tuple:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise ValueError("a text or a list of texts")
    if wanted is bool and not isinstance(value, bool):
        raise ValueError("true or false")
    if wanted is int:
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)  # NumPy's are none that YAML can write
        raise ValueError("a whole number")
    if wanted is float:
        try:
            if not isinstance(value, bool):
                return float(value)  # YAML reads 1e-3 as a text
        except (TypeError, ValueError, OverflowError):
            pass
        raise ValueError("a number")
    if wanted is str:
        if isinstance(value, (str, os.PathLike)):
            return os.fspath(value)
        raise ValueError("a text")
    return value


def shown(value: Any) -> str:
    """A value for people, of a length that they read."""
    try:
        return cut(repr(value))
    except ValueError:  # an integer of thousands of digits
        return "a number of many digits"


def cut(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
