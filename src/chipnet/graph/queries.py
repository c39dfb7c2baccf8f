"""Which rows of a layer write the queries of attention, and can they be scaled?

Attention divides by the root of the width of its queries. With k features of n left it divides by less, and surgery
makes up for that: it multiplies the rows that write the queries by the root of k / n. That is the same only if what
lies between the layer and the product with the keys is linear: moves, sums, products with what the layer does not
write (rotary embeddings). The layer may also be a norm with a weight.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from chipnet._util.torch_private import tree_leaves
from chipnet.graph.draft import Draft
from chipnet.graph.facts import Map, Mix, Norm, Pin, PinCode, Place, Queries, Slots, sources_of
from chipnet.graph.labels import Labels
from chipnet.graph.numbers import Claim
from chipnet.graph.operator import Operator
from chipnet.program.names import is_within, operator_name
from chipnet.program.watch import Attribute, Expression, Shape

_FIRST = frozenset(
    "view reshape _unsafe_view flatten unflatten permute transpose unsqueeze squeeze movedim unbind getitem select "  # noqa: SIM905
    "slice split split_with_sizes chunk contiguous clone alias to _to_copy expand repeat repeat_interleave neg "
    "negative index_select flip roll".split()
)
"""Operators that are linear in their first argument, and give nothing of others."""
_ALL = frozenset("add sub cat concat stack".split())  # noqa: SIM905
"""Operators that are linear in all that they read together."""


def can_scale(op: Operator, node: Node, queries: Slots, features: Slots) -> bool:
    """Can surgery scale the queries, and nothing else with them? How is remembered.

    Args:
        op: the call that divides by the root of a width.
        node: the queries.
        queries: their slots.
        features: the slots that their width counts.
    """
    facts, places = op.draft.facts, op.draft.places
    writers = {
        place.node: i
        for i, (fact, place) in enumerate(zip(facts, places, strict=True))
        if isinstance(fact, (Mix, Norm)) and fact.host is not None
    }
    path: set[Node] = set()
    root = _root(node, writers, path)
    if root is None:
        return False
    number = writers[root.name]
    fact = facts[number]
    assert isinstance(fact, (Mix, Norm)) and fact.host is not None
    host, names = fact.host, {n.name for n in (*path, root)}
    if (
        host.output is not None
        or host.axis != 0
        or (isinstance(fact, Norm) and not _has_weight(op.draft, fact))
    ):
        return False
    at = np.flatnonzero(np.isin(fact.dst, _behind(op.draft, queries, number, names)))
    if not len(at):
        return False
    parameters = tuple(n for n in (host.weight, host.bias) if n is not None)
    known = op.draft.queries.setdefault(host.weight, Queries(parameters, at, features))
    op.draft.divisions.linear |= names
    return np.array_equal(known.at, at)


def note_factor(op: Operator, x: Labels, factor: float) -> None:
    """``x`` is multiplied by ``factor``. If that is one over the root of a width, as the user's code computes it in
    the forward, and ``x`` are queries, keys or their product, surgery makes up for it."""
    node, watch = next((a for a in op.node.args if isinstance(a, Node)), None), op.forward.watch
    roots = {
        source: None
        for source, width in (watch.fractions if watch is not None and node is not None else ())
        if width > 1 and math.isclose(factor * math.sqrt(width), 1)
    }
    if not roots or node is None:
        return
    sides, product = _sides(op, node, x)
    for source in roots:
        features = _counted(op, source, sides)
        if features is None or not any(can_scale(op, n, slots, features) for n, slots in sides):
            continue
        if product is None:
            op.draft.divisions.behind |= _after(op.node)
        else:
            op.draft.divisions.scores.add(product)
        if isinstance(source, Attribute):
            op.draft.divisions.roots.add(source)
            op.draft.claims.append(Claim(op.key, source, features))
        return


def _sides(op: Operator, node: Node, x: Labels) -> tuple[list[tuple[Node, Slots]], int | None]:
    """What is divided: queries or keys; or both sides of their product, with the number of its fact. Nothing where
    both are the same."""
    last = node
    while (
        last.name not in op.draft.divisions.contracted
        and len(last.users) == 1
        and operator_name(last) in _FIRST
    ):
        last = last.args[0]  # type: ignore[assignment]
    if last.name not in op.draft.divisions.contracted or len(last.users) != 1:
        return [(node, x.slots())], None
    slots, fact = op.draft.divisions.contracted[last.name]
    nodes = [a for a in tree_leaves(last.args) if isinstance(a, Node)][-2:]
    return list(zip(nodes, slots, strict=True)) if not np.isin(*slots).any() else [], fact


def _counted(op: Operator, source: Expression, sides: Sequence[tuple[Node, Slots]]) -> Slots | None:
    """The features that a number counts: a size of one of ``sides``, or an attribute of this module that has
    counted some before. None where it follows no width, or another."""
    if isinstance(source, Shape) and source.made is not None:
        sized = op.draft.results.get((op.forward.counting, source.made))
        if not isinstance(sized, Labels) or op.keeps_length(sized, source.axis):
            return None
        features, mine = sized.along(source.axis), [op.draft.classes(slots) for _, slots in sides]
        return features if any(np.isin(op.draft.classes(features), m).all() for m in mine) else None
    if not isinstance(source, Attribute) or not is_within(op.module, source.module):
        return None
    return next((c.slots for c in reversed(op.draft.claims) if c.source == source), None)


def _after(node: Node) -> set[str]:
    """The names of all operators that read ``node``, or what is made of it."""
    found: set[Node] = set()
    stack = [node]
    while stack:
        new = [u for u in stack.pop().users if u not in found]
        found.update(new)
        stack += new
    return {n.name for n in found}


def _has_weight(draft: Draft, norm: Norm) -> bool:
    """Does a norm multiply by its weight, and not by what is made of it?"""
    if norm.module in draft.rescaled:
        return True
    return norm.module in draft.live and draft.live[norm.module][0].weight is not None


def _root(node: Any, writers: dict[str, int], path: set[Node]) -> Node | None:
    """The one layer or norm in whose output ``node`` is linear; None where there is none. ``path``: the nodes in
    between are added."""
    roots: set[Node] = set()
    stack = [node]
    while stack:
        n = stack.pop()
        if not isinstance(n, Node) or n.op != "call_function":
            return None
        if n.name in writers:
            roots.add(n)
        elif n not in path:
            path.add(n)
            read = _linear_in(n, writers)
            if not read:
                return None
            stack += read
    if len(roots) != 1:
        return None
    (root,) = roots
    others = [a for n in path for a in n.all_input_nodes if a not in path and a is not root]
    return None if _reached(others, {root.name}) else root


def _linear_in(n: Node, writers: Collection[str]) -> list[Any]:
    """What an operator is linear in; nothing where it is no such operator. Of a product that is the side which one
    of ``writers`` has written."""
    name = operator_name(n)
    if name in _FIRST:
        return [n.args[0]]
    if name in _ALL:
        return list(n.args[0]) if isinstance(n.args[0], (list, tuple)) else list(n.args[:2])
    if name not in ("mul", "div"):
        return []
    sides = [a for a in n.args[:2] if isinstance(a, Node)]
    if len(sides) == 1 or name == "div":
        return sides[:1] if n.args[0] is sides[0] or name == "mul" else []
    written = [a for a in sides if _reached([a], writers)]
    return written if len(written) == 1 else []


def _reached(nodes: list[Node], writers: Collection[str]) -> bool:
    """Does anything of one of ``writers`` come to one of ``nodes``?"""
    found, stack = set(nodes), list(nodes)
    while stack:
        n = stack.pop()
        if n.name in writers:
            return True
        new = [a for a in n.all_input_nodes if a not in found]
        found.update(new)
        stack += new
    return False


def _behind(draft: Draft, slots: Slots, first: int, nodes: set[str]) -> Slots:
    """``slots`` and all that they are made of by ``nodes``, in facts after number ``first``."""
    for i in range(len(draft.facts) - 1, first, -1):
        fact = draft.facts[i]
        if isinstance(fact, Map) and draft.places[i].node in nodes:
            mine = np.isin(fact.dst, slots)
            slots = np.union1d(slots, np.concatenate([s[mine] for s in fact.srcs]))
    return slots


def keep_queries(draft: Draft) -> None:
    """Keep queries whole where surgery cannot scale them: where something else reads them too."""
    why = "queries that something else reads too, and attention divides by the root of their width"
    for weight, queries in draft.queries.items():
        layers = [f for f in draft.facts if isinstance(f, (Mix, Norm)) and f.host and f.host.weight == weight]
        at = _other_reader(draft, np.concatenate([f.dst[queries.at] for f in layers])) if layers else Place()
        if at is not None:
            kept = np.concatenate([queries.slots, *(f.dst[queries.at] for f in layers)])
            draft.pin(kept, Pin(PinCode.READ_WHOLE, why, at))


def _other_reader(draft: Draft, slots: Slots) -> Place | None:
    """What reads queries, or what is made of them, other than their product with keys."""
    for i, (fact, place) in enumerate(zip(draft.facts, draft.places, strict=True)):
        read = [np.isin(s, slots) for s in sources_of(fact)]
        if (
            not any(r.any() for r in read)
            or i in draft.divisions.scores
            or place.node in draft.divisions.behind
        ):
            continue
        if not isinstance(fact, Map) or place.node not in draft.divisions.linear:
            return place
        slots = np.union1d(slots, fact.dst[np.any(read, axis=0)])
    return None
