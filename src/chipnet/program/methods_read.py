"""What do methods other than forward read: weights that they fuse, and numbers that count widths?

No graph shows such methods, so their code is read for the attributes that it names. ``reparameterize()`` makes a
convolution of ``self.in_channels``; exporters call ``forward_split`` in place of ``forward``.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn

from chipnet._util.torch_private import children_of

_WEIGHTS = frozenset(["weight", "running_mean", "running_var"])
_WALKS = frozenset(["modules", "children", "named_modules", "named_children", "named_parameters"])
_STARTS = ("init", "reset", "load")
"""Methods with such names set weights, and fuse none."""
_SIZES = frozenset(
    "split split_with_sizes narrow view reshape unflatten expand zeros empty ones new_zeros new_empty range arange "  # noqa: SIM905
    "Conv1d Conv2d Conv3d Linear BatchNorm1d BatchNorm2d BatchNorm3d create_conv2d".split()
)
"""What a number is given to as a size."""


class NamesRead(NamedTuple):
    """What a method reads, with the methods that it calls: attributes (``names``), and names in functions that
    these call (``far``)."""

    names: frozenset[str]
    far: frozenset[str]

    @property
    def reads_weights(self) -> bool:
        return not _WEIGHTS.isdisjoint(self.names | self.far)

    @property
    def has_sizes(self) -> bool:
        """Does it call anything that takes sizes?"""
        return not _SIZES.isdisjoint(self.names | self.far)


class Methods(NamedTuple):
    """What ``forward`` reads, and every method that it does not call."""

    forward: frozenset[str]
    others: Mapping[str, NamesRead]


def methods_of(module: nn.Module) -> Methods:
    """What the methods of a module's class read. Methods of PyTorch's own classes are left out."""
    cls: Any = type(module)
    if "forward" not in vars(module):
        return _methods_of_class(cls)
    forward = inspect.unwrap(module.forward)
    forward = inspect.unwrap(getattr(forward, "__func__", forward))
    return _methods_of(cls, forward if isinstance(forward, FunctionType) else None)


@functools.lru_cache(maxsize=1024)
def _methods_of_class(cls: type) -> Methods:
    return _methods_of(cls, None)


def _methods_of(cls: type, forward: FunctionType | None) -> Methods:
    own = dict(_functions(cls))
    forward = forward or own.get("forward")
    running = _called(own, forward) if forward is not None else set()
    if "__call__" in own:
        running |= _called(own, own["__call__"])
    building = _called(own, own["__init__"]) if "__init__" in own else set()
    others = {}
    for name, function in own.items():
        if name == "__init__" or function in running:
            continue
        reached = _called(own, function)
        names = frozenset().union(*(_read(f.__code__)[0] for f in reached))
        method = NamesRead(names, frozenset(_far(reached)))
        if function not in building or method.reads_weights:  # what only builds has done so
            others[name] = method
    return Methods(frozenset().union(*(_read(f.__code__)[0] for f in running)), others)


def _functions(cls: type) -> Iterator[tuple[str, FunctionType]]:
    for base in reversed(cls.__mro__):
        if base is object or is_torchs(base):
            continue
        for name, value in vars(base).items():
            for wrapper in ("__func__", "fget", "func"):
                value = getattr(value, wrapper, value)
            value = inspect.unwrap(value) if callable(value) else value
            if isinstance(value, FunctionType):
                yield name, value


def is_torchs(cls: Any) -> bool:
    """Is a class or function PyTorch's own?"""
    return f"{cls.__module__}.".startswith("torch.")


def _called(own: Mapping[str, FunctionType], function: FunctionType) -> set[FunctionType]:
    """A method, the methods that it names, those that these name, and so on."""
    found, stack = {function}, [function]
    while stack:
        new = {own[n] for n in _read(stack.pop().__code__)[0] & own.keys()} - found
        found |= new
        stack.extend(new)
    return found


def _far(functions: set[FunctionType]) -> set[str]:
    """Names that are read in functions which ``functions`` call. Of PyTorch's functions only the first level is
    read."""
    found: set[str] = set()
    seen, stack = set(functions), list(functions)
    while stack:
        function = stack.pop()
        attributes, variables = _read(function.__code__)
        found |= attributes | variables
        if is_torchs(function):
            continue
        called = [function.__globals__.get(n) for n in variables]
        new = {inspect.unwrap(f) for f in called if isinstance(f, FunctionType)} - seen
        seen |= new
        stack.extend(f for f in new if isinstance(f, FunctionType))
    return found


@functools.lru_cache(maxsize=4096)
def _read(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Attributes and global variables that code reads, functions inside it included."""
    attributes, variables = set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            attributes.add(instruction.argval)
        elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            variables.add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more = _read(inner)
            attributes |= more[0]
            variables |= more[1]
    return frozenset(attributes), frozenset(variables)


def fused(modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """Modules whose weights are read by methods of a module around them. Such methods see tensors, and no hooks."""
    found = set()
    for path, module in modules.items():
        if not children_of(module):
            continue
        for name, method in methods_of(module).others.items():
            if not method.reads_weights or any(start in name.lower() for start in _STARTS):
                continue
            children = method.names & children_of(module).keys()
            statistics = not {"running_mean", "running_var"}.isdisjoint(method.names | method.far)
            if statistics and (not children or not _WALKS.isdisjoint(method.names)):
                found.add(path)
            found |= {f"{path}.{child}".lstrip(".") for child in children}
    return frozenset(found)
