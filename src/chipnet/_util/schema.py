"""Typed values to JSON and back: the annotations of a dataclass are the schema of its record."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

_LARGEST = 2**63 - 1
_hints = functools.cache(get_type_hints)


class DamagedError(ValueError):
    """A value is not what its type says: where, and what it is."""


def encode(value: Any) -> Any:
    """``value`` as JSON values, which `decode` reads. The record of a dataclass is a mapping by its fields' names.

    Example:
        >>> encode({0: (1, 2)})
        {'0': [1, 2]}
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}


def decode(kind: Any, value: Any, where: str) -> Any:
    """``value``, read from JSON, as ``kind``: ``int``, ``float`` (finite), ``bool``, ``str``, ``None``, literals,
    unions, tuples, mappings, and dataclasses, whose records are mappings by the names of the fields, as `encode`
    writes them, or lists in their order. Of a `TypedDict`, keys that it does not name are kept as they are.

    Raises:
        DamagedError: it is something else.

    Example:
        >>> decode(Mapping[int, tuple[int, ...]], {"0": [1, 2]}, "keep")
        {0: (1, 2)}
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    if is_typeddict(kind):
        return _open_record(kind, value, where)
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return value
    elif origin in (Union, types.UnionType):
        for one in args:
            try:
                return decode(one, value, where)
            except DamagedError:
                continue
    elif origin is tuple:
        if isinstance(value, list) and args[1:] == (...,):
            return tuple(decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if isinstance(value, list) and len(value) == len(args):
            return tuple(
                decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True))
            )
    elif origin is not None and issubclass(origin, Mapping):
        if isinstance(value, dict):
            return {
                _key(args[0], k, where): decode(args[1], v, f"{where}[{_short(k)}]") for k, v in value.items()
            }
    elif kind is float:
        if (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= _LARGEST):
            return float(value)
    elif kind is int:
        if type(value) is int and abs(value) <= _LARGEST:
            return value
    elif type(value) is kind or (kind is type(None) and value is None):
        return value
    raise DamagedError(f"{where} is {_short(value)}, and must be {_said(kind)}")


def require(true: bool, where: str, what: str) -> None:
    """Values must fit each other, too.

    Raises:
        DamagedError: they do not.
    """
    if not true:
        raise DamagedError(f"{where} {what}")


def _record(kind: Any, value: Any, where: str) -> Any:
    hints = _hints(kind)
    fields = [f for f in dataclasses.fields(kind) if f.init]
    if isinstance(value, dict):
        known = {f.name for f in fields}
        missing = [
            f.name
            for f in fields
            if f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
            and f.name not in value
        ]
        require(not missing, where, f"lacks {', '.join(missing)}")
        odd = [k for k in value if k not in known]
        require(not odd, where, f"has {_short(odd)}, which nobody knows")
        return kind(**{k: decode(hints[k], v, f"{where}.{k}") for k, v in value.items()})
    if not isinstance(value, list) or len(value) != len(fields):
        raise DamagedError(
            f"{where} is {_short(value)}, and must be a record of {', '.join(f.name for f in fields)}"
        )
    return kind(*(decode(hints[f.name], v, f"{where}.{f.name}") for f, v in zip(fields, value, strict=True)))


def _open_record(kind: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedError(f"{where} is {_short(value)}, and must be a mapping")
    missing = [k for k in _hints(kind) if k in kind.__required_keys__ and k not in value]
    require(not missing, where, f"lacks {', '.join(missing)}")
    return value | {k: decode(v, value[k], f"{where}.{k}") for k, v in _hints(kind).items() if k in value}


def _key(kind: Any, key: str, where: str) -> Any:
    """Keys of JSON are texts."""
    if kind is not int:
        return key
    if not (key.isascii() and key.isdecimal() and len(key) < 19):
        raise DamagedError(f"{where} has the key {_short(key)}, which is no whole number")
    return int(key)


def _said(kind: Any) -> str:
    names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
    if kind in names:
        return names[kind]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return "a list" if get_origin(kind) is tuple else "a mapping" if get_origin(kind) else str(kind)


def _short(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    text = (
        repr(value)
        if not isinstance(value, int) or abs(value) <= _LARGEST
        else "a number of very many digits"
    )
    return text if len(text) <= 60 else text[:57] + "..."
