"""Operators that move data. They are run on labels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
import torch
from torch.fx import Node

from chipnet.graph.attributes import claim, pin_literal
from chipnet.graph.facts import Map, PinCode, Source
from chipnet.graph.labels import Labels, Param, Value, along, smallest_core, uniform
from chipnet.graph.operator import Operator
from chipnet.graph.rules.table import aten, rule
from chipnet.program.names import operator_name, shape_of
from chipnet.program.watch import is_from_attribute

# Sizes in the call: a width there is from an attribute, from a tensor, or a literal, which a trial finds out.
_REPEATS = {"repeat", "tile"}
_LITERAL = {"view", "reshape", "_unsafe_view", "unflatten", *_REPEATS}

_CONTRACTIONS = frozenset("matmul mm bmm mv addmm einsum tensordot".split())  # noqa: SIM905


def _multiplies(user: Node, x: Node) -> bool:
    name = operator_name(user)
    return name in _CONTRACTIONS and not (name == "addmm" and user.args[0] is x)


@rule(*aten("t transpose permute numpy_T mT swapaxes swapdims"))
def turn(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Axes change places. A weight that is turned only to be multiplied with is still that weight."""
    if isinstance(x, Param) and len(x.shape) == 2 and min(x.shape) > 1:
        turned = op.node.target(torch.empty(2, 3), *args, **kwargs).shape == (3, 2)  # type: ignore[operator]
        if turned and all(_multiplies(n, op.node) for n in op.node.users):
            return Param(x.name, op.shape, turned=True)
    return move(op, x, *args, **kwargs)


@rule(
    *aten(
        "view reshape _unsafe_view flatten unflatten unsqueeze squeeze movedim moveaxis flip fliplr "
        "flipud rot90 ravel atleast_1d atleast_2d atleast_3d repeat tile pixel_shuffle pixel_unshuffle "
        "unfold"
    )
)
def move(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Elements change places, and so do their labels."""
    if (data := _moved_data(op, x, args, kwargs)) is not None:
        return data
    x = op.labelled(x)
    if not x.varying:
        wide = _widened(op, x) if op.name in _REPEATS else None
        return wide or uniform(int(x.core.reshape(-1)[0]), op.shape)
    literal = op.name in _LITERAL
    if literal and op.is_literal:
        pin_literal(op, x, "is reshaped to sizes that do not follow its width")
    full = op.node.target(x.full().contiguous(), *args, **kwargs)  # type: ignore[operator]
    if not literal:
        return op.moved(full)
    op.risk(x.slots())
    skip = 1 if op.name == "unflatten" else 0
    before = args[0] % len(x.shape) if skip else 0
    after = len(x.shape) - 1 - before if skip else 0
    sizes = dict(enumerate(op.sizes(tuple(full.shape[before : full.dim() - after]), skip), before))
    out = op.moved(full, {axis for axis, number in sizes.items() if type(number) is int})
    for axis, number in sizes.items():
        if axis in out.varying:
            claim(op, number, op.lengths(out, axis))
    given = dict(enumerate(_given(args, skip), before))
    for axis in out.varying if -1 in given.values() else ():
        if given.get(axis, -1) != -1 and not op.keeps_length(out, axis):
            reason = "a size that follows from the others (-1) needs at least one channel"
            op.keep(out.along(axis)[:1], reason, PinCode.NEVER_EMPTY)
    return out


def _given(args: tuple[Any, ...], skip: int) -> Sequence[int]:
    """The sizes among the arguments of a reshape."""
    sizes = args[skip] if len(args) > skip else ()
    return sizes if isinstance(sizes, (list, tuple)) else ()


def is_data(x: Value, op: Operator) -> TypeGuard[Param]:
    """Is ``x`` a parameter of several axes, and all that reads what the operator makes of it is what tells which
    axis has channels?"""
    if not isinstance(x, Param) or len(x.long) < 2 or x.made is not None or x.turned:
        return False
    return bool(op.node.users) and all(_tells(n, op.node) or _is_function(n) for n in op.node.users)


def _tells(user: Node, node: Node) -> bool:
    """Does an operator tell which axis of ``node`` has channels, or leave that to its own readers?"""
    return operator_name(user) in _MEETS or (operator_name(user) == "linear" and user.args[0] is node)


def _is_function(node: Node) -> bool:
    """Does an operator compute every element from one element of one tensor?"""
    return len(node.all_input_nodes) == 1 and torch.Tag.pointwise in getattr(node.target, "tags", ())


def _moved_data(op: Operator, x: Value, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Param | None:
    """A parameter of several axes that is data (registers, learnt queries), with its axes in other places; None
    where they are not whole any more, or something else reads it than what tells which axis has channels."""
    if not is_data(x, op):
        return None
    axes: list[int | None] = [None] * len(op.shape)
    for axis in x.long:
        index = torch.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(x.shape))])
        out = smallest_core(op.node.target(index.expand(x.shape), *args, **kwargs))  # type: ignore[operator]
        varies = [a for a, n in enumerate(out.shape) if n > 1]
        if len(varies) != 1 or not torch.equal(out.reshape(-1), index.reshape(-1)):
            return None
        axes[varies[0]] = x.own(axis)
    return replace(x, shape=op.shape, axes=tuple(axes))


@rule(*aten("repeat_interleave"))
def repeat_interleave(op: Operator, x: Value, repeats: Any, dim: Any = None, **kwargs: Any) -> Value:
    """Every element is repeated as often as a number says, or a tensor along axes without channels."""
    if not isinstance(repeats, Value):
        return move(op, x, repeats, dim)
    x = op.labelled(x)
    if dim is None or dim % len(x.shape) in x.varying:
        return op.barrier([x, repeats], "channels are repeated as a tensor says")
    return Labels(op.with_kept(x, [repeats], "how often positions are repeated").core, op.shape)


@rule(*aten("triu tril diagonal"))
def triangle(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Labels:
    """Parts of a matrix, along two axes without channels."""
    x = op.labelled(x)
    if op.name == "diagonal":
        places = dict(zip(("offset", "dim1", "dim2"), args, strict=False)) | kwargs
        axes = [places.get("dim1", 0) % len(x.shape), places.get("dim2", 1) % len(x.shape)]
    else:
        axes = [len(x.shape) - 2, len(x.shape) - 1]
    if any(a in x.varying for a in axes):
        return op.barrier([x], "a part of a matrix of channels")
    return Labels(x.core if len(op.shape) == len(x.shape) else x.core.squeeze(axes).unsqueeze(-1), op.shape)


@rule(*aten("channel_shuffle native_channel_shuffle"))
def channel_shuffle(op: Operator, x: Value, groups: int) -> Labels:
    """The number of groups stays, so the same positions remain in each group."""
    x = op.labelled(x)
    if x.varying == [1]:
        for column in x.slots().reshape(groups, -1).T:
            op.draft.tie_all(column)
        op.note_tie(x.slots())
    return op.moved(op.node.target(x.full().contiguous(), groups))  # type: ignore[operator]


@rule(*aten("fft_fftshift fft_ifftshift"))
def shift(op: Operator, x: Value, dim: Any = None) -> Labels:
    """Elements are rolled by half of an axis."""
    x = op.labelled(x)
    if dim is None or any(d % len(x.shape) in x.varying for d in ([dim] if isinstance(dim, int) else dim)):
        return op.barrier([x], "is rolled along channels")
    return x


@rule(*aten("roll"))
def roll(op: Operator, x: Value, shifts: Any, dims: Any = ()) -> Labels:
    """Elements are rolled. Rolled channels would be others once some are gone, so they are pinned."""
    x = op.labelled(x)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims or any(d % len(x.shape) in x.varying for d in dims):
        op.pin(x, "is rolled along channels", PinCode.READ_WHOLE)
    return op.moved(op.node.target(x.full(), shifts, dims))  # type: ignore[operator]


@rule(*aten("expand expand_as broadcast_to"))
def expand(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Axes of size 1 are repeated; labels stay.

    Where the result only meets other tensors element by element, this is broadcasting: the size follows theirs,
    unless it is known to be fixed.
    """
    if (data := _moved_data(op, x, args, kwargs)) is not None:
        return data
    x = op.labelled(x)
    shape = op.shape
    core = x.core.reshape((1,) * (len(shape) - x.core.ndim) + tuple(x.core.shape))
    before = (1,) * (len(shape) - len(x.shape)) + x.shape
    if (wide := _widened(op, x)) is not None:
        return wide
    if before != shape and not op.is_literal and all(operator_name(n) in _ELEMENTWISE for n in op.node.users):
        op.risk(x.slots())
        return Labels(core, before)
    sizes = args[0] if args and isinstance(args[0], (list, tuple)) else [-1] * len(shape)
    if op.is_literal and any(sizes[a - len(x.shape)] != -1 for a in x.varying):
        pin_literal(op, x, "is expanded to sizes that do not follow its width")
    out = Labels(core, shape)
    for axis, number in enumerate(op.sizes(shape)):
        if axis in out.varying and claim(op, number, op.lengths(out, axis)):
            op.risk(out.slots())
    if op.name == "expand_as" and args:
        _as_wide_as(op, out, op.labelled(args[0]))
    return out


def _as_wide_as(op: Operator, x: Labels, other: Labels) -> None:
    """Tie channels to those of a tensor that gives all sizes: of one channel it would make as many."""
    for axis in x.varying:
        if axis in other.varying:
            op.draft.alike.append((x.along(axis), other.along(axis), op.tie))
        else:
            op.keep(x.slots(), "is expanded to a size that does not follow its width", PinCode.FIXED_WIDTH)


def _widened(op: Operator, x: Labels) -> Labels | None:
    """Labels of a tensor without channels that is repeated along an axis of size 1 as often as an attribute says:
    it has channels there. None where it is not."""
    shape = op.shape
    before = (1,) * (len(shape) - len(x.shape)) + x.shape
    times = op.name in _REPEATS
    given = tuple(n // b if times else n for n, b in zip(shape, before, strict=True))
    for axis, number in enumerate(op.sizes(given)):
        if not x.varying and before[axis] == 1 and is_from_attribute(number) and not op.is_literal:
            slots = op.draft.new(shape[axis])
            source = x.core.reshape(-1).numpy().repeat(shape[axis])
            op.emit(Map(slots, (source,), "or"))
            op.keep(source, "broadcast along channels", PinCode.ONE_STAYS)
            claim(op, number, slots)
            op.risk(slots)
            return along(slots, axis, shape)
    return None


_ELEMENTWISE = {"add", "sub", "mul", "div", "maximum", "minimum"}
_MEETS = _ELEMENTWISE | set(
    "cat concat concatenate expand repeat unsqueeze permute transpose zeros_like "  # noqa: SIM905
    "scaled_dot_product_attention".split()
)
"""Operators in which channels of others tell which axis of a parameter has channels; and those that only change
the places of its axes."""


@rule(*aten("view_as reshape_as"))
def view_as(op: Operator, x: Value, other: Value) -> Labels:
    """A view with the sizes of another tensor."""
    x = op.labelled(x)
    return op.moved(x.full().reshape(op.shape)) if x.varying else uniform(int(x.slots()[0]), op.shape)


@rule(*aten("zeros_like"))
def zeros_like(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Zeros as wide as another tensor. Which axis of a parameter has channels, what they meet will tell."""
    return x if isinstance(x, Param) and len(x.long) > 1 and x.made is None else op.labelled(x)


@rule(*aten("ones_like full_like rand_like randn_like empty_like"))
def like(op: Operator, x: Value, *args: Any, **kwargs: Any) -> Labels:
    """A tensor as wide as another, and not zero where that one is."""
    return op.map([op.labelled(x)], "const")


@rule(*aten("zeros ones full empty rand randn"))
def fresh(op: Operator, *args: Any, **kwargs: Any) -> Labels:
    """A tensor of given sizes; see `_of_sizes`."""
    return _of_sizes(op, op.sizes(op.shape, 0, 0), zero=op.name == "zeros")


@rule(*aten("new_zeros new_ones new_full new_empty"))
def new(op: Operator, *args: Any, **kwargs: Any) -> Labels:
    """A tensor of given sizes, and of another's type; see `_of_sizes`."""
    return _of_sizes(op, op.sizes(op.shape, 0, 1), zero=op.name == "new_zeros")


def _of_sizes(op: Operator, sizes: Sequence[Any], *, zero: bool) -> Labels:
    """A tensor of given sizes, such as the first state of a recurrent network.

    Where it only meets tensors element by element, or is concatenated to channels, it follows their width, unless
    its sizes are known to be fixed.
    """
    named = [a for a, number in enumerate(sizes) if is_from_attribute(number)]
    constant, shape = functools.partial(op.constant, zero=zero), op.shape
    meets = op.node.users and all(operator_name(n) in _ELEMENTWISE | _CATS for n in op.node.users)
    if op.is_literal or len(named) > 1 or not (named or meets):
        return constant(shape)
    if not named:  # it follows what it meets
        op.risk(np.array([op.draft.zero], dtype=np.int64))
        return constant((1,) * len(shape))
    out = _filled(op, not zero, named[0], shape)
    op.risk(out.slots())
    claim(op, sizes[named[0]], out.slots())
    return out


def _filled(op: Operator, live: bool, axis: int, shape: tuple[int, ...]) -> Labels:
    """Labels of a tensor of one number, with channels along an axis."""
    slots = op.draft.new(shape[axis])
    op.emit(Source(slots, live=live, flow=False))
    return along(slots, axis, shape)


_CATS = {"cat", "concat", "concatenate"}


@rule(*aten("fill zero"))
def fill(op: Operator, x: Value, value: Any = 0) -> Labels:
    """A tensor of one number. Zeros stay zero if it is 0."""
    x = op.labelled(x)
    return x if op.is_zero(value) else op.map([x], "const")


@rule(*aten("cat concat concatenate"))
def cat(op: Operator, xs: list[Value], dim: int = 0) -> Labels:
    """Labels are concatenated.

    Along an axis without channels (batch, positions) they are united: a channel is live where it is in any part,
    and exists in all.
    """
    nodes: Any = op.node.args[0]
    varying = {a for x in xs if isinstance(x, Labels) for a in x.varying}
    sized = [(op.aligned(x, varying, len(op.shape)), shape_of(n)) for x, n in zip(xs, nodes, strict=True)]
    sized = [(x, s) for x, s in sized if math.prod(s) > 0]
    shape = op.shape
    dim %= len(shape)
    if any(dim in x.varying for x, _ in sized):  # what follows what it meets has channels of its own here
        sized = [(x if x.shape == s else _filled(op, not op.is_zero(x), dim, s), s) for x, s in sized]
    varying, cores = {a for x, _ in sized for a in x.varying}, [x.core for x, _ in sized]
    if dim not in varying and all(torch.equal(c, cores[0]) for c in cores):
        return Labels(cores[0], shape)
    if any(a != dim for a in varying):
        if dim in varying:  # features of heads
            return op.moved(
                torch.cat([x.core.expand(_along(s, {*varying, dim})) for x, s in sized], dim).expand(shape)
            )
        length = tuple(n if a != dim else 1 for a, n in enumerate(shape))
        wide = [Labels(x.core, length if x.shape == s else x.shape) for x, s in sized]
        return Labels(op.map(wide, "or", length).core, shape)
    parts = [x.core.expand(_along(s, {dim})) for x, s in sized]
    return Labels(torch.cat(parts, dim), shape)


def _along(shape: tuple[int, ...], axes: Set[int]) -> list[int]:
    """A shape, with the length 1 along other axes."""
    return [n if a in axes else 1 for a, n in enumerate(shape)]


@rule(*aten("stack"))
def stack(op: Operator, xs: list[Value], dim: int = 0) -> Labels:
    """Labels are stacked along a new axis."""
    shape = op.shape
    dim %= len(shape)
    full = torch.stack([op.labelled(x).full() for x in xs], dim)
    return op.moved(full)


@rule(*aten("_assert_tensor_metadata _assert_async _assert_scalar"))
def assertion(op: Operator, *args: Any, **kwargs: Any) -> None:
    """Checks of dtypes and values that torch.export leaves. They compute nothing."""
