"""Products of tensors that are summed over an axis: ``matmul``, ``einsum`` and the like.

``out[b, i, j] = sum over k of a[b, i, k] * b[b, k, j]`` is a product over all indices, element by element, and then
a sum over ``k``. The product is zero where either side is. Where labels do not vary along ``k`` (tokens, positions,
nodes of a graph), the sum leaves them as they are. Where they do (features of q and k), the sum reads all of them,
and zeros do not show in it. A parameter with an axis that meets channels is the weight of a linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from chipnet.graph.facts import Mix, PinCode
from chipnet.graph.heads import note_grids
from chipnet.graph.labels import Labels, Param, Value, along
from chipnet.graph.operator import Operator
from chipnet.graph.rules.table import aten, rule
from chipnet.graph.weights import mix

Letters = Sequence[str]


@rule(*aten("matmul mm bmm mv dot"))
def matmul(op: Operator, a: Value, b: Value) -> Labels:
    """The last axis of ``a`` meets the last but one of ``b``, or the only one of a vector."""
    batch = [f"b{i}" for i in range(max(len(a.shape), len(b.shape)))]
    left = ["k"] if len(a.shape) == 1 else [*_last(batch, len(a.shape) - 2), "i", "k"]
    right = ["k"] if len(b.shape) == 1 else [*_last(batch, len(b.shape) - 2), "k", "j"]
    out = [*_last(batch, max(len(left), len(right)) - 2), *(n for n in "ij" if n in (*left, *right))]
    return contract(op, a, left, b, right, out)


def _last(names: list[str], n: int) -> list[str]:
    return names[len(names) - n :] if n > 0 else []


@rule(*aten("addmm baddbmm addmv addbmm"))
def addmm(op: Operator, x: Value, a: Value, b: Value, *, beta: Any = 1, alpha: Any = 1) -> Labels:
    """``beta * x + alpha * (a @ b)``."""
    if op.node.target in (torch.ops.aten.addbmm.default, torch.ops.aten.addbmm_.default):
        product = contract(op, a, "bik", b, "bkj", "ij")
    else:
        product = matmul(op, a, b)
    return product if op.is_zero(beta) else op.map([x, product], "or")


@rule(*aten("einsum"))
def einsum(op: Operator, equation: str, operands: Sequence[Labels], path: Any = None) -> Labels:
    """Two operands that have every index once. Others are pinned."""
    left, _, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(operands) != 2 or "->" not in equation:
        return op.barrier(list(operands), f"no rule for einsum '{equation}'", PinCode.NO_RULE)
    names = [_spelt(term, len(x.shape)) for term, x in zip(terms, operands, strict=True)]
    letters = _spelt(out, len(op.shape))
    if any(len(set(n)) < len(n) for n in names):  # a diagonal
        return op.barrier(list(operands), f"no rule for einsum '{equation}'", PinCode.NO_RULE)
    return contract(op, operands[0], names[0], operands[1], names[1], letters, narrowest=2)


@rule(*aten("tensordot"))
def tensordot(op: Operator, a: Value, b: Value, over_a: list[int], over_b: list[int]) -> Labels:
    """A sum over the axes ``over_a`` of ``a`` and ``over_b`` of ``b``. The other axes are those of the result,
    first those of ``a``."""
    summed = [f"k{i}" for i in range(len(over_a))]
    names = []
    for side, x, over in (("a", a, over_a), ("b", b, over_b)):
        meets = dict(zip((axis % len(x.shape) for axis in over), summed, strict=True))
        names.append([meets.get(axis, f"{side}{axis}") for axis in range(len(x.shape))])
    left, right = names
    return contract(op, a, left, b, right, [n for n in (*left, *right) if n not in summed])


def _spelt(term: str, ndim: int) -> list[str]:
    """Names of a term's axes. Those of an ellipsis are counted from the right."""
    before, dots, after = term.partition("...")
    hidden = ndim - len(before) - len(after) if dots else 0
    return [*before, *(f".{i}" for i in range(hidden, 0, -1)), *after]


def contract(
    op: Operator,
    a: Value,
    left: Letters,
    b: Value,
    right: Letters,
    out: Letters,
    *,
    narrowest: int = 0,
) -> Labels:
    """Labels of ``a`` with axes named ``left`` times ``b`` with axes named ``right``, summed over all names that
    ``out`` lacks.

    ``narrowest``: how many channels a sum over them keeps. ``einsum`` multiplies element by element where there is
    only one, and PyTorch's counter does not count that.
    """
    (a, left), (b, right) = _upright(a, left), _upright(b, right)
    for x, axes, weight, own in ((a, left, b, right), (b, right, a, left)):
        layer = _layer(op, x, axes, weight, own, out, narrowest)
        if layer is not None:
            return layer
    summed = [n for n in dict.fromkeys((*left, *right)) if n not in out]
    names = [*out, *summed]
    sides = [_laid_out(op, x, axes, names) for x, axes in ((a, left), (b, right))]
    if not narrowest:  # of what keeps several features, heads stay
        _note_values(op, sides)
    sides = [_of_one_slot(op, x, other) for x, other in zip(sides, sides[::-1], strict=True)]
    for x, other in zip(sides, sides[::-1], strict=True):
        if set(x.varying) < set(other.varying) and all(op.keeps_length(other, a) for a in x.varying):
            for axis in x.varying:  # values lose features, and their scores lose heads
                op.note_heads(x, x.core.shape[axis])
                op.note_heads(other, x.core.shape[axis])
    others = f"'{op.name}' multiplies channels by others"
    sides = op.on_one_axis(sides, others)
    axes_of = [set(x.varying) for x in sides]
    union = set.union(*axes_of)
    crossing = all(axes_of) and not any(op.is_of_heads(x, union) for x in sides)
    if crossing and not all(op.tied_along(x, union - mine) for x in sides for mine in axes_of):
        for axis in set.intersection(*axes_of):
            for x in sides:
                op.note_heads(x, x.core.shape[axis])
        return op.barrier([a, b], others)
    _note_heads_that_go(op, sides, [i for i, n in enumerate(out) if n in left and n in right])
    shape = tuple(max(sizes) for sizes in zip(*(x.shape for x in sides), strict=True))
    product = op.map(sides, "and", shape)
    over = [i for i in product.varying if i >= len(out)]
    rest = [i for i in product.varying if i < len(out)]
    both = op.forward.grids and len(over) == len(rest) == 1
    if over and rest and not both and not any(op.tied_along(product, set(axes)) for axes in (over, rest)):
        return op.barrier([a, b], "sums over one of two axes of channels")
    op.count(product.slots() if product.varying else product.slots()[:0])
    for axis in rest if over and not narrowest else ():
        note_grids(op, sides, axis, values=False)
    if over and op.tied_along(product, set(over)):
        product = op.merged(product, over, "or")
    elif over:
        for axis in rest:
            op.note_heads(product, product.core.shape[axis])
        op.draft.divisions.contracted[op.node.name] = (
            (sides[0].slots(), sides[1].slots()),
            len(op.draft.facts) - 1,
        )
        _keep(op, product, over, narrowest)
        product = totals(op, product, over, rest)
    return Labels(product.core.reshape(product.core.shape[: len(out)]), op.shape)


def _upright(x: Value, axes: Letters) -> tuple[Value, Letters]:
    """A parameter with its axes in its own order, and their names."""
    if isinstance(x, Param) and x.turned:
        return replace(x, shape=x.shape[::-1], turned=False), axes[::-1]
    return x, axes


def _laid_out(op: Operator, x: Value, axes: Letters, names: Letters) -> Labels:
    """``x`` with its axes in the order of ``names``. Axes that it lacks have the length 1."""
    x = op.labelled(x)
    own = [n for n in names if n in axes]
    core = x.core.permute([list(axes).index(n) for n in own])
    sizes = iter(core.shape)
    shape = [x.shape[list(axes).index(n)] if n in axes else 1 for n in names]
    return Labels(core.reshape([next(sizes) if n in axes else 1 for n in names]), tuple(shape))


def _note_heads_that_go(op: Operator, sides: Sequence[Labels], common: Sequence[int]) -> None:
    """Remember heads of one axis of features, where these should go: heads lie along one of the ``common`` axes,
    which both sides have and which are not summed over."""
    for axis in common if op.forward.narrow else ():
        features = {a for x in sides for a in x.varying if a != axis}
        if len(features) == 1:
            for x in sides:
                if len(x.varying) == 2 and axis in x.varying:
                    op.note_heads(x, x.shape[axis])


def _note_values(op: Operator, sides: Sequence[Labels]) -> None:
    """Remember what is multiplied by one number for each head."""
    for x, other in zip(sides, sides[::-1], strict=True):
        if x.varying and set(x.varying) < set(other.varying):
            for axis in x.varying:
                note_grids(op, [other], axis, values=True)


def _of_one_slot(op: Operator, x: Labels, other: Labels) -> Labels:
    """Labels of ``x`` without channels, where all of it is kept, and what it meets (values of heads) has the same
    channels at each index along its axes."""
    mine = set(x.varying)
    if not mine or not mine < set(other.varying) or not op.draft.pinned(x.slots()).all():
        return x
    if not op.tied_along(other, mine):
        return x
    for axis in mine:
        op.note_heads(other, other.core.shape[axis])
    return op.without_channels(x, "what it meets varies along another axis")


def _keep(op: Operator, x: Labels, over: list[int], count: int) -> None:
    """Pin the first ``count`` channels of those that are summed over."""
    first = x.core.numpy().take(range(count), over[0]) if count else x.slots()[:0]
    op.keep(first.reshape(-1), f"'{op.node.name}' sums over at least {count} channels", PinCode.ONE_STAYS)


def totals(op: Operator, x: Labels, over: list[int], rest: list[int]) -> Labels:
    """Labels of a sum over the axes ``over``: one slot for each index along the axes ``rest``."""
    sizes = [x.core.shape[i] for i in rest]
    rows = x.core.permute([*rest, *over, *(i for i in range(x.core.ndim) if i not in (*rest, *over))])
    dst = op.draft.new(math.prod(sizes))
    for d, row in zip(dst, rows.reshape(len(dst), -1).numpy(), strict=True):
        op.emit(Mix(dst[d - dst[0] : d - dst[0] + 1], row.copy(), 1, False, None))
    if op.tied_along(x, set(rest)):
        op.keep(dst, "a sum over channels", PinCode.WHOLE_TENSOR)
    core = torch.from_numpy(dst).reshape([x.core.shape[i] if i in rest else 1 for i in range(x.core.ndim)])
    return Labels(core, x.shape)


def _layer(
    op: Operator, x: Value, axes: Letters, weight: Value, own: Letters, out: Letters, narrowest: int
) -> Labels | None:
    """Labels behind a linear layer; None where ``weight`` is not the parameter of one, with two axes, of which one
    is summed over where the channels of ``x`` lie."""
    if not isinstance(weight, Param) or not isinstance(x, Labels) or len(own) != 2:
        return None
    inner, outer = (n for n in sorted(own, key=lambda n: n in out))
    if inner not in axes or inner in out or outer in axes or any(n not in (*out, inner) for n in axes):
        return None
    axis, place = list(axes).index(inner), list(out).index(outer)
    last = axis == len(axes) - 1 and place == len(out) - 1 and len(axes) < 4
    if x.varying != [axis] and not (
        not x.varying and last
    ):  # of data of no channels the last axis holds features
        return None
    src = op.channels(x, axis)
    assert src is not None
    op.keep(src[:narrowest], f"'{op.node.name}' sums over at least {narrowest} channels", PinCode.ONE_STAYS)
    shape, rows = op.shape, weight.shape[list(own).index(outer)]
    area = math.prod(shape) // rows
    dst = mix(
        op,
        src,
        weight,
        None,
        transposed=list(own).index(inner) == 0,
        rows=rows,
        axis=place - len(out),
        macs_per=area if op.macs() else 0,  # a matrix times a vector is none to PyTorch's counter
        area=area,
    )
    return along(dst, place, shape)
