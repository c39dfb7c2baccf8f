"""Operators that give parts of an axis."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch

from chipnet.graph.attributes import claim, pin_literal
from chipnet.graph.facts import PinCode, Slots
from chipnet.graph.labels import Labels, Value
from chipnet.graph.operator import Operator
from chipnet.graph.rules.table import aten, rule
from chipnet.program.watch import Shape, Term, is_from_attribute, source_of, with_size


@rule(*aten("chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split"))
def split(op: Operator, x: Value, size: Any, dim: int = 0, *, follows: bool = False) -> Any:
    """Pieces of an axis.

    Sizes that come from an attribute follow. Otherwise equal pieces stay equally wide (the same positions remain in
    each), and unequal ones are pinned. ``follows``: the sizes are no numbers of the user's.
    """
    x = op.labelled(x)
    dim %= len(x.shape)
    full = x.full()
    pieces = list(full.split(size, dim) if follows else op.node.target(full, size, dim))  # type: ignore[operator]
    sizes = tuple(p.shape[dim] for p in pieces)
    if len(pieces) < 2 or op.keeps_length(x, dim):
        return tuple(op.moved(p) for p in pieces)
    first = [p.movedim(dim, 0).reshape(p.shape[dim], -1)[:, 0].numpy().copy() for p in pieces]
    equal = len(set(sizes)) == 1
    given = () if follows else op.given("split_size_or_sections", 1) or op.given("split_size", 1)
    numbers = given if isinstance(given, tuple) and len(given) == len(pieces) else ()
    named = any(map(is_from_attribute, numbers))
    if op.is_literal or not (equal or named):
        pin_literal(op, x, f"is split into pieces of a fixed width ({', '.join(map(str, sizes))})")
    elif not follows:
        op.risk(x.slots())
        op.draft.pieces += [(op.module, slots) for slots in first]
    if named:
        for number, slots in zip(numbers, first, strict=True):  # pieces may be empty
            if not claim(op, number, slots, empty=True) and not isinstance(source_of(number), (Shape, Term)):
                op.keep(slots, f"a piece of a fixed width ({number})", PinCode.FIXED_WIDTH)
    elif equal:
        claim(op, given, first[0])
        flat = [p.movedim(dim, 0).reshape(p.shape[dim], -1) for p in pieces]
        for column in torch.cat(flat, 1).numpy():
            op.draft.tie_all(np.unique(column))
        op.note_tie(first[0])
    return tuple(op.moved(p) for p in pieces)


@rule(*aten("unbind"))
def unbind(op: Operator, x: Value, dim: int = 0) -> Any:
    """Pieces of one index each. Along channels their number is fixed."""
    x = op.labelled(x)
    if not op.keeps_length(x, dim % len(x.shape)):
        op.pin(x, "is taken apart along channels", PinCode.FIXED_WIDTH)
    return tuple(op.moved(p) for p in x.full().unbind(dim))


@rule(*aten("slice select narrow"))
def take(op: Operator, x: Value, dim: int = 0, *args: Any, **kwargs: Any) -> Labels:
    """A part of an axis. Where it is taken out of channels by literals, these are pinned."""
    x = op.labelled(x)
    dim %= len(x.shape)
    if any(isinstance(a, Value) for a in args):
        return op.barrier([x], "indexes by a tensor")
    full = op.node.target(x.full(), dim, *args, **kwargs)  # type: ignore[operator]
    complete = tuple(full.shape) == x.shape or op.keeps_length(x, dim)
    if not complete and not _in_equal_pieces(op, x, dim, args) and not _bounded(op, x.along(dim), args):
        pin_literal(op, x, "a fixed part of its channels is taken")
    return op.moved(full)


def _in_equal_pieces(op: Operator, x: Labels, dim: int, args: tuple[Any, ...]) -> bool:
    """Is it every k-th channel, or one of k equal parts, by bounds that are made of the size of ``x``? Then the
    same positions remain in each k channels, or in each part."""
    if op.name != "slice" or op.is_literal:
        return False
    rows = np.moveaxis(x.full().numpy(), dim, 0).reshape(x.shape[dim], -1)
    given: list[Any] = [*args, *[0, None, 1][len(args) :]]
    (first, end, step), size = given, len(rows)
    if step > 1 and size % step == 0 and 0 <= (first or 0) < step and (end is None or end >= size):
        pieces = rows.reshape(size // step, step, -1)
    else:
        bounds = [b for b in (first, end) if b and b < size]
        piece = math.gcd(size, *bounds)
        found = op.received.numbers() if op.received is not None else []
        if step != 1 or not bounds or not all(any(_is_part(n, b, size) for n in found) for b in bounds):
            return False
        pieces = rows.reshape(size // piece, piece, -1).swapaxes(0, 1)
    for together in pieces:
        op.draft.tie_all(np.unique(together))
    op.note_tie(pieces)
    op.risk(x.slots())
    return True


def _is_part(number: Any, bound: int, size: int) -> bool:
    """Is a bound, given by ``number``, the same part of ``size`` whatever that is?"""
    if number != bound or type(number) is int:
        return False
    piece = math.gcd(size, bound)
    return all(
        with_size(source_of(number), n * size // piece) == n * bound // piece for n in range(1, piece + 1)
    )


def _follows(op: Operator, number: Any) -> bool:
    """Is it from an attribute, or the number of another tensor's channels?"""
    size = source_of(number)
    if not isinstance(size, Shape) or size.made is None:
        return is_from_attribute(number)
    other = op.draft.results.get((op.forward.counting, size.made))
    return isinstance(other, Labels) and size.axis in other.varying


def _bounded(op: Operator, slots: Slots, bounds: tuple[Any, ...]) -> bool:
    """Is each bound of a slice of ``slots`` an end, or from an attribute that can follow?"""
    if op.received is None or op.name != "slice" or op.is_literal or len(bounds) > 2:
        return False
    found = []
    for bound, ends in zip(bounds, ((0, None), (len(slots), None)), strict=False):
        part = slots[bound:] if bound < 0 else slots[:bound]
        number = next((n for n in op.received.numbers() if n == bound and _follows(op, n)), None)
        if number is not None:
            found.append((number, part))
        elif bound not in ends and bound != sys.maxsize:
            return False
    for number, part in found:
        if number < 0:
            claim(op, -number, part, empty=True)
            op.draft.known.add((op.received, number.source))
        else:
            claim(op, number, part, empty=True)
    op.risk(slots)
    return bool(found)
