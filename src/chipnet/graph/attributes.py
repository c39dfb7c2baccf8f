"""What do the numbers count that an operator receives, from attributes and from sizes of tensors?"""

from __future__ import annotations

from typing import Any

from chipnet.graph.draft import Draft
from chipnet.graph.facts import PinCode, Slots
from chipnet.graph.labels import Labels, Value
from chipnet.graph.numbers import Claim, count
from chipnet.graph.operator import Operator
from chipnet.graph.standard import FITTED, is_torch_nn
from chipnet.program.watch import Attribute, Shape, attributes_in, is_from_attribute, source_of


def claim(op: Operator, number: Any, slots: Slots, empty: bool = False) -> bool:
    """Say that ``number``, which the operator received, counts ``slots``.

    Few operators work on a width of 0: for the others one of the slots is pinned. Those that do say ``empty``.
    Returns whether the number comes from attributes.
    """
    if isinstance(source := source_of(number), Shape):
        _as_wide(op, source, slots)
    if not is_from_attribute(number) or op.received is None:
        return False
    op.draft.known.add((op.received, number.source))
    if all(
        a.name in FITTED and is_torch_nn(op.forward.modules[a.module]) for a in attributes_in(number.source)
    ):
        return True  # surgery keeps those of layers true anyway
    op.draft.claims.append(Claim(op.key, number.source, slots.copy()))
    if not empty:
        first = op.draft.extents.get(int(slots[0]), slots)[:1] if len(slots) else slots
        op.keep(first, f"'{number.source}' must not become 0", PinCode.NEVER_EMPTY)
    return True


def _as_wide(op: Operator, size: Shape, slots: Slots) -> None:
    """Remember that there are as many ``slots`` as the tensor has channels whose size the operator received."""
    x = None if size.made is None else op.draft.results.get((op.forward.counting, size.made))
    if isinstance(x, Labels) and size.axis in x.varying and x.shape[size.axis] == len(slots):
        op.draft.alike.append((slots.copy(), x.along(size.axis), op.tie))


def tie_widths(draft: Draft) -> None:
    """Tie the channels of two tensors where an operator received the size of one for the other, unless both have
    the same size under every mask."""
    for slots, others, tie in draft.alike:
        if count(draft, slots) != count(draft, others):
            draft.tie(slots, others)
            draft.ties.append((int(slots[0]), tie))


def tie_features(draft: Draft) -> None:
    """Tie features of heads that one number counts: the same remain in queries and in values."""
    first: dict[Any, Slots] = {}
    for claim_ in draft.claims:
        if isinstance(claim_.source, Attribute) and draft.features.keys() >= set(claim_.slots.tolist()):
            known = first.setdefault(claim_.source, claim_.slots)
            for a, b in zip(known.tolist(), claim_.slots.tolist(), strict=False):
                mine, other = draft.features[a], draft.features[b]
                few = min(len(mine), len(other))
                draft.tie(mine[:: len(mine) // few], other[:: len(other) // few])


def pin_literal(op: Operator, x: Value, reason: str) -> None:
    """Keep all channels of ``x``: the operator has their number as a literal."""
    op.pin(x, op.forward.literal.get(op.key) or reason, PinCode.FIXED_WIDTH)
