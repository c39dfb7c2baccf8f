"""What an option is: a field with a line of help. Plain values of files and flags become values of its type."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import os
import typing
from collections.abc import Container, Iterable, Mapping
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan, BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from chipnet._util.sizes import MAX, MAX_OF
from chipnet._util.text import did_you_mean


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as a text, and flags are texts."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _several(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


FromZero = Annotated[int, Ge(0)]
FromOne = Annotated[int, Ge(1)]
FROM_TEXT = BeforeValidator(_number)
Number = Annotated[float, FROM_TEXT]
Rate = Annotated[float, Gt(0), AllowInfNan(False), FROM_TEXT]
Weight = Annotated[float, Ge(0), AllowInfNan(False), FROM_TEXT]
Part = Annotated[float, Ge(0), Lt(1), FROM_TEXT]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(_several)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_several)]

_WORDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "finite_number": "finite",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le:,}",
    "literal_error": "{expected}",
    "value_error": "{error}",
}
"""What a value must be, by the kind of pydantic's error."""


def option(default: Any, help: str) -> Any:
    """A field with its line of help, the text of its flag."""
    return dataclasses.field(default=default, metadata={"help": help})


NOT_OPTIONS = {"recipe", "command"}
"""Fields of `Request` that are no option by themselves."""


def options(cls: type) -> dict[str, tuple[Any, str, Any]]:
    """Name -> (type, help, default) of every option of `Request` or `Recipe`."""
    types = typing.get_type_hints(cls)
    return {
        f.name: (types[f.name], f.metadata.get("help", ""), f.default)
        for f in dataclasses.fields(cls)
        if f.name not in NOT_OPTIONS
    }


@functools.cache
def _types(cls: type) -> dict[str, TypeAdapter[Any]]:
    """Name -> type of every option. Whole numbers are at most what `chipnet._util.sizes` has for their names."""
    types = typing.get_type_hints(cls, include_extras=True)
    for name, (kind, *_) in options(cls).items():
        if kind in (int, int | None):
            types[name] = Annotated[types[name], Le(MAX_OF.get(name, MAX))]
    return {name: TypeAdapter(types[name]) for name in options(cls)}


def fitted(
    cls: type, values: Mapping[Any, Any], prefix: str, problems: list[str], other: type | None = None
) -> dict[str, Any]:
    """`values` as those of the options of `cls`, without those that cannot be; `problems` says why.

    Args:
        values: option -> value.
        prefix: of names in problems.
        problems: are added to.
        other: the class whose options are given elsewhere.
    """
    found = {}
    for name, value in values.items():
        if name not in _types(cls):
            problems.append(_unknown(str(name), prefix, options(cls), options(other) if other else ()))
            continue
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif isinstance(value, numbers.Integral) and not isinstance(value, bool):
            value = int(value)  # NumPy's are none that YAML can write
        try:
            found[name] = _types(cls)[name].validate_python(value, strict=True)
        except ValidationError as error:
            problems.append(f"{prefix}{name} must be {_said(error.errors()[0], value)}")
    return found


def _unknown(name: str, prefix: str, known: Iterable[str], elsewhere: Container[str]) -> str:
    if name in elsewhere:
        where = "outside of recipe" if prefix else "inside of recipe"
        return f"there is no option '{prefix}{name}'; it belongs {where}"
    names = [*known, *(() if prefix else ("recipe", "quick"))]
    meant = did_you_mean(name.replace("-", "_"), names, 0.5, prefix) or f"known: {', '.join(sorted(names))}"
    return f"there is no option '{prefix}{name}'; {meant}"


def _said(error: ErrorDetails, given: Any) -> str:
    """What a value must be, and what it is."""
    limits = {k: int(v) if isinstance(v, float) else v for k, v in error.get("ctx", {}).items()}
    words = _WORDS[error["type"]].format(**limits)
    if error["loc"] and isinstance(error["loc"][0], int):
        return f"{words} or a list of {words.removeprefix('a ')}s, not {shown(given)}"
    return f"{words}, not {shown(error['input'])}"


def shown(value: Any) -> str:
    """A value for people, of a length that they read."""
    try:
        return cut(repr(value))
    except ValueError:  # an integer of thousands of digits
        return "a number of many digits"


def cut(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
