"""Operators that choose parts of axes by tensors of indices, or write to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from chipnet.graph.attributes import pin_literal
from chipnet.graph.facts import Number, PinCode
from chipnet.graph.labels import Labels, Param, Value, along, uniform, values_in
from chipnet.graph.operator import Operator
from chipnet.graph.rules.table import aten, rule


def _chosen(op: Operator, x: Value, *indices: Value) -> Labels:
    """``x``, with its elements where ``indices`` say. The indices are pinned."""
    return op.with_kept(x, list(indices), "its values are indices")


def _aside(op: Operator, x: Value, index: Value) -> Labels:
    """Indices, without channels where they vary along other axes than the channels of ``x``: every channel has the
    same."""
    index = op.labelled(index)
    if x.varying and index.varying and set(x.varying).isdisjoint(index.varying):
        return op.without_channels(index, "its values are indices")
    return index


@rule(*aten("embedding"))
def embedding(op: Operator, weight: Value, indices: Value, *args: Any, **kwargs: Any) -> Labels:
    """Rows of a table, whose columns are channels. All rows stay: any may be asked for."""
    if not isinstance(weight, Param) or weight.made is not None:
        return op.barrier([weight, indices], "rows of a table that is computed")
    return _rows(op, weight, indices)


def _is_table(x: Param) -> bool:
    """Is it a parameter of two axes, as it is?"""
    return len(x.shape) == 2 and x.long == [0, 1] and x.made is None and not x.turned


def _rows(op: Operator, weight: Param, indices: Value) -> Labels:
    """Rows of a table of two axes."""
    op.keep(
        op.data_slots(weight.name, 0, weight.shape[0]), "its rows are chosen by indices", PinCode.READ_WHOLE
    )
    columns = op.data_slots(weight.name, 1, weight.shape[1], gate=True)
    if isinstance(op.owner, nn.Embedding):
        op.draft.numbers[op.module, "embedding_dim", None] = Number(op.module, "embedding_dim", None, columns)
    return _chosen(op, along(columns, -1, op.shape), indices)


@rule(*aten("index_select"))
def index_select(op: Operator, x: Value, dim: int, index: Value) -> Labels:
    """Parts of one axis."""
    x = op.labelled(x)
    if dim % max(len(x.shape), 1) in x.varying:
        return op.barrier([x, index], "indexes channels by a tensor")
    return _chosen(op, Labels(x.core, op.shape), index)


@rule(*aten("index _unsafe_index"))
def index(op: Operator, x: Value, indices: list[Value | None]) -> Labels:
    """``x[:, :, i]``: parts of several axes. Channels along other axes stay as they are."""
    if isinstance(x, Param) and _is_table(x) and len(indices) == 1 and indices[0] is not None:
        return _rows(op, x, indices[0])  # a bias for each pair of positions, in each head
    x = op.labelled(x)
    chosen = [i for i in indices if i is not None]
    if any(indices[a] is not None for a in x.varying if a < len(indices)):
        return op.barrier([x, *chosen], "indexes channels by a tensor")
    if not x.varying:
        out = uniform(int(x.slots()[0]), op.shape)
    else:  # the operator itself says where the axes go: on labels, with the first of everything
        firsts = [None if i is None else torch.zeros(i.shape, dtype=torch.int64) for i in indices]
        full = op.node.target(x.full(), firsts)  # type: ignore[operator]
        if tuple(full.shape) != op.shape:  # a mask of booleans: how many it chooses depends on values
            return op.barrier([x, *chosen], "indexes by a mask")
        out = op.moved(full)
    return _chosen(op, out, *chosen)


@rule(*aten("take_along_dim"))
def take_along_dim(op: Operator, x: Value, index: Value, dim: int | None = None) -> Labels:
    """As `gather`, but sizes of 1 are repeated."""
    if dim is None:
        return op.barrier([x, index], "takes from all axes at once")
    return gather(op, x, dim, index)


@rule(*aten("gather"))
def gather(op: Operator, x: Value, dim: int, index: Value, **kwargs: Any) -> Labels:
    """Along an axis without channels, every channel by indices of its own."""
    x = op.labelled(x)
    dim %= max(len(x.shape), 1)
    repeats = op.name == "take_along_dim"
    index = _aside(op, x, index)
    aligned = all(
        index.shape[a] == x.shape[a] or (repeats and index.shape[a] == 1)
        for a in {*x.varying, *index.varying}
    )
    if dim in x.varying or dim in index.varying or not aligned:
        return op.barrier([x, index], "indexes channels by a tensor")
    if not index.varying:
        if any(index.shape[a] > 1 for a in x.varying):  # the same indices for every channel, at its width
            op.risk(x.slots())
            if op.is_literal:
                pin_literal(op, x, "meets indices of fixed width")
        return _chosen(op, Labels(x.core, op.shape), index)
    shape = tuple(n if a in x.varying or a in index.varying else 1 for a, n in enumerate(op.shape))
    values, chosen = Labels(x.core, shape), Labels(index.core, shape)
    if not op.draft.values.is_function(
        chosen, values
    ):  # else each channel chooses for itself, as of its largest values
        values = op.map([values, op.places(chosen)], "and", shape)
    return Labels(values.core, op.shape)


@rule(*aten("index_add index_copy"))
def index_add(op: Operator, x: Value, dim: int, index: Value, source: Value, **kwargs: Any) -> Labels:
    """Sums into parts of an axis, such as messages to the nodes of a graph: non-zero where either side is."""
    return _scattered(op, x, dim, index, source)


@rule(*aten("scatter_add scatter scatter_reduce"))
def scatter(op: Operator, x: Value, dim: int, index: Value, source: Any, *args: Any, **kwargs: Any) -> Labels:
    """As `index_add`, with an index for each element of the source."""
    values = op.labelled(source if isinstance(source, Value) else x)
    index = _aside(op, values if values.varying else op.labelled(x), index)
    if index.varying:
        return op.barrier(values_in(x, index, source), "indexes channels by a tensor")
    if not isinstance(source, Value):
        same = op.is_zero(source)
        return _chosen(op, op.labelled(x) if same else op.map([x], "const"), index)
    if any(n > 1 for n in index.shape):
        op.risk(op.labelled(source).slots())
        if op.is_literal:
            pin_literal(op, source, "meets indices of fixed width")
    return _scattered(op, x, dim, index, source)


def _scattered(op: Operator, x: Value, dim: int, index: Value, source: Value) -> Labels:
    x, source = op.labelled(x), op.labelled(source)
    dim %= max(len(x.shape), 1)
    others = [a for a in range(len(x.shape)) if a != dim]
    if {dim} & {*x.varying, *source.varying} or any(x.shape[a] != source.shape[a] for a in others):
        return op.barrier([x, index, source], "indexes channels by a tensor")
    shape = tuple(n if a != dim else 1 for a, n in enumerate(x.shape))
    out = op.map([Labels(x.core, shape), Labels(source.core, shape)], "or", shape)
    return _chosen(op, Labels(out.core, op.shape), index)
