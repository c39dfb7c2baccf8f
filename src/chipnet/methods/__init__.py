"""Methods: ways to give every gate a value. Everything else (gates, costs, hardening, compaction) is shared.

A method is one file with one class; ``METHODS`` is the table of all of them, tried by ``tests/test_methods.py``.
"""

from __future__ import annotations

from chipnet._errors import ConfigError
from chipnet.methods._bar import BAR
from chipnet.methods._base import Method
from chipnet.methods._chipnet import ChipNet
from chipnet.methods._fisher import Fisher
from chipnet.methods._magnitude import Magnitude
from chipnet.methods._paper import ChipNetPaper
from chipnet.methods._random import Random
from chipnet.methods._slimming import Slimming
from chipnet.methods._taylor import Taylor
from chipnet.methods._uniform import Uniform

METHODS: dict[str, type[Method]] = {
    m.name: m for m in (ChipNet, ChipNetPaper, BAR, Slimming, Magnitude, Taylor, Fisher, Random, Uniform)
}


def read_method(text: str) -> tuple[type[Method], dict[str, float]]:
    """A method and other values for its settings, from its name alone or ``name:setting=number,...``.

    Raises:
        ConfigError: no such method or setting, or not a number.

    Examples:
        >>> read_method("taylor")
        (<class 'chipnet.methods._taylor.Taylor'>, {})
        >>> read_method("slimming: refreshes=0, freeze=1, floor=0")[1]
        {'refreshes': 0, 'freeze': 1.0, 'floor': 0.0}
        >>> read_method("chipnet:flor=0")
        Traceback (most recent call last):
        ...
        chipnet._errors.ConfigError: chipnet has no setting 'flor'; did you mean 'floor'?
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    options: dict[str, float] = {}
    for part in rest.split(",") if colon else ():
        setting, _, value = part.partition("=")
        try:
            options[setting.strip()] = float(value)
        except ValueError:
            raise ConfigError(
                f"cannot read {part.strip()!r} in the method {text!r}: write name:setting=number,setting=number"
            ) from None
    return METHODS[name], METHODS[name].checked(options)


__all__ = [
    "BAR",
    "METHODS",
    "ChipNet",
    "ChipNetPaper",
    "Fisher",
    "Magnitude",
    "Method",
    "Random",
    "Slimming",
    "Taylor",
    "Uniform",
    "read_method",
]
