"""A request from layers of plain values, as files and flags have them, and back."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chipnet import Budget
from chipnet.errors import ConfigError, Problems
from chipnet.lab.config import DATA, READING, Recipe, Request, recipe_for
from chipnet.lab.fit import fitted, options, shown


def request_from(*layers: Mapping[str, Any], source: str = "the config") -> Request:
    """A request from plain values, as YAML has them; later layers win.

    Args:
        layers: option -> value, with `recipe` a mapping of its own, and `quick: true` for `recipe_for`'s short
            one. What no layer has is the default: for the recipe, the data set's.
        source: what to call the layers in errors.

    Raises:
        ConfigError: keys that do not exist (with the one that was probably meant) and values of a wrong type,
            all of them.

    Example:
        >>> request_from({"data": "digits", "recipe": {"prune": 3}}, {"seed": 4}).recipe.epochs
        (20, 3, 10)
        >>> request_from({"sede": 4})
        Traceback (most recent call last):
        ...
        chipnet.errors.ConfigError: cannot use the config:
          - there is no option 'sede'; did you mean 'seed'?
    """
    problems = Problems()
    request = read_layers([(source, layer) for layer in layers], problems)
    problems.tell()
    return request


def read_layers(layers: Iterable[tuple[str, Mapping[str, Any]]], problems: Problems) -> Request:
    """As `request_from`, for layers with what to call each in errors (nothing: flags, whose errors speak for
    themselves). Mistakes are added to ``problems``, and the request goes without them."""
    values: dict[str, Any] = {}
    recipes: list[dict[str, Any]] = []
    quick = False
    for source, layer in layers:
        wrong: list[str] = []
        top = {k: v for k, v in layer.items() if k not in ("recipe", "quick", "command")}
        values |= fitted(Request, top, "", wrong, Recipe)
        recipe = layer.get("recipe") or {}
        if isinstance(recipe, Mapping):
            recipes.append(fitted(Recipe, recipe, "recipe." if source else "", wrong, Request))
        else:
            wrong.append(f"recipe must be a mapping of options, not {shown(recipe)}")
        quick = quick if layer.get("quick") is None else bool(layer["quick"])
        if wrong and source:
            told = "\n".join(f"  - {w}" for w in wrong)
            problems.found.append(ConfigError(f"cannot use {source}:\n{told}"))
        else:
            for text in wrong:
                problems.add(f"{text}.")
    made = recipe_for(values.get("data", ""), quick)
    for changes in recipes:
        with problems.collected():
            made = made.changed(changes)
    return Request(**values, recipe=made)


def data_options(values: Mapping[str, Any] | Request) -> dict[str, Any]:
    """What of the options `chipnet.lab.data.load_data` takes, of a request or of its config.yaml."""
    if isinstance(values, Request):
        return {name: getattr(values, name) for name in DATA}
    return fitted(Request, {name: values[name] for name in DATA if name in values}, "", [])


def typed(request: Request, problems: Problems) -> Request:
    """A request made in Python, with values as those of a file: only such can be written to config.yaml. What
    cannot be used is added to ``problems``, and is the default in what is returned."""
    wrong: list[str] = []
    defaults = {name: default for name, (_, _, default) in options(Request).items()}
    values = fitted(Request, {name: getattr(request, name) for name in defaults}, "", wrong)
    for text in wrong:
        problems.add(f"{text}.")
    return dataclasses.replace(request, **(defaults | values))


def plain(request: Request) -> dict[str, Any]:
    """The inverse of `request_from`: values that YAML and JSON have."""

    def values(of: Any) -> dict[str, Any]:
        found = {name: getattr(of, name) for name in options(type(of))}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}

    top = values(request) | {"budget": str(Budget.parse(request.budget)), "out": os.fspath(request.out)}
    del top["overwrite"]  # a repeated run must not replace its original
    recipe = values(request.recipe) if request.recipe else {}
    return top | {"recipe": {n: v for n, v in recipe.items() if n in READING or not request.no_train}}


def unused(out: str | os.PathLike[str]) -> Path:
    """The first of OUT, OUT-2, OUT-3, ... that does not exist: a repeated run replaces nothing."""
    path = Path(os.path.expanduser(out))
    names = itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2)))
    return next(p for p in names if not os.path.lexists(p))  # of a name that cannot be, `prepare` tells
