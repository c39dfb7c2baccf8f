"""Where do the numbers in a forward come from, and which operators receive them?

The exported graph shows ``view(b, 16, -1)``, but not whether 16 was a literal, ``x.shape[1]`` or ``self.width``. So
a network is captured with every number in an attribute *marked*: an ``int`` that remembers where it comes from,
also through arithmetic. Sizes of tensors are marked too. Then it is known, and not guessed, what an operator
receives.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node, traceback
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from chipnet._util.device import device_of
from chipnet._util.torch_private import annotation_of
from chipnet.program.inputs import Inputs
from chipnet.program.lines import users_frame
from chipnet.program.ready import copied


@dataclass(frozen=True)
class Attribute:
    """``module.name``, or its element ``index``."""

    module: str
    name: str
    index: int | None = None

    def __str__(self) -> str:
        return f"self.{self.name}" + ("" if self.index is None else f"[{self.index}]")


class Term(NamedTuple):
    """Arithmetic of two numbers."""

    sign: str
    left: Expression
    right: Expression

    def __str__(self) -> str:
        sides = [f"({side})" if isinstance(side, Term) else str(side) for side in (self.left, self.right)]
        return f" {self.sign} ".join(sides)


class Shape(NamedTuple):
    """A tensor's size. It follows by itself.

    Where a call of a function made the tensor, ``made`` is the number of the call, and ``axis`` the axis of its
    result.
    """

    size: int
    made: int | None = None
    axis: int = 0

    def __str__(self) -> str:
        return "a tensor's size"


Expression = int | Attribute | Term | Shape


def _parts_of(expression: Expression) -> Iterator[int | Attribute | Shape]:
    """All numbers that a number is made of."""
    if isinstance(expression, Term):
        yield from _parts_of(expression.left)
        yield from _parts_of(expression.right)
    else:
        yield expression


def attributes_in(expression: Expression) -> Iterator[Attribute]:
    """All attributes that a number is made of."""
    return (part for part in _parts_of(expression) if isinstance(part, Attribute))


class Marked(int):
    """An int that knows where it comes from."""

    source: Expression

    def __new__(cls, value: int, source: Expression) -> Marked:
        marked = super().__new__(cls, value)
        marked.source = source
        return marked

    def __deepcopy__(self, memo: Any) -> Marked:
        return self

    def __reduce__(self) -> Any:  # in a file it is a plain number
        return int, (int.__int__(self),)

    def __neg__(self) -> Marked:
        return Marked(int.__neg__(self), Term("-", 0, self.source))

    def __float__(self) -> float:
        return _value(float(int.__int__(self)), self)

    def __int__(self) -> int:
        return _value(int.__int__(self), self)

    def __trunc__(self) -> int:
        return self.__int__()


def source_of(number: Any) -> Expression:
    """The source of a number. A plain number is its own."""
    return number.source if isinstance(number, Marked) else number


def is_from_attribute(number: Any) -> bool:
    """Is a number made of any attribute?"""
    return isinstance(number, Marked) and any(True for _ in attributes_in(number.source))


def _is_known(number: Any) -> bool:
    """Could a rule know what a number counts?"""
    if not isinstance(number, Marked):
        return False
    sizes = (part for part in _parts_of(number.source) if isinstance(part, Shape))
    return is_from_attribute(number) or any(size.made is not None for size in sizes)


def with_size(expression: Expression, size: int) -> int | None:
    """What a number would be if the tensor whose size it is made of had this size; None where it is made of more
    than that, or is a fraction.

    >>> with_size(Term("//", Shape(8), 2), 6)
    3
    """
    if not isinstance(expression, Term):
        return size if isinstance(expression, Shape) else expression if isinstance(expression, int) else None
    left, right = with_size(expression.left, size), with_size(expression.right, size)
    if (
        left is None
        or right is None
        or expression.sign not in _SIGNS
        or (right == 0 and expression.sign in "//%")
    ):
        return None
    return _SIGNS[expression.sign](left, right)


_SIGNS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod
}  # fmt: skip


def _value(result: Any, *numbers: Any) -> Any:
    """``result``, which is no size any more; that is remembered of the ``numbers`` that it is made of."""
    for n in numbers:
        if _watching and isinstance(n, Marked):
            _watching[-1].fractions.append((n.source, int.__int__(n)))
            if is_from_attribute(n):
                _watching[-1].values.append(Received(n.source, _line()))
    return result


def _arithmetic(name: str, sign: str, swapped: bool) -> Callable[[Any, Any], Any]:
    plain = getattr(int, name)

    def method(self: Any, other: Any) -> Any:
        result = plain(self, other)
        if type(result) is int:
            sides = source_of(self), source_of(other)
            return Marked(result, Term(sign, *(sides[::-1] if swapped else sides)))
        if result is NotImplemented and isinstance(other, float):
            result = getattr(float, name)(float(int.__int__(self)), other)
        return result if result is NotImplemented else _value(result, self, other)

    return method


for _name, _sign in {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "floordiv": "//",
    "mod": "%",
    "truediv": "/",
    "pow": "**",
}.items():
    setattr(Marked, f"__{_name}__", _arithmetic(f"__{_name}__", _sign, False))
    setattr(Marked, f"__r{_name}__", _arithmetic(f"__r{_name}__", _sign, True))
Marked.__divmod__ = lambda self, other: (self // other, self % other)  # type: ignore[method-assign]
Marked.__rdivmod__ = lambda self, other: (other // self, other % self)  # type: ignore[method-assign]


class Received(NamedTuple):
    """A number that was used as a value, and the user's line."""

    source: Expression
    line: str


@dataclass(frozen=True, eq=False)
class Given:
    """A call of an operator that received marked numbers. No tensors are held: ``args`` has None in their place."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    line: str

    def given(self, name: str, position: int) -> Any:
        """An argument, by its name or position; None where there is none."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if position < len(self.args) else None

    def numbers(self, first: int = 1) -> list[Any]:
        """All numbers from one argument on, in their order."""
        return [n for n in _leaves((self.args[first:], self.kwargs)) if isinstance(n, int)]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for v in value:
            yield from _leaves(v)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _leaves(v)
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    elif value is not None and not isinstance(value, bool):
        yield value


class Watch(TorchFunctionMode):
    """Sees which operators receive marked numbers. Nodes that are made meanwhile remember the call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Given] = []
        self.values: list[Received] = []
        self.fractions: list[tuple[Expression, int]] = []
        """Marked numbers that became numbers of another type (a root, a part), with their value."""
        self._count = 0
        self._made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        """Tensor -> the number of the call that gave it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SIZES:
            return self._sizes(args[0], func(*args, **kwargs), *args[1:], **kwargs)
        self._count += 1
        marks = {_MADE: self._count}
        if any(_is_known(n) for n in _leaves((args, kwargs))):
            name = getattr(func, "__name__", str(func))
            self.calls.append(Given(name, _bare(args), _bare(kwargs), _line()))
            marks[_KEY] = len(self.calls) - 1
        with traceback.annotate(marks):
            out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self._made.setdefault(out, self._count)
        return out

    def _sizes(self, x: Tensor, sizes: Any, dim: Any = None) -> Any:
        """Sizes of a tensor, or the one along ``dim``, marked."""
        made = self._made.get(x)
        if isinstance(sizes, torch.Size):
            return torch.Size([self._sizes(x, n, axis) for axis, n in enumerate(sizes)])
        return Marked(sizes, Shape(sizes, made, dim % x.dim())) if type(sizes) is int else sizes

    def __enter__(self) -> Watch:
        _watching.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _watching.remove(self)
        super().__exit__(*error)

    def unclaimed(
        self, claimed: Set[tuple[Given, Expression]], roots: Set[Expression] = frozenset()
    ) -> Iterator[Received]:
        """Numbers from attributes that are not among ``claimed``, so that no rule knows what they count, nor widths
        of which a rule knows the ``roots``."""
        yield from (r for r in self.values if r.source not in roots)
        for call in self.calls:
            for n in _leaves((call.args, call.kwargs)):
                if is_from_attribute(n) and (call, n.source) not in claimed:
                    yield Received(n.source, call.line)

    def of(self, node: Node) -> Given | None:
        """The call that made a node; None where that received no number from an attribute."""
        place = annotation_of(node, _KEY)
        return None if place is None else self.calls[place]


_KEY, _MADE = "chipnet", "chipnet made"
_watching: list[Watch] = []
_SIZES = (Tensor.shape.__get__, Tensor.size)  # type: ignore[attr-defined]


def made_by(node: Node) -> int | None:
    """The number of the call that made a node, as in `Shape`."""
    return annotation_of(node, _MADE)


def _bare(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_bare(v) for v in value)
    if isinstance(value, Mapping):
        return {k: _bare(v) for k, v in value.items()}
    return None if isinstance(value, Tensor) else value


def _line() -> str:
    """File and line of the user's code that runs now."""
    frame = users_frame()
    if frame is None:
        return ""
    return f"{frame.f_code.co_filename.replace(chr(92), '/').rsplit('/', 1)[-1]}:{frame.f_lineno}"


def mark(model: nn.Module) -> None:
    """Mark every number that an attribute holds, in place."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if type(value) is int:
                vars(module)[name] = Marked(value, Attribute(path, name))
            elif type(value) in (list, tuple, torch.Size) and value and all(type(v) is int for v in value):
                marked = [Marked(v, Attribute(path, name, i)) for i, v in enumerate(value)]
                vars(module)[name] = type(value)(marked)


@contextlib.contextmanager
def watched(watch: Watch | None) -> Iterator[None]:
    """While the block lasts, new nodes remember the calls that ``watch`` sees."""
    with traceback.preserve_node_meta(watch is not None):
        yield


@torch.no_grad()
def values_in_training(model: nn.Module, inputs: Inputs) -> list[Received]:
    """Numbers from attributes that a forward in train mode uses as values, not as sizes. None are known where it
    does not run."""
    watch = Watch()
    try:
        own = copied(model).train()
        mark(own)
        with watch:
            inputs.twice().to(device_of(model))(own)
    except Exception:  # it wants targets: eval mode says what is known
        return []
    called = [
        Received(n.source, call.line)
        for call in watch.calls
        if call.name not in _RESHAPES
        for n in _leaves((call.args, call.kwargs))
        if isinstance(n, Marked)
    ]
    return [*watch.values, *called]


_RESHAPES = frozenset(
    "view reshape unflatten expand repeat split split_with_sizes chunk tensor_split narrow __getitem__ permute "  # noqa: SIM905
    "new_zeros new_ones new_full new_empty zeros ones empty full rand randn conv1d conv2d conv3d group_norm "
    "layer_norm batch_norm instance_norm flatten transpose movedim".split()
)
"""Functions whose whole numbers say how tensors lie: the eval graph knows what they mean."""
