"""What comes out of a network, and which of it matters?"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from chipnet._util.text import amount
from chipnet.errors import ConfigError


@dataclass(frozen=True)
class Outputs:
    """Which parts of a network's output matter. Each is a path to it, the number of a tensor in the order of
    `tensors`, or a function of the whole output."""

    parts: tuple[str | int | Callable[[Any], Any], ...]

    @classmethod
    def of(cls, given: Any) -> Outputs | None:
        """A path, a function, or several; None for all that comes out.

        A path is made of indices, keys and names of fields with dots between them: ``0``, ``0.boxes``, ``logits``.
        It is read, never run.

        Raises:
            ConfigError: none of these.

        Example:
            >>> Outputs.of("0.boxes").parts, Outputs.of(["0", "aux.logits"]).parts, Outputs.of(None)
            (('0.boxes',), ('0', 'aux.logits'), None)
        """
        if given is None or isinstance(given, Outputs):
            return given
        several = isinstance(given, Iterable) and not isinstance(given, str)
        parts = tuple(given) if several else (given,)
        if not parts:
            return None
        for part in parts:
            text = isinstance(part, str) and all(key.strip() for key in part.split("."))
            if not text and (not callable(part) or isinstance(part, nn.Module)):
                if isinstance(part, int) and not isinstance(part, bool):
                    continue
                raise ConfigError(
                    f"outputs takes a path such as '0' or '0.boxes', a function of the output, or a list of them, "
                    f"not {part!r}"
                )
        return cls(tuple(parts))

    def __call__(self, out: Any) -> list[Tensor]:
        """The tensors that are chosen, each once.

        Raises:
            ConfigError: a part is not there, a function fails, or there is no tensor in it.

        Example:
            >>> import torch
            >>> out = (torch.tensor(1), {"boxes": torch.tensor(2), "scores": torch.tensor(3)})
            >>> [t.item() for t in Outputs.of(["1.scores", lambda out: out[0]])(out)]
            [3, 1]
        """
        found: dict[int, Tensor] = {}
        for part in self.parts:
            mine = list(tensors(self._one(part, out)))
            if not mine:
                raise ConfigError(f"outputs: {_named(part)} holds no tensor. {_listed(out)}")
            found.update({id(t): t for t in mine})
        return list(found.values())

    def _one(self, part: str | int | Callable[[Any], Any], out: Any) -> Any:
        if isinstance(part, int):
            every = list(tensors(out))
            if part >= len(every):
                raise ConfigError(
                    f"outputs: the network gives {amount(len(every), 'tensor')}, not {part + 1}"
                )
            return every[part]
        if callable(part):
            try:
                return part(out)
            except Exception as error:
                raise ConfigError(
                    f"outputs: {_named(part)} failed on what the network gives: {type(error).__name__}: {error}. "
                    f"{_listed(out)}"
                ) from error
        for key in part.split("."):
            try:
                out = _step(out, key.strip())
            except LookupError:
                raise ConfigError(f"outputs: {_named(part)} is not there. {_listed(out)}") from None
        return out

    def settled(self, out: Any) -> Outputs:
        """The same choice, with numbers of tensors in place of functions that return whole tensors: numbers can be
        written to files."""
        place = {id(t): i for i, t in enumerate(tensors(out))}
        parts: list[str | int | Callable[[Any], Any]] = []
        for part in self.parts:
            taken = [] if isinstance(part, (str, int)) else [place.get(id(t)) for t in tensors(part(out))]
            known = [i for i in taken if i is not None]
            parts += known if known and len(known) == len(taken) else [part]
        return Outputs(tuple(parts))

    def to_json(self) -> list[str | int] | None:
        """The choice as paths and numbers; None where a function computes something of its own."""
        plain = [part for part in self.parts if isinstance(part, (str, int))]
        return plain if len(plain) == len(self.parts) else None


def _named(part: Any) -> str:
    return repr(part) if isinstance(part, (str, int)) else f"the function {getattr(part, '__name__', part)!r}"


def _step(out: Any, key: str) -> Any:
    """One step along a path into an output. Raises ``LookupError`` where there is no such part."""
    number = int(key) if re.fullmatch(r"-?[0-9]{1,9}", key) else None
    if isinstance(out, Mapping):
        return out[key if key in out or number is None else number]
    if isinstance(out, (tuple, list)) and number is not None:
        return out[number]
    for name, value in _fields(out):
        if name == key:
            return value
    raise LookupError(key)


def _fields(out: Any) -> Iterator[tuple[str, Any]]:
    """Named parts of a dataclass, a named tuple or an object, in order."""
    if isinstance(out, tuple):
        yield from zip(getattr(out, "_fields", ()), out, strict=False)
    elif dataclasses.is_dataclass(out) and not isinstance(out, type):
        yield from ((field.name, getattr(out, field.name)) for field in dataclasses.fields(out))
    elif hasattr(out, "__dict__") and not isinstance(out, (Tensor, nn.Module, type)):
        yield from vars(out).items()


def _listed(out: Any) -> str:
    """A sentence that lists what can be chosen."""
    found = [f"{path or 'the whole'} {tuple(t.shape)}" for path, t in _paths(out, "")]
    return f"There are: {', '.join(found)}"[:500] if found else f"There is a {type(out).__name__}"


def _paths(out: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(out, Tensor):
        yield path, out
        return
    items: Iterable[tuple[Any, Any]] = _fields(out)
    if isinstance(out, Mapping):
        items = out.items()
    elif isinstance(out, (tuple, list)):
        items = enumerate(out)
    for key, value in items:
        yield from _paths(value, f"{path}.{key}" if path else str(key))


def tensors(out: Any) -> Iterator[Tensor]:
    """All tensors of an output: in tuples, mappings, dataclasses, output classes, in their order.

    Example:
        >>> import torch
        >>> [t.item() for t in tensors({"a": torch.tensor(1), "b": (torch.tensor(2), None)})]
        [1, 2]
    """
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        for value in out.values():
            yield from tensors(value)
    elif isinstance(out, (tuple, list, set)):
        for value in out:
            yield from tensors(value)
    elif dataclasses.is_dataclass(out) and not isinstance(out, type):
        for field in dataclasses.fields(out):
            yield from tensors(getattr(out, field.name))
    elif hasattr(out, "__dict__") and not isinstance(out, (nn.Module, type)):
        for value in vars(out).values():
            yield from tensors(value)
