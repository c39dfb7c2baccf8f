"""Which numbers in attributes can follow the widths of tensors?

Rules *claim* what a number counts: ``self.dim // self.heads`` counts these slots. Every other use of a number asks
that it stays as it is. Under a mask a width is a sum over the classes that exist, and so is an attribute that
counts it. Where all uses of an attribute agree for every mask, surgery keeps it true. Otherwise the tensors that it
sizes are kept whole.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from chipnet.graph.classes import Classes, Partition
from chipnet.graph.facts import Number, Slots
from chipnet.program.watch import Attribute, Expression, Received, Shape, Term, attributes_in


@dataclass(frozen=True)
class Claim:
    """The operator ``key`` received ``source`` as the number of ``slots``."""

    key: str
    source: Expression
    slots: Slots


class Form(NamedTuple):
    """A number as a function of the mask: how often it counts each class of slots, and what it counts always."""

    counts: Mapping[int, int]
    rest: int

    def times(self, factor: int) -> Form:
        return Form({c: factor * n for c, n in self.counts.items() if factor}, factor * self.rest)

    def plus(self, other: Form) -> Form:
        counts = Counter(self.counts)
        for c, n in other.counts.items():
            counts[c] += n
        return Form({c: n for c, n in counts.items() if n}, self.rest + other.rest)

    def minus(self, other: Form) -> Form:
        return self.plus(other.times(-1))

    def over(self, divisor: int) -> Form | None:
        """Floor division; None where the result depends on how many of a class are left."""
        if divisor == 0 or any(n % divisor for n in self.counts.values()):
            return None
        return Form({c: n // divisor for c, n in self.counts.items()}, self.rest // divisor)

    @property
    def fixed(self) -> bool:
        return not self.counts


class _FollowsItselfError(Exception):
    """The size of a tensor is part of the number, so only a trial can tell."""


Known = Callable[[Attribute], Form]


def count(graph: Partition, slots: Slots) -> Form:
    """How many of ``slots`` there are."""
    pinned = graph.pinned(slots)
    counts = Counter(graph.classes(slots[~pinned]).tolist())
    return Form(dict(counts), int(pinned.sum()))


def _known(forms: Mapping[Attribute, Form], value_of: Callable[[Attribute], int]) -> Known:
    """A function that says what an attribute is: by ``forms``, as they are when it is called, or its value."""
    return lambda attribute: forms.get(attribute) or Form({}, value_of(attribute))


def _evaluate(source: Expression, known: Known) -> Form | None:
    """What a number is; None where it is no sum over classes."""
    if isinstance(source, Attribute):
        return known(source)
    if isinstance(source, Shape):
        raise _FollowsItselfError
    if isinstance(source, int):
        return Form({}, source)
    left, right = _evaluate(source.left, known), _evaluate(source.right, known)
    if left is None or right is None:
        return None
    match source.sign:
        case "+":
            return left.plus(right)
        case "-":
            return left.minus(right)
        case "*":
            return left.times(right.rest) if right.fixed else right.times(left.rest) if left.fixed else None
        case "//" | "/":
            if right.fixed:
                return left.over(right.rest)
            return next((Form({}, k) for k in _ratios(left, right) if right.times(k) == left), None)
        case "%" if right.fixed:
            rounded = left.over(right.rest)
            return None if rounded is None else left.minus(rounded.times(right.rest))
    same = left.fixed and right.fixed and source.sign == "**" and right.rest >= 0
    return Form({}, left.rest**right.rest) if same else None


def _ratios(left: Form, right: Form) -> set[int]:
    return {left.counts[c] // n for c, n in right.counts.items() if c in left.counts}


def _solved(source: Expression, target: Form, unknown: Attribute, known: Known) -> Form | None:
    """What ``unknown`` must be so that a number is ``target``; None where there is not one answer."""
    if source == unknown:
        return target
    if not isinstance(source, Term):
        return None
    left_side = unknown in set(attributes_in(source.left))
    if left_side and unknown in set(attributes_in(source.right)):
        return None
    side, other = (source.left, source.right) if left_side else (source.right, source.left)
    value = _evaluate(other, known)
    if value is None:
        return None
    match source.sign, left_side:
        case "+", _:
            wanted: Form | None = target.minus(value)
        case "-", True:
            wanted = target.plus(value)
        case "-", False:
            wanted = value.minus(target)
        case "*", _ if value.fixed:
            wanted = target.over(value.rest)
        case "//", True if value.fixed or target.fixed:
            now = _evaluate(side, known)  # what is left over stays
            over = now.rest % value.rest if now is not None and now.fixed and value.fixed else 0
            times = target.times(value.rest) if value.fixed else value.times(target.rest)
            wanted = times.plus(Form({}, over))
        case _:
            return None
    if wanted is None or wanted.rest < 0 or min(wanted.counts.values(), default=0) < 0:
        return None  # it could become negative
    return _solved(side, wanted, unknown, known)


class Settled(NamedTuple):
    """Attributes that follow, and operators whose tensors are kept whole, with the reason."""

    numbers: list[Number]
    kept: dict[str, str]


def settle(
    graph: Classes,
    claims: list[Claim],
    values: Iterable[Received],
    value_of: Callable[[Attribute], int],
    literal: Mapping[str, str],
    extents: Mapping[int, Slots] = MappingProxyType({}),
) -> Settled:
    """Which attributes follow which slots.

    Args:
        graph: the classes as all rules left them; uses of one attribute are tied here.
        claims: what operators received as numbers of slots.
        values: what was used as anything else.
        value_of: an attribute's value in the dense model.
        literal: operators whose sizes are known not to follow.
        extents: slots that are there where any of others is: of a head, its features.
    """
    forms = _forms(graph, claims, value_of)
    known = _known(forms, value_of)

    def follows(source: Expression) -> list[Attribute]:
        return [a for a in attributes_in(source) if not known(a).fixed]

    kept: dict[str, str] = {}

    def keep(attributes: list[Attribute], why: str) -> None:
        for claim in claims:
            if claim.key not in literal and not set(attributes).isdisjoint(attributes_in(claim.source)):
                kept.setdefault(claim.key, why)

    for claim in claims:
        holds = _holds(claim.source, known, count(graph, claim.slots)) or _counts_grid(
            graph, claim, known, extents
        )
        if claim.key not in literal and not holds:
            why = f"'{claim.source}' cannot follow its width"
            kept.setdefault(claim.key, why)
    for source, where in [*values, *((c.source, "") for c in claims if c.key in literal)]:
        if following := follows(source):
            try:
                now = _evaluate(source, known)
            except _FollowsItselfError:
                now = None
            if now is None or not now.fixed:
                at = f" ({where})" if where else ""
                keep(following, f"'{following[0]}' holds this width and is a fixed number elsewhere{at}")
    return Settled([number(a, form) for a, form in forms.items() if not form.fixed], kept)


def number(attribute: Attribute, form: Form, minimum: int = 0) -> Number:
    """The record of an attribute that follows."""
    pairs = np.array(list(form.counts.items()), dtype=np.int64).reshape(-1, 2)
    slots = np.repeat(pairs[:, 0], pairs[:, 1])
    return Number(attribute.module, attribute.name, attribute.index, slots, form.rest, minimum)


def _holds(source: Expression, known: Known, target: Form) -> bool:
    try:
        return _evaluate(source, known) == target
    except _FollowsItselfError:
        return True


def _counts_grid(graph: Classes, claim: Claim, known: Known, extents: Mapping[int, Slots]) -> bool:
    """Does a number count features of heads, as the product of the numbers of both? All pairs of a head and a
    feature that are left are there."""
    source = claim.source
    if not isinstance(source, Term) or source.sign != "*" or not extents:
        return False
    members: dict[int, set[int]] = defaultdict(set)
    for slot, inside in extents.items():
        members[int(graph.classes(np.array([slot]))[0])].update(graph.classes(inside).tolist())
    found = graph.classes(claim.slots)
    for side in (source.left, source.right):
        form = _evaluate(side, known)
        if form is None or form.rest or len(claim.slots) % max(len(form.counts), 1):
            return False
        parts = [members[c] for c, n in form.counts.items() if n == 1]
        if len(parts) < len(form.counts) or any(
            sum(c in part for part in parts) != 1 for c in found.tolist()
        ):
            return False
    return True


def _forms(
    graph: Classes, claims: list[Claim], value_of: Callable[[Attribute], int]
) -> dict[Attribute, Form]:
    """What attributes must be so that the claims hold. Uses of one attribute are tied."""
    plain: dict[Attribute, Slots] = {}
    for claim in claims:
        if isinstance(claim.source, Attribute):
            first = plain.setdefault(claim.source, claim.slots)
            graph.tie(first, claim.slots)
        elif isinstance(claim.source, Term) and claim.source.sign == "*":
            factor = next((f for f in (claim.source.left, claim.source.right) if isinstance(f, int)), 1)
            if factor > 1 and len(claim.slots) % factor == 0:  # a multiple stays one: the pieces are alike
                for column in claim.slots.reshape(factor, -1).T:
                    graph.tie_all(column)
    forms = {attribute: count(graph, slots) for attribute, slots in plain.items()}
    waiting = [c for c in claims if not isinstance(c.source, Attribute)]

    known = _known(forms, value_of)
    while waiting:
        left = [len({a for a in attributes_in(c.source) if a not in forms}) for c in waiting]
        best = int(np.argmin(left))
        claim = waiting.pop(best)
        if left[best]:  # of several unknown numbers the first follows, the others stay
            unknown = next(a for a in attributes_in(claim.source) if a not in forms)
            try:
                found = _solved(claim.source, count(graph, claim.slots), unknown, known)
            except _FollowsItselfError:
                continue
            if found is not None:
                forms[unknown] = found
        elif _tie_alike(graph, claim, claims, known):
            return _forms(graph, claims, value_of)  # of fewer classes
    return forms


def _tie_alike(graph: Classes, claim: Claim, claims: list[Claim], known: Known) -> bool:
    """Tie what a number counts to what another claim counts, where both are as many (``c - c // 2`` and ``c //
    2``). Returns whether there was anything to tie."""
    try:
        value = _evaluate(claim.source, known)
    except _FollowsItselfError:
        return False
    if value is None or value == count(graph, claim.slots):
        return False
    for other in claims:
        if len(other.slots) == len(claim.slots) and count(graph, other.slots) == value:
            graph.tie(other.slots, claim.slots)
            return True
    return False
