"""Is what a caller gives of the type that is wanted? Refused before any work, with what to give in its place."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chipnet._util.text import type_text, value_text
from chipnet.errors import CaptureError, ChipNetError, ConfigError, PlanError


@dataclass(frozen=True)
class Wanted:
    """A type of argument.

    Attributes:
        kind: the type, or several.
        what: what it is called, with its article.
        how: what to give in place of something else, as sentences.
        error: what a refusal is.
    """

    kind: type | tuple[type, ...]
    what: str
    how: str
    error: type[ChipNetError] = ConfigError

    def check(self, name: str, value: Any) -> None:
        """Refuse what is of another type.

        Args:
            name: of the argument.
            value: what was given.

        Raises:
            ChipNetError: it is of another type. The error is of this kind's class.

        Example:
            >>> Wanted(str, "a text", "Quote it.").check("name", 3)
            Traceback (most recent call last):
            ...
            chipnet.errors.ConfigError: name must be a text, not an int. Quote it.
        """
        if not isinstance(value, self.kind):
            raise self.error(f"{name} must be {self.what}, not {type_text(value)}. {self.how}")


NETWORK = Wanted(
    nn.Module,
    "a network, an object of torch.nn.Module",
    "Build the network; load_state_dict() loads weights into it.",
    CaptureError,
)
OPTIMIZER = Wanted(
    torch.optim.Optimizer, "an optimiser of torch.optim", "Give the one that trains the network."
)
STATES = Wanted(
    Mapping, "a mapping from names of parameters", "chipnet.surgery.optimizer.cut_state returns it."
)
PATH = Wanted(
    (str, os.PathLike), "a path", "Give the name of a file or a folder, as a text or a pathlib.Path."
)
NAME = Wanted(str, "a text", "See chipnet.lab.models.list_models() and chipnet.lab.data.list_data().")
TENSOR = Wanted(str, "a text", "Give the name of a tensor, as in the state dict.", PlanError)
ATTRIBUTE = Wanted(str, "a text", "Give the path of the attribute that holds the network, such as 'model'.")
FUNCTION = Wanted(Callable, "a function", "Leave it out, or give something that can be called.")  # type: ignore[arg-type]


def path_of(name: str, path: Any) -> Path:
    """A path as a `Path`, with ``~`` as the user's folder.

    Raises:
        ConfigError: it is none.
    """
    PATH.check(name, path)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"{name} {value_text(path)} is of a user who is not known here") from error


def new_file(name: str, path: Any) -> Path:
    """The path of a file that will be written. Its folder exists, and it is no folder itself.

    Raises:
        ConfigError: something else was given.

    Example:
        >>> new_file("path", "nowhere/small.safetensors")
        Traceback (most recent call last):
        ...
        chipnet.errors.ConfigError: nowhere/small.safetensors cannot be written: there is no folder nowhere. Make it
        first: mkdir -p nowhere
    """
    target = path_of(name, path)
    if not target.parent.is_dir():
        folder = target.parent
        raise ConfigError(
            f"{target} cannot be written: there is no folder {folder}. Make it first: "
            f"mkdir -p {shlex.quote(str(folder))}"
        )
    if target.is_dir():
        raise ConfigError(f"{target} cannot be written: it is a folder. Give the name of a file in it")
    return target
