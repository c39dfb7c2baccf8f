"""Products of tensors summed over an axis: ``matmul``, ``einsum`` and their kin.

``out[b, i, j] = sum over k of a[b, i, k] * b[b, k, j]`` is an elementwise product over all of the indices, then a
sum over ``k``. The product is zero where either side is. Where labels do not vary along ``k`` (tokens, positions,
nodes of a graph) the sum leaves them as they are; where they do (the features of q and k) it reads all of them, and
zeros do not show in it. A parameter whose axis meets channels is the weight of a linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from chipnet.graph.channels import Mix
from chipnet.graph.rules.table import operator_name, rule
from chipnet.graph.tracer import Labels, Tracer

Letters = Sequence[str]


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(t: Tracer, a: Labels, b: Labels) -> Labels:
    """The last axis of ``a`` meets the last but one of ``b`` (its only one, if it is a vector)."""
    batch = [f"b{i}" for i in range(max(len(a.shape), len(b.shape)))]
    left = ["k"] if len(a.shape) == 1 else [*_last(batch, len(a.shape) - 2), "i", "k"]
    right = ["k"] if len(b.shape) == 1 else [*_last(batch, len(b.shape) - 2), "k", "j"]
    out = [*_last(batch, max(len(left), len(right)) - 2), *(n for n in "ij" if n in (*left, *right))]
    return contract(t, a, left, b, right, out)


def _last(names: list[str], n: int) -> list[str]:
    return names[len(names) - n :] if n > 0 else []


@rule("addmm", "baddbmm", "addmv", "addbmm")
def addmm(t: Tracer, x: Labels, a: Labels, b: Labels, *, beta: Any = 1, alpha: Any = 1) -> Labels:
    """``beta * x + alpha * (a @ b)``."""
    if t.node.target in (torch.ops.aten.addbmm.default, torch.ops.aten.addbmm_.default):
        product = contract(t, a, "bik", b, "bkj", "ij")
    else:
        product = matmul(t, a, b)
    return product if t.is_zero(beta) else t.map([x, product], "or")


@rule("einsum")
def einsum(t: Tracer, equation: str, operands: Sequence[Labels], path: Any = None) -> Labels:
    """Of two operands, each index once in each; others are kept whole."""
    left, _, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(operands) != 2 or "->" not in equation:
        return t.barrier(list(operands), f"no rule for einsum '{equation}'")
    names = [_spelt(term, len(x.shape)) for term, x in zip(terms, operands, strict=True)]
    letters = _spelt(out, len(t.shape))
    if any(len(set(n)) < len(n) for n in names):  # a diagonal
        return t.barrier(list(operands), f"no rule for einsum '{equation}'")
    return contract(t, operands[0], names[0], operands[1], names[1], letters, narrowest=2)


@rule("tensordot")
def tensordot(t: Tracer, a: Labels, b: Labels, over_a: list[int], over_b: list[int]) -> Labels:
    """Sums over the axes ``over_a`` of ``a``, each with its of ``b``; the others stand side by side."""
    summed = [f"k{i}" for i in range(len(over_a))]
    names = []
    for side, x, over in (("a", a, over_a), ("b", b, over_b)):
        meets = dict(zip((axis % len(x.shape) for axis in over), summed, strict=True))
        names.append([meets.get(axis, f"{side}{axis}") for axis in range(len(x.shape))])
    left, right = names
    return contract(t, a, left, b, right, [n for n in (*left, *right) if n not in summed])


def _spelt(term: str, ndim: int) -> list[str]:
    """Names of a term's axes; those of an ellipsis count from the right."""
    before, dots, after = term.partition("...")
    hidden = ndim - len(before) - len(after) if dots else 0
    return [*before, *(f".{i}" for i in range(hidden, 0, -1)), *after]


def contract(
    t: Tracer,
    a: Labels,
    left: Letters,
    b: Labels,
    right: Letters,
    out: Letters,
    *,
    narrowest: int = 0,
) -> Labels:
    """``a`` with axes named ``left`` times ``b`` with axes named ``right``, summed over all that ``out`` lacks.

    ``narrowest``: channels that a sum over them needs to be a matrix product (``einsum`` multiplies where there is
    one, which PyTorch's counter does not count).
    """
    (a, left), (b, right) = _upright(a, left), _upright(b, right)
    for x, axes, weight, own in ((a, left, b, right), (b, right, a, left)):
        layer = _layer(t, x, axes, weight, own, out, narrowest)
        if layer is not None:
            return layer
    summed = [n for n in dict.fromkeys((*left, *right)) if n not in out]
    names = [*out, *summed]
    sides = [_laid_out(t, x, axes, names) for x, axes in ((a, left), (b, right))]
    axes_of = [set(x.varying) for x in sides]
    if all(axes_of) and not all(t.fixed(x, set.union(*axes_of) - mine) for x in sides for mine in axes_of):
        return t.barrier([a, b], f"'{operator_name(t.node)}' multiplies channels by others")
    shape = tuple(max(sizes) for sizes in zip(*(x.shape for x in sides), strict=True))
    product = t.map(sides, "and", shape)
    over = [i for i in product.varying if i >= len(out)]
    rest = [i for i in product.varying if i < len(out)]
    if over and rest and not t.fixed(product, set(over)) and not t.fixed(product, set(rest)):
        return t.barrier([a, b], "sums over one of two axes of channels")
    t.count(product.slots() if product.varying else product.slots()[:0])
    if over and t.fixed(product, set(over)):
        product = t.across(product, over, "or")
    elif over:
        _keep(t, product, over, narrowest)
        product = _totals(t, product, over, rest)
    assert product.core is not None
    return Labels(product.core.reshape(product.core.shape[: len(out)]), t.shape)


def _upright(x: Labels, axes: Letters) -> tuple[Labels, Letters]:
    """A transposed parameter as it is, with its axes in its own order."""
    return (replace(x, shape=x.shape[::-1], turned=False), axes[::-1]) if x.turned else (x, axes)


def _laid_out(t: Tracer, x: Labels, axes: Letters, names: Letters) -> Labels:
    """``x`` with its axes in the order of ``names``; those that it lacks have the length 1."""
    x = t.labelled(x)
    assert x.core is not None
    own = [n for n in names if n in axes]
    core = x.core.permute([list(axes).index(n) for n in own])
    sizes = iter(core.shape)
    shape = [x.shape[list(axes).index(n)] if n in axes else 1 for n in names]
    return Labels(core.reshape([next(sizes) if n in axes else 1 for n in names]), tuple(shape))


def _keep(t: Tracer, x: Labels, over: list[int], least: int) -> None:
    """The first ``least`` channels of those that are summed over stay."""
    assert x.core is not None
    first = x.core.numpy().take(range(least), over[0]) if least else x.slots()[:0]
    t.graph.pin(first.reshape(-1), t.why(f"'{t.node.name}' sums over at least {least} channels"))


def _totals(t: Tracer, x: Labels, over: list[int], rest: list[int]) -> Labels:
    """A sum over the axes ``over`` for each index along the axes ``rest``, which are kept."""
    assert x.core is not None
    sizes = [x.core.shape[i] for i in rest]
    rows = x.core.permute([*rest, *over, *(i for i in range(x.core.ndim) if i not in (*rest, *over))])
    dst = t.graph.new(math.prod(sizes))
    for d, row in zip(dst, rows.reshape(len(dst), -1).numpy(), strict=True):
        t.graph.facts.append(Mix(dst[d - dst[0] : d - dst[0] + 1], row.copy(), 1, False, None))
    t.graph.pin(dst, t.why("a sum over channels"))
    core = torch.from_numpy(dst).reshape([x.core.shape[i] if i in rest else 1 for i in range(x.core.ndim)])
    return Labels(core, x.shape)


def _layer(
    t: Tracer, x: Labels, axes: Letters, weight: Labels, own: Letters, out: Letters, narrowest: int
) -> Labels | None:
    """``weight``, a parameter of two axes, one of which is summed over where the channels of ``x`` lie."""
    if weight.core is not None or weight.param is None or len(own) != 2 or x.core is None:
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
    src = t.channels(x, axis)
    assert src is not None
    t.graph.pin(src[:narrowest], t.why(f"'{t.node.name}' sums over at least {narrowest} channels"))
    shape, rows = t.shape, weight.shape[list(own).index(outer)]
    area = math.prod(shape) // rows
    dst = t.mix(
        src,
        weight,
        None,
        transposed=list(own).index(inner) == 0,
        rows=rows,
        axis=place - len(out),
        macs_per=area if t.macs() else 0,  # a matrix times a vector is none to PyTorch's counter
        area=area,
    )
    return t.along(dst, place, shape)
