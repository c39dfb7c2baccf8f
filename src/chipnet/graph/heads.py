"""Which rows of a layer write which heads and features of attention?

A box of heads and features stays dense where a slot is live by several gates: ``live(head, feature) = block and
head and feature``. So the layer that writes values has three sites on one weight. The gates of its own site are of
features, one for all heads. A second site has one for each head, and a third one for all of them: the block. The
first head and the first feature have no gates but that of the block, so nothing is empty while it is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from chipnet.graph.draft import Draft
from chipnet.graph.facts import Host, Map, Mix, Slots
from chipnet.graph.labels import Labels
from chipnet.graph.operator import Operator


@dataclass(frozen=True)
class HeadRows:
    """Rows of a weight that write heads and features: ``[heads, features]``; ``values``: are they values, with
    which the heads go?"""

    rows: Slots
    values: bool


def note_grids(op: Operator, tensors: Sequence[Labels], axis: int, values: bool) -> bool:
    """Remember which rows write tensors of heads (along ``axis``) and features, if one layer writes each of them;
    returns whether one does."""
    found = [_grid(op.draft, x, axis) for x in tensors]
    for weight, rows in [f for f in found if f is not None] if all(f is not None for f in found) else ():
        mine = op.draft.grids.setdefault(weight, [])
        if not any(np.array_equal(rows, known.rows) for known in mine):
            mine.append(HeadRows(rows, values))
    return all(f is not None for f in found)


def _grid(draft: Draft, x: Labels, axis: int) -> tuple[str, Slots] | None:
    if len(x.varying) != 2 or axis not in x.varying:
        return None
    box = np.moveaxis(x.core.numpy(), axis, 0).reshape(x.core.shape[axis], -1)
    for fact in reversed(draft.facts):
        if isinstance(fact, Mix) and np.isin(box, fact.dst).all():
            if fact.host is None or fact.host.axis != 0 or fact.host.output is not None:
                return None
            order = np.argsort(fact.dst)
            return fact.host.weight, order[np.searchsorted(fact.dst, box, sorter=order)]
    return None


def gated_by_heads(op: Operator, dst: Slots, host: Host, grids: Sequence[HeadRows]) -> Slots:
    """Group the gates of features, and emit those of heads and of the block; returns the slots behind them."""
    dst = dst.copy()
    for grid in grids:
        for number, column in enumerate(dst[grid.rows].T):
            op.draft.group(column, int(column[0]) if number else None)
    for grid in grids:
        if not grid.values:
            continue
        for part in ("heads", "block"):
            box = dst[grid.rows]
            behind = op.draft.new(box.size).reshape(box.shape)
            op.draft.tie(behind, box)
            for number, head in enumerate(behind):
                if part == "block":
                    op.draft.group(head, int(behind[0, 0]))
                else:
                    op.draft.group(head, int(head[0]) if number else None)
            rows = tuple(grid.rows.reshape(-1).tolist())
            op.emit(Map(behind.reshape(-1), (box.reshape(-1),), "or", replace(host, part=part, rows=rows)))
            dst[grid.rows] = behind
    return dst


def kept_grids(draft: Draft, grids: Mapping[str, Sequence[HeadRows]]) -> set[str]:
    """The weights of ``grids`` that can lose nothing, where heads and features go at once."""
    layers = [f for f in draft.facts if isinstance(f, Mix) and f.host is not None and f.host.weight in grids]
    return {f.host.weight for f in layers if f.host is not None and draft.pinned(f.dst).all()}
