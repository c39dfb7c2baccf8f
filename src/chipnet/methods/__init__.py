"""Methods: ways to give every gate a value. Everything else (gates, costs, hardening, compaction) is shared.

A method is one file with one class. ``METHODS`` finds ours; the tests try each of them. One of your own extends
`Method`, or `Gradual` where it only has scores, and is named ``module:Class``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import TypeGuard

from chipnet._util.imports import REFERENCE, import_callable
from chipnet.errors import ConfigError
from chipnet.methods.bar import BAR
from chipnet.methods.base import Method
from chipnet.methods.chipnet import ChipNet
from chipnet.methods.fisher import Fisher
from chipnet.methods.gradual import Gradual, Sensing
from chipnet.methods.magnitude import Magnitude
from chipnet.methods.paper import ChipNetPaper
from chipnet.methods.random import Random
from chipnet.methods.scores import by_gate, per_site
from chipnet.methods.slimming import Slimming
from chipnet.methods.taylor import Taylor
from chipnet.methods.uniform import Uniform


def is_method(found: object) -> TypeGuard[type[Method]]:
    """Is it a class of methods?"""
    return isinstance(found, type) and issubclass(found, Method)


def _ours() -> dict[str, type[Method]]:
    """Name -> class of every method in this folder: first the default, then the others in the order of files."""
    found = {}
    for file in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{file}")
        for value in vars(module).values():
            if is_method(value) and value.__module__ == module.__name__ and not inspect.isabstract(value):
                found[value.name] = value
    return {ChipNet.name: ChipNet, **found}


METHODS = _ours()
"""Every method of ours, by name. A new file in this folder is in it."""

_OWN = re.compile(rf"({REFERENCE.pattern})(?:\s*:(.*))?", re.DOTALL)


def read_method(method: str | type[Method]) -> tuple[type[Method], dict[str, float]]:
    """A method and other values for its settings.

    Args:
        method: a name of ``METHODS``, or ``module:Class`` for a `Method` of your own; with other values for its
            settings as ``name:setting=number,...``. Or the class itself.

    Raises:
        ConfigError: no such method or setting, not a number, or a number out of range.

    Examples:
        >>> read_method("taylor")
        (<class 'chipnet.methods.taylor.Taylor'>, {})
        >>> read_method("slimming: refreshes=0, freeze=1, floor=0")[1]
        {'refreshes': 0, 'freeze': 1.0, 'floor': 0.0}
        >>> read_method("chipnet.methods:Taylor:floor=0.05")
        (<class 'chipnet.methods.taylor.Taylor'>, {'floor': 0.05})
        >>> read_method("chipnet:flor=0")
        Traceback (most recent call last):
        ...
        chipnet.errors.ConfigError: chipnet has no setting 'flor'; did you mean 'floor'?
    """
    if isinstance(method, type):
        return _class(method, method.__name__), {}
    if not isinstance(method, str):
        raise ConfigError(f"method is a name, module:Class or a class of Method, not {method!r}")
    name, settings = _parts(method)
    options: dict[str, float] = {}
    for part in settings.split(",") if settings is not None else ():
        setting, _, value = (text.strip() for text in part.partition("="))
        if setting in options:
            raise ConfigError(f"{setting} is given twice in the method {method!r}; keep one")
        try:
            options[setting] = float(value)
        except ValueError:
            raise ConfigError(
                f"cannot read {part.strip()!r} in the method {method!r}: write name:setting=number,setting=number"
            ) from None
    made = METHODS.get(name) or _class(import_callable(name), name)
    return made, made.read_options(options)


def reference(method: type[Method]) -> str:
    """How a method is named: one of ``METHODS`` by its name, another as ``module:Class``.

    Example:
        >>> reference(Taylor), reference(Gradual)
        ('taylor', 'chipnet.methods.gradual:Gradual')
    """
    if METHODS.get(method.name) is method:
        return method.name
    return f"{method.__module__}:{method.__qualname__}"


def method_text(text: str) -> str:
    """A method's text in its one spelling: texts with one meaning and one order of settings become equal.

    Raises:
        ConfigError: see `read_method`.

    Example:
        >>> method_text(" taylor : floor = 5e-2, refreshes=7")
        'taylor:floor=0.05,refreshes=7'
    """
    _, options = read_method(text)
    name, _ = _parts(text)
    settings = ",".join(f"{k}={v:.12g}" for k, v in options.items())
    return f"{name}:{settings}" if settings else name


def _parts(text: str) -> tuple[str, str | None]:
    """Split a method's text into its name (one of ``METHODS``, or module:Class) and its settings, if it has any.

    Raises:
        ConfigError: it is neither.
    """
    name, colon, settings = text.partition(":")
    name = name.strip()
    if name in METHODS:
        return name, settings if colon else None
    own = _OWN.fullmatch(text.strip())
    if own is None:
        raise ConfigError(
            f"unknown method {name!r}; known: {', '.join(METHODS)}, or module:Class for one of your own"
        )
    return own[1], own[2]


def _class(found: Callable[..., object], name: str) -> type[Method]:
    """``found`` itself, if it is a class of methods that has all that it needs.

    Raises:
        ConfigError: it is not.
    """
    if not is_method(found):
        raise ConfigError(
            f"{name} is no method: write a class that extends chipnet.methods.Method or Gradual"
        )
    if missing := ", ".join(sorted(getattr(found, "__abstractmethods__", ()))):
        raise ConfigError(f"the method {name} lacks {missing}")
    return found


__all__ = [
    "BAR",
    "METHODS",
    "ChipNet",
    "ChipNetPaper",
    "Fisher",
    "Gradual",
    "Magnitude",
    "Method",
    "Random",
    "Sensing",
    "Slimming",
    "Taylor",
    "Uniform",
    "by_gate",
    "is_method",
    "method_text",
    "per_site",
    "read_method",
    "reference",
]
