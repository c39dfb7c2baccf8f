"""Operators that move data: they are run on the labels."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from chipnet.graph.channels import Map, Slots, Source
from chipnet.graph.rules.table import operator_name, rule
from chipnet.graph.tracer import Labels, Tracer, shape_of
from chipnet.program.watch import Shape, Term, is_from_attribute, source_of

# Sizes in the call: a width there is from an attribute, from a tensor, or a literal, which a trial finds out.
_REPEATS = {"repeat", "tile"}
_LITERAL = {"view", "reshape", "_unsafe_view", "unflatten", *_REPEATS}

_CONTRACTIONS = frozenset("matmul mm bmm mv addmm einsum tensordot".split())  # noqa: SIM905


def _multiplies(user: Node, x: Node) -> bool:
    name = operator_name(user)
    return name in _CONTRACTIONS and not (name == "addmm" and user.args[0] is x)


@rule("t", "transpose", "permute", "numpy_T", "mT", "swapaxes", "swapdims")
def turn(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Axes change places. A weight that is turned only to be multiplied with is that weight yet."""
    if x.core is None and x.param is not None and len(x.shape) == 2 and min(x.shape) > 1:
        turned = t.node.target(torch.empty(2, 3), *args, **kwargs).shape == (3, 2)  # type: ignore[operator]
        if turned and all(_multiplies(n, t.node) for n in t.node.users):
            return Labels(None, t.shape, x.param, turned=True)
    return move(t, x, *args, **kwargs)


@rule(
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "unsqueeze",
    "squeeze",
    "movedim",
    "moveaxis",
    "flip",
    "fliplr",
    "flipud",
    "rot90",
    "ravel",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "repeat",
    "tile",
    "pixel_shuffle",
    "pixel_unshuffle",
    "unfold",
)
def move(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Elements change place: so do their labels."""
    x = t.labelled(x)
    if not x.varying:
        assert x.core is not None
        wide = _widened(t, x) if operator_name(t.node) in _REPEATS else None
        return wide or t.uniform(int(x.core.reshape(-1)[0]), t.shape)
    literal = operator_name(t.node) in _LITERAL
    if literal and t.is_literal:
        t.pin_literal(x, "is reshaped to sizes that do not follow its width")
    out = t.moved(t.node.target(x.full().contiguous(), *args, **kwargs))  # type: ignore[operator]
    if literal:
        t.risk(x.slots())
        skip = 1 if operator_name(t.node) == "unflatten" else 0
        before = args[0] % len(x.shape) if skip else 0
        after = len(x.shape) - 1 - before if skip else 0
        sizes = t.sizes(out.shape[before : len(out.shape) - after], skip)
        for axis, number in enumerate(sizes, before):
            if axis in out.varying:
                t.claim(number, out.along(axis))
    return out


@rule("repeat_interleave")
def repeat_interleave(t: Tracer, x: Labels, repeats: Any, dim: Any = None, **kwargs: Any) -> Labels:
    """Every element by itself, as often as a number says, or a tensor along axes without channels."""
    if not isinstance(repeats, Labels):
        return move(t, x, repeats, dim)
    x = t.labelled(x)
    if dim is None or dim % len(x.shape) in x.varying:
        return t.barrier([x, repeats], "channels are repeated as a tensor says")
    return Labels(t.beside(x, [repeats], "how often positions are repeated").core, t.shape)


@rule("triu", "tril", "diagonal")
def triangle(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Parts of a matrix along two axes without channels."""
    x = t.labelled(x)
    if operator_name(t.node) == "diagonal":
        places = dict(zip(("offset", "dim1", "dim2"), args, strict=False)) | kwargs
        axes = [places.get("dim1", 0) % len(x.shape), places.get("dim2", 1) % len(x.shape)]
    else:
        axes = [len(x.shape) - 2, len(x.shape) - 1]
    if any(a in x.varying for a in axes):
        return t.barrier([x], "a part of a matrix of channels")
    assert x.core is not None
    return Labels(x.core if len(t.shape) == len(x.shape) else x.core.squeeze(axes).unsqueeze(-1), t.shape)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(t: Tracer, x: Labels, groups: int) -> Labels:
    """The number of groups stays: the same positions remain in each."""
    x = t.labelled(x)
    if x.varying == [1]:
        for column in x.slots().reshape(groups, -1).T:
            t.graph.tie_all(column.tolist())
        t.meet(x.slots())
    return t.moved(t.node.target(x.full().contiguous(), groups))  # type: ignore[operator]


@rule("fft_fftshift", "fft_ifftshift")
def shift(t: Tracer, x: Labels, dim: Any = None) -> Labels:
    """Rolled by half of an axis."""
    x = t.labelled(x)
    if dim is None or any(d % len(x.shape) in x.varying for d in ([dim] if isinstance(dim, int) else dim)):
        return t.barrier([x], "is rolled along channels")
    return x


@rule("roll")
def roll(t: Tracer, x: Labels, shifts: Any, dims: Any = ()) -> Labels:
    """Rolled channels are other channels once some are gone: they are kept."""
    x = t.labelled(x)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims or any(d % len(x.shape) in x.varying for d in dims):
        t.pin(x, "is rolled along channels")
    return t.moved(t.node.target(x.full(), shifts, dims))  # type: ignore[operator]


@rule("expand", "expand_as", "broadcast_to")
def expand(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Axes of size one are repeated: labels stay. Where the result only meets other tensors, element by element,
    that is what broadcasting does: it follows their width (unless the sizes turn out to be fixed)."""
    x = t.labelled(x)
    assert x.core is not None
    shape = t.shape
    core = x.core.reshape((1,) * (len(shape) - x.core.ndim) + tuple(x.core.shape))
    before = (1,) * (len(shape) - len(x.shape)) + x.shape
    if (wide := _widened(t, x)) is not None:
        return wide
    if before != shape and not t.is_literal and all(operator_name(n) in _ELEMENTWISE for n in t.node.users):
        t.risk(x.slots())
        return Labels(core, before)
    sizes = args[0] if args and isinstance(args[0], (list, tuple)) else [-1] * len(shape)
    if t.is_literal and any(sizes[a - len(x.shape)] != -1 for a in x.varying):
        t.pin_literal(x, "is expanded to sizes that do not follow its width")
    return Labels(core, shape)


def _widened(t: Tracer, x: Labels) -> Labels | None:
    """A tensor without channels, repeated along an axis of size one as often as an attribute says: it has channels
    there, as many as that, whatever meets it."""
    assert x.core is not None
    shape = t.shape
    before = (1,) * (len(shape) - len(x.shape)) + x.shape
    times = operator_name(t.node) in _REPEATS
    given = tuple(n // b if times else n for n, b in zip(shape, before, strict=True))
    for axis, number in enumerate(t.sizes(given)):
        if not x.varying and before[axis] == 1 and is_from_attribute(number) and not t.is_literal:
            slots = t.graph.new(shape[axis])
            source = x.core.reshape(-1).numpy().repeat(shape[axis])
            t.graph.facts.append(Map(slots, (source,), "or"))
            t.graph.pin(source, t.why("broadcast along channels"))
            t.claim(number, slots)
            t.risk(slots)
            return t.along(slots, axis, shape)
    return None


_ELEMENTWISE = {"add", "sub", "mul", "div", "maximum", "minimum"}


@rule("view_as", "reshape_as")
def view_as(t: Tracer, x: Labels, other: Labels) -> Labels:
    """A view whose sizes are another tensor's."""
    x = t.labelled(x)
    return t.moved(x.full().reshape(t.shape)) if x.varying else t.uniform(int(x.slots()[0]), t.shape)


@rule("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like")
def like(t: Tracer, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """As wide as another tensor. Zeros are zero anyway; the rest is not zero where that tensor is."""
    x = t.labelled(x)
    return x if "zeros" in operator_name(t.node) else t.map([x], "const")


@rule("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty")
def fresh(t: Tracer, *args: Any, **kwargs: Any) -> Labels:
    """A tensor of given sizes, as the state that a recurrent network begins with. Where it only meets tensors
    element by element, or stands beside channels, it follows their width (unless its sizes are fixed)."""
    name, shape = operator_name(t.node), t.shape
    sizes = t.sizes(shape, 0, 1 if name.startswith("new_") else 0)
    named = [a for a, number in enumerate(sizes) if is_from_attribute(number)]
    label = t.zero if "zeros" in name else t.constant
    meets = t.node.users and all(operator_name(n) in _ELEMENTWISE | _CATS for n in t.node.users)
    if t.is_literal or len(named) > 1 or not (named or meets):
        return t.uniform(int(label[0]), shape)
    if not named:  # it follows what it meets
        t.risk(t.zero)
        return t.uniform(int(label[0]), (1,) * len(shape))
    out = _filled(t, "zeros" not in name, named[0], shape)
    t.risk(out.slots())
    t.claim(sizes[named[0]], out.slots())
    return out


def _filled(t: Tracer, live: bool, axis: int, shape: tuple[int, ...]) -> Labels:
    """A tensor of one number, with channels along an axis."""
    slots = t.graph.new(shape[axis])
    t.graph.facts.append(Source(slots, live=live, flow=False))
    return t.along(slots, axis, shape)


_CATS = {"cat", "concat", "concatenate"}


@rule("fill", "zero")
def fill(t: Tracer, x: Labels, value: Any = 0) -> Labels:
    """Zeros leave zeros zero."""
    x = t.labelled(x)
    return x if t.is_zero(value) else t.map([x], "const")


@rule("cat", "concat", "concatenate")
def cat(t: Tracer, xs: list[Labels], dim: int = 0) -> Labels:
    """Labels side by side. Along another axis than channels (of a batch, of positions) they are united: a channel
    is live where it is in any part, and exists in all."""
    nodes: Any = t.node.args[0]
    sized = [(t.labelled(x), shape_of(n)) for x, n in zip(xs, nodes, strict=True)]
    sized = [(x, s) for x, s in sized if math.prod(s) > 0]
    xs, shapes = [x for x, _ in sized], [s for _, s in sized]
    shape = t.shape
    dim %= len(shape)
    if any(dim in x.varying for x in xs):  # a tensor that follows what it meets has channels of its own here
        xs = [
            x if x.shape == s else _filled(t, not t.is_zero(x), dim, s)
            for x, s in zip(xs, shapes, strict=True)
        ]
    varying, cores = {a for x in xs for a in x.varying}, [x.core for x in xs]
    if dim not in varying and all(torch.equal(c, cores[0]) for c in cores):  # type: ignore[arg-type]
        return Labels(cores[0], shape)
    if any(a != dim for a in varying):
        if dim in varying:
            return t.barrier(xs, "concatenates channels that vary along another axis too")
        length = tuple(n if a != dim else 1 for a, n in enumerate(shape))
        wide = [length if x.shape == s else x.shape for x, s in zip(xs, shapes, strict=True)]
        out = t.map([Labels(c, w) for c, w in zip(cores, wide, strict=True)], "or", length)
        return Labels(out.core, shape)
    parts = []
    for x, own in zip(xs, shapes, strict=True):
        assert x.core is not None
        sizes = [n if a == dim else 1 for a, n in enumerate(own)]
        parts.append(x.core.expand(sizes))
    return Labels(torch.cat(parts, dim), shape)


@rule("stack")
def stack(t: Tracer, xs: list[Labels], dim: int = 0) -> Labels:
    """Labels side by side along a new axis."""
    shape = t.shape
    dim %= len(shape)
    full = torch.stack([t.labelled(x).full() for x in xs], dim)
    return t.moved(full)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(t: Tracer, x: Labels, size: Any, dim: int = 0, *, follows: bool = False) -> Any:
    """Pieces of an axis. Sizes in an attribute of the module are kept true; otherwise equal pieces keep equal
    widths (the same positions remain in each) and unequal ones are kept whole. ``follows``: no numbers."""
    x = t.labelled(x)
    dim %= len(x.shape)
    full = x.full()
    pieces = list(full.split(size, dim) if follows else t.node.target(full, size, dim))  # type: ignore[operator]
    sizes = tuple(p.shape[dim] for p in pieces)
    if len(pieces) < 2 or t.stays_as_long(x, dim):
        return tuple(t.moved(p) for p in pieces)
    first = [p.movedim(dim, 0).reshape(p.shape[dim], -1)[:, 0].numpy().copy() for p in pieces]
    equal = len(set(sizes)) == 1
    given = () if follows else t.given("split_size_or_sections", 1) or t.given("split_size", 1)
    numbers = given if isinstance(given, tuple) and len(given) == len(pieces) else ()
    named = any(map(is_from_attribute, numbers))
    if t.is_literal or not (equal or named):
        t.pin_literal(x, f"is split into pieces of a fixed width ({', '.join(map(str, sizes))})")
    elif not follows:
        t.risk(x.slots())
        t.graph.pieces += [(t.module, slots) for slots in first]
    if named:
        for number, slots in zip(numbers, first, strict=True):  # pieces may be empty
            if not t.claim(number, slots, empty=True) and not isinstance(source_of(number), (Shape, Term)):
                t.graph.pin(slots, t.why(f"a piece of a fixed width ({number})"))
    elif equal:
        t.claim(given, first[0])
        flat = [p.movedim(dim, 0).reshape(p.shape[dim], -1) for p in pieces]
        for column in torch.cat(flat, 1).numpy():
            t.graph.tie_all(np.unique(column).tolist())
        t.meet(first[0])
    return tuple(t.moved(p) for p in pieces)


@rule("unbind")
def unbind(t: Tracer, x: Labels, dim: int = 0) -> Any:
    """Pieces of one index each; along channels their number is fixed."""
    x = t.labelled(x)
    if not t.stays_as_long(x, dim % len(x.shape)):
        t.pin(x, "is taken apart along channels")
    return tuple(t.moved(p) for p in x.full().unbind(dim))


@rule("slice", "select", "narrow")
def take(t: Tracer, x: Labels, dim: int = 0, *args: Any, **kwargs: Any) -> Labels:
    """A part of an axis. Taken out of channels, its bounds are the user's literals: channels are kept."""
    x = t.labelled(x)
    dim %= len(x.shape)
    if any(isinstance(a, Labels) for a in args):
        return t.barrier([x], "indexes by a tensor")
    full = t.node.target(x.full(), dim, *args, **kwargs)  # type: ignore[operator]
    whole = tuple(full.shape) == x.shape or t.stays_as_long(x, dim)
    if not whole and not _bounded(t, x.along(dim), args):
        t.pin_literal(x, "a fixed part of its channels is taken")
    return t.moved(full)


def _bounded(t: Tracer, slots: Slots, bounds: tuple[Any, ...]) -> bool:
    """Are both bounds of a slice of ``slots`` an end or from an attribute, and known to follow?"""
    if t.call is None or operator_name(t.node) != "slice" or t.is_literal or len(bounds) > 2:
        return False
    found = []
    for bound, ends in zip(bounds, ((0, None), (len(slots), None)), strict=False):
        number = next((n for n in t.call.numbers() if n == bound and is_from_attribute(n)), None)
        if number is not None:
            found.append((number, slots[bound:] if bound < 0 else slots[:bound]))
        elif bound not in ends and bound != sys.maxsize:
            return False
    for number, part in found:
        if number < 0:
            t.claim(-number, part, empty=True)
            t.call.claimed.add(number.source)
        else:
            t.claim(number, part, empty=True)
    t.risk(slots)
    return bool(found)


@rule("_assert_tensor_metadata", "_assert_async", "_assert_scalar")
def check(t: Tracer, *args: Any, **kwargs: Any) -> None:
    """What export leaves of dtype and value checks; nothing is computed."""
