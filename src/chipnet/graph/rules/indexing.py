"""Parts of axes that are chosen, or written to, by tensors of indices."""

from __future__ import annotations

from typing import Any

import torch

from chipnet.graph.rules.table import operator_name, rule
from chipnet.graph.tracer import Labels, Tracer


def _chosen(t: Tracer, x: Labels, *indices: Labels) -> Labels:
    """``x``, whose elements stand where ``indices`` say."""
    return t.beside(x, list(indices), "its values are indices")


def _beside(t: Tracer, x: Labels, index: Labels) -> Labels:
    """Indices that differ along other axes than channels do are kept whole: each channel has the same."""
    index = t.labelled(index)
    if x.varying and index.varying and set(x.varying).isdisjoint(index.varying):
        return t.whole(index, "its values are indices")
    return index


@rule("index_select")
def index_select(t: Tracer, x: Labels, dim: int, index: Labels) -> Labels:
    """Parts of an axis, chosen by a tensor."""
    x = t.labelled(x)
    if dim % max(len(x.shape), 1) in x.varying:
        return t.barrier([x, index], "indexes channels by a tensor")
    return _chosen(t, Labels(x.core, t.shape), index)


@rule("index", "_unsafe_index")
def index(t: Tracer, x: Labels, indices: list[Labels | None]) -> Labels:
    """``x[:, :, i]``: parts of axes, chosen by tensors. Channels of other axes stay as they are."""
    x = t.labelled(x)
    chosen = [i for i in indices if i is not None]
    if any(indices[a] is not None for a in x.varying if a < len(indices)):
        return t.barrier([x, *chosen], "indexes channels by a tensor")
    if not x.varying:
        out = t.uniform(int(x.slots()[0]), t.shape)
    else:  # the operator itself says where the axes go: on labels, with the first of everything
        firsts = [None if i is None else torch.zeros(i.shape, dtype=torch.int64) for i in indices]
        full = t.node.target(x.full(), firsts)  # type: ignore[operator]
        if tuple(full.shape) != t.shape:  # a mask of booleans: how many it chooses depends on values
            return t.barrier([x, *chosen], "indexes by a mask")
        out = t.moved(full)
    return _chosen(t, out, *chosen)


@rule("take_along_dim")
def take_along_dim(t: Tracer, x: Labels, index: Labels, dim: int | None = None) -> Labels:
    """As `gather`; sizes of 1 are repeated."""
    if dim is None:
        return t.barrier([x, index], "takes from all axes at once")
    return gather(t, x, dim, index)


@rule("gather")
def gather(t: Tracer, x: Labels, dim: int, index: Labels, **kwargs: Any) -> Labels:
    """Along an axis of no channels, each channel by its own indices."""
    x = t.labelled(x)
    dim %= max(len(x.shape), 1)
    repeats = operator_name(t.node) == "take_along_dim"
    index = _beside(t, x, index)
    aligned = all(
        index.shape[a] == x.shape[a] or (repeats and index.shape[a] == 1)
        for a in {*x.varying, *index.varying}
    )
    if dim in x.varying or dim in index.varying or not aligned:
        return t.barrier([x, index], "indexes channels by a tensor")
    if not index.varying:
        if any(index.shape[a] > 1 for a in x.varying):  # the same indices for every channel, at its width
            t.risk(x.slots())
            if t.is_literal:
                t.pin_literal(x, "meets indices of fixed width")
        return _chosen(t, Labels(x.core, t.shape), index)
    shape = tuple(n if a in x.varying or a in index.varying else 1 for a, n in enumerate(t.shape))
    values, chosen = Labels(x.core, shape), Labels(index.core, shape)
    if not t.follows(chosen, values):  # else each channel chooses for itself, as of its largest values
        values = t.map([values, t.places(chosen)], "and", shape)
    return Labels(values.core, t.shape)


@rule("index_add", "index_copy")
def index_add(t: Tracer, x: Labels, dim: int, index: Labels, source: Labels, **kwargs: Any) -> Labels:
    """Sums over parts of an axis (messages of a graph to its nodes): non-zero where either side is."""
    return _scattered(t, x, dim, index, source)


@rule("scatter_add", "scatter", "scatter_reduce")
def scatter(t: Tracer, x: Labels, dim: int, index: Labels, source: Any, *args: Any, **kwargs: Any) -> Labels:
    """As `index_add`, with indices as many as the source."""
    values = t.labelled(source if isinstance(source, Labels) else x)
    index = _beside(t, values if values.varying else t.labelled(x), index)
    if index.varying:
        inputs = [a for a in (x, index, source) if isinstance(a, Labels)]
        return t.barrier(inputs, "indexes channels by a tensor")
    if not isinstance(source, Labels):
        same = t.is_zero(source)
        return _chosen(t, t.labelled(x) if same else t.map([x], "const"), index)
    if any(n > 1 for n in index.shape):
        t.risk(t.labelled(source).slots())
        if t.is_literal:
            t.pin_literal(source, "meets indices of fixed width")
    return _scattered(t, x, dim, index, source)


def _scattered(t: Tracer, x: Labels, dim: int, index: Labels, source: Labels) -> Labels:
    x, source = t.labelled(x), t.labelled(source)
    dim %= max(len(x.shape), 1)
    others = [a for a in range(len(x.shape)) if a != dim]
    if {dim} & {*x.varying, *source.varying} or any(x.shape[a] != source.shape[a] for a in others):
        return t.barrier([x, index, source], "indexes channels by a tensor")
    shape = tuple(n if a != dim else 1 for a, n in enumerate(x.shape))
    out = t.map([Labels(x.core, shape), Labels(source.core, shape)], "or", shape)
    return _chosen(t, Labels(out.core, t.shape), index)
