"""What may a rule do? It reads labels of the operator's inputs, emits facts and gives labels to its outputs."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from chipnet.graph.call import Call
from chipnet.graph.classes import Classes
from chipnet.graph.draft import Draft
from chipnet.graph.facts import Barrier, Fact, Host, Map, Mix, PinCode, Product, Risk, Slots, Source
from chipnet.graph.labels import Labels, Param, Value, along, smallest_core, uniform
from chipnet.program.names import is_within


@dataclass(frozen=True)
class Operator(Call):
    """One call of an operator, as its rule sees it: it says where the call stands, and emits facts."""

    draft: Draft

    def at(self, node: Node) -> Operator:
        """Another call in the same forward."""
        return replace(self, node=node)

    # -- labels -----------------------------------------------------------------------------------------
    def constant(self, shape: tuple[int, ...], zero: bool = False) -> Labels:
        """Labels of a tensor that is the same in every call; ``zero``: it is zero."""
        return uniform(self.draft.zero if zero else self.draft.constant, shape)

    def labelled(self, x: Value) -> Labels:
        """Labels of ``x``. A parameter gets one slot for each index along its only axis longer than 1; a parameter
        with several such axes is kept whole."""
        if isinstance(x, Labels):
            return x
        if len(x.long) == 1:
            return self.along_of(x, x.long[0])
        shape = x.shape[::-1] if x.turned else x.shape
        for axis in x.long if not x.turned else range(len(shape)):
            if (own := x.own(axis)) is not None and shape[axis] > 1:
                slots = self.data_slots(x.name, own, shape[axis])
                self.keep(slots, "a parameter with several axes is used as data", PinCode.READ_WHOLE)
        return self.constant(x.shape)

    def along_of(self, x: Param, axis: int) -> Labels:
        """Labels of a parameter that is used as data, one for each index along an axis."""
        own = x.own(axis)
        assert own is not None
        data = along(self.data_slots(x.name, own, x.shape[axis], gate=not x.const), axis, x.shape)
        return self.map([data], "const", x.shape) if x.const else data

    def data_slots(self, name: str, axis: int, size: int, *, gate: bool = False) -> Slots:
        """The slots of a parameter that is used as data, along ``axis``; ``gate``: it may hold gates."""
        module, owner = self.module, name.rpartition(".")[0]
        if is_within(module, owner) and not is_within(name, module):
            module = owner  # it gave the parameter to a module inside of it
        own = name in self.forward.parameters and is_within(name, module)
        host = Host(module, name, None, axis, data=True) if gate and own else None
        return self.draft.data_slots(name, axis, size, self.place, host)

    def moved(self, full: Tensor, fixed: Set[int] = frozenset()) -> Labels:
        """Labels that came out of an operator that moves data, at the tensor's own shape.

        Where they vary along several axes, slots are tied so that what is left of the tensor is a dense box.
        ``fixed``: axes whose length is a literal.
        """
        out = Labels(smallest_core(full), tuple(full.shape))
        if len(out.varying) > 1:
            self._box(out, fixed)
        return out

    def _box(self, x: Labels, fixed: Set[int]) -> None:
        """Tie labels that share an index along one of the axes along which labels vary.

        The axis is taken that leaves the most classes; one whose length is no literal, if there is such.
        """
        self.draft.boxes[self.key] = x
        core = self.draft.classes(x.core.numpy())
        found = []
        axes = [a for a in x.varying if a not in fixed] or x.varying
        heads = self.forward.heads.get(self.key)
        grid = x.varying[0] if len(x.varying) == 2 else heads
        if grid in axes and self._is_grid(x):
            return self._grid(x, grid)
        if heads in axes and self.forward.narrow:
            axes = [a for a in axes if a != heads] or axes
        elif heads in axes and not self.tied_along(x, {heads}):
            axes = [heads]
        for axis in axes:
            rows = np.moveaxis(core, axis, 0).reshape(core.shape[axis], -1)
            trial = Classes()
            _, ids = np.unique(rows, return_inverse=True)
            trial.new(int(ids.max()) + 1)
            ids = ids.reshape(rows.shape)
            for row in ids:
                trial.tie_all(np.unique(row))
            found.append((len({trial.find(i) for i in range(trial.slots)}), axis, rows))
        _, _, rows = max(found, key=lambda f: (f[0], -f[1]))
        for row in rows:
            self.draft.tie_all(np.unique(row))
        self.note_tie(rows)

    def _is_grid(self, x: Labels) -> bool:
        """Are these heads and features that both go?"""
        known = np.array(list(self.draft.groups), dtype=np.int64)
        return len(known) > 0 and bool(
            np.isin(self.draft.classes(x.slots()), self.draft.classes(known)).all()
        )

    def _grid(self, x: Labels, heads: int) -> None:
        """Tie what has the same head and feature, which lie along ``heads`` and the last axis of channels."""
        both = np.moveaxis(x.core.numpy(), [heads, x.varying[-1]], [0, 1])
        for row in both.reshape(both.shape[0] * both.shape[1], -1):
            self.draft.tie_all(row)

    def lengths(self, x: Labels, axis: int) -> Slots:
        """What the size of an axis counts: the labels along it. Where these go one by one, and others differ at the
        same index, slots that are there where any of these is."""
        others = set(x.varying) - {axis}
        if not others or self.tied_along(x, others) or self.tied_along(x, {axis}):
            return x.along(axis)
        rows = np.moveaxis(x.core.numpy(), axis, 0).reshape(x.core.shape[axis], -1)
        found = np.array([self.draft.extent(row) for row in rows], dtype=np.int64)
        if axis == x.varying[-1]:
            self.draft.features.update(zip(found.tolist(), rows, strict=True))
        return found

    def channels(self, x: Value, axis: int) -> Slots | None:
        """The slot of every index along ``axis``; None where channels lie along other axes only."""
        axis %= len(x.shape)
        data = isinstance(x, Param) and len(x.long) > 1 and axis in x.long and x.made is None and not x.turned
        x = self.along_of(x, axis) if data and isinstance(x, Param) else self.labelled(x)
        n = x.shape[axis]
        if x.varying == [axis]:
            return x.slots()
        if not x.varying:
            return np.full(n, int(x.core.reshape(-1)[0]), dtype=np.int64)
        if axis not in x.varying:
            parts = np.unique(x.slots())
            if not self.draft.pinned(parts).all():
                return None
            # What differs along other axes is of a fixed size: two inputs in one batch.
            one = self.draft.new(1)
            self.emit(Map(one, tuple(parts[k : k + 1] for k in range(len(parts))), "or"))
            self.keep(one, "an input of a fixed size", PinCode.FIXED_WIDTH)
            return np.full(n, int(one[0]), dtype=np.int64)
        rows = np.moveaxis(x.core.numpy(), axis, 0).reshape(n, -1)
        dst = self.draft.new(n)
        columns = tuple(rows[:, k].copy() for k in range(rows.shape[1]))
        self.emit(Map(dst, columns, "or"))
        for c in columns:
            self.draft.tie(dst, c)
        return dst

    def is_of_heads(self, x: Labels, varying: set[int]) -> bool:
        """Is it one number for each head, which meets features of heads that both go?"""
        others = varying - set(x.varying)
        one = len(x.varying) == len(others) == 1 and all(x.shape[a] == 1 for a in others)
        return one and len(self.draft.groups) > 0

    def note_heads(self, x: Labels, number: int) -> None:
        """Remember which operators made the ``number`` heads of what attention reads. Features lay behind them, and
        each may be repeated."""
        mine = np.unique(self.draft.classes(x.slots()))
        for key, box in self.draft.boxes.items():
            at = box.varying[-2] if len(box.varying) > 1 else 0
            alike = len(box.varying) > 1 and number % box.core.shape[at] == 0
            if alike and self.forward.narrow and self.tied_along(box, {at}):
                continue  # features go already
            if alike and np.isin(self.draft.classes(box.slots()), mine).any():
                self.draft.heads[key] = at

    # -- what is known of labels --------------------------------------------------------------------------
    def is_constant(self, x: Any) -> bool:
        """Is ``x`` the same whatever the masks: a number, or a tensor that depends on no channel of the network?"""
        if not isinstance(x, Labels):
            return not isinstance(x, Param)
        return {*x.core.reshape(-1).tolist()} <= {self.draft.constant, self.draft.zero}

    def is_zero(self, x: Any) -> bool:
        """Is ``x`` the number zero, or a tensor of zeros whatever the input?"""
        if isinstance(x, Labels):
            return set(x.core.reshape(-1).tolist()) == {self.draft.zero}
        return not isinstance(x, Param) and bool(x == 0)

    def tied_along(self, x: Labels, axes: Set[int]) -> bool:
        """Are labels that differ along ``axes`` tied? Then nothing shrinks along these axes."""
        classes = self.draft.classes(x.core.numpy())
        first = classes
        for axis in axes & set(x.varying):
            first = first.take([0], axis)
        return bool((classes == first).all())

    def keeps_length(self, x: Labels, axis: int) -> bool:
        """Does nothing shrink along ``axis``? So it is where labels do not differ along it, or where they are tied
        and differ along another axis too."""
        return axis not in x.varying or (len(x.varying) > 1 and self.tied_along(x, {axis}))

    # -- facts ------------------------------------------------------------------------------------------
    def emit(self, fact: Fact) -> None:
        """Add a fact."""
        self.draft.emit(fact, self.place)

    def keep(self, slots: Slots, reason: str, code: PinCode) -> None:
        """Pin the classes of ``slots``."""
        self.draft.pin(slots, self.why(reason, code))

    def pin(self, x: Value, reason: str, code: PinCode) -> None:
        """Pin all channels of ``x``."""
        self.keep(self.labelled(x).slots(), reason, code)

    def note_tie(self, slots: Slots) -> None:
        """Remember that this operator ties ``slots``: reports say so."""
        self.draft.ties.append((int(slots.flat[0]), self.tie))

    def risk(self, slots: Slots) -> None:
        """Remember that the operator's arguments may be literals that count ``slots``: a trial will tell."""
        self.draft.risky[self.key] = Risk(self.line, slots)

    def source(self, slots: Slots, live: bool, flow: bool, reason: str, code: PinCode) -> None:
        """Add channels that nothing computes, and pin them."""
        self.emit(Source(slots, live, flow))
        self.keep(slots, reason, code)

    def read_all(self, inputs: Sequence[Value], reason: str, code: PinCode = PinCode.READ_WHOLE) -> int:
        """Pin all of ``inputs``; returns one slot that reads them."""
        src = [self.labelled(x).slots() for x in inputs]
        for s in src:
            self.keep(s, reason, code)
        dst = self.draft.new(1)
        self.emit(Barrier(dst, np.unique(np.concatenate(src)) if src else np.empty(0, dtype=np.int64)))
        self.keep(dst, reason, code)
        return int(dst[0])

    def barrier(self, inputs: Sequence[Value], reason: str, code: PinCode = PinCode.READ_WHOLE) -> Any:
        """Pin every input, and give outputs that no mask changes."""
        self.draft.fixed_macs += self.macs()
        slot, val = self.read_all(inputs, reason, code), self.outputs
        if isinstance(val, (tuple, list)):
            return tuple(uniform(slot, tuple(v.shape)) if isinstance(v, Tensor) else v for v in val)
        return uniform(slot, tuple(val.shape)) if isinstance(val, Tensor) else val

    def with_kept(self, x: Value, others: Sequence[Any], reason: str) -> Labels:
        """Labels of what is computed from ``x`` and ``others``, zero where ``x`` is. The others are pinned."""
        others = [o for o in others if not self.is_constant(o)]
        x = self.labelled(x)
        if not others:
            return x
        src, inverse = np.unique(x.core.numpy(), return_inverse=True)
        dst = self.draft.new(len(src))
        kept = np.full(len(src), self.read_all(others, reason), dtype=np.int64)
        self.emit(Map(dst, (src, kept), "and"))
        self.draft.tie(dst, src)
        return Labels(torch.from_numpy(dst[inverse.reshape(x.core.shape)]), x.shape)

    def without_channels(self, x: Labels, reason: str) -> Labels:
        """Pin ``x``; returns labels of it as a tensor without channels."""
        if not self.draft.is_data(x):
            return uniform(self.read_all([x], reason), x.shape)
        self.pin(x, reason, PinCode.READ_WHOLE)
        return self.constant(x.shape)

    def places(self, x: Labels) -> Labels:
        """Labels of indices at which values of ``x`` stood. An index is not zero where the value is."""
        src, inverse = np.unique(x.core.numpy(), return_inverse=True)
        dst = self.draft.new(len(src))
        self.emit(Map(dst, (src,), "place"))
        self.draft.tie(dst, src)
        self.draft.values.mapped(zip(dst.tolist(), src.tolist(), strict=True), "place")
        return Labels(torch.from_numpy(dst[inverse.reshape(x.core.shape)]), x.shape)

    def map(
        self,
        inputs: Sequence[Value],
        kind: Literal["or", "and", "const"],
        shape: tuple[int, ...] | None = None,
    ) -> Labels:
        """Labels of what an operator computes element by element from ``inputs``, which are broadcast.

        Args:
            inputs: what it reads.
            kind: when it is non-zero. ``or``: where any input is (a sum, a maximum); ``and``: where all are (a
                product); ``const``: everywhere (a sigmoid).
            shape: the shape of the result, where that is not the operator's.
        """
        shape = self.shape if shape is None else shape
        ndim = len(shape)
        labels = [x for x in inputs if isinstance(x, Labels)]
        varying = {a + ndim - len(x.shape) for x in labels for a in x.varying}
        free = {a + ndim - len(x.shape) for x in labels for a in x.varying if not self.keeps_length(x, a)}
        xs = self.on_one_axis([self.aligned(x, varying if len(varying) == 1 else free, ndim) for x in inputs])
        varying = {a for x in xs for a in x.varying}
        partial = [kind == "and" and self.is_of_heads(x, varying) for x in xs]
        self._pin_misfits([x for x, of_heads in zip(xs, partial, strict=True) if not of_heads], varying)
        cores = np.broadcast_arrays(*[x.core.numpy() for x in xs])
        rows = np.stack([c.reshape(-1) for c in cores])
        tuples, inverse = np.unique(rows, axis=1, return_inverse=True)
        dst = self.draft.new(tuples.shape[1])
        self.emit(Map(dst, tuple(t.copy() for t in tuples), kind))
        tied = 0
        for x, t, of_heads in zip(xs, tuples, partial, strict=True):
            if of_heads:  # as long as what it meets, where that has any feature
                continue
            one = not varying and not self.draft.pinned(t).any()  # the only channel of a tensor that may go
            if x.varying or one:  # axes that it lacks are of a fixed length
                self.draft.tie(dst, t)
                tied += 1
        if tied > 1:
            self.note_tie(dst)
        if tied == 0:  # everything behind it is there whatever the masks, and so is this
            self.draft.pin(dst, self.draft.pins[self.draft.find(int(tuples[0, 0]))])
        self.draft.values.mapped(zip(dst.tolist(), *tuples.tolist(), strict=True), kind)
        return Labels(torch.from_numpy(np.asarray(dst[inverse.reshape(cores[0].shape)])), shape)

    def _pin_misfits(self, xs: list[Labels], varying: set[int]) -> None:
        """Pin inputs whose labels vary along other axes than those of the rest."""
        for x in xs:
            mine = set(x.varying)
            if not mine:
                for a in varying:
                    if x.shape[a] == 1:  # broadcast: must not shrink to nothing
                        self.pin(x, "broadcast along channels", PinCode.ONE_STAYS)
                    elif not all(self.keeps_length(y, a) for y in xs):
                        for y in xs:
                            self.pin(y, "meets a tensor of fixed width", PinCode.FIXED_WIDTH)
            elif mine != varying and not all(self.tied_along(y, varying - mine) for y in xs):
                for y in xs:
                    self.pin(y, "meets a tensor that varies along another axis", PinCode.FIXED_WIDTH)

    def on_one_axis(
        self, xs: list[Labels], reason: str = "meets a tensor that varies along another axis"
    ) -> list[Labels]:
        """Inputs whose labels vary along one axis at most, or as those with the most channels to lose do.

        Of those that vary along different axes, the ones with fewer channels to lose are pinned: a window over
        time, or a kernel for every position, is then as any number. So is what varies only along features, where
        heads go whole.
        """

        def weight(x: Labels) -> tuple[bool, bool, int]:
            classes = self.draft.classes(x.slots())
            left = len(np.unique(classes[~self.draft.pinned(classes)]))
            return not self.draft.is_data(x), len(x.varying) > 1, left

        main = max((x for x in xs if x.varying), key=weight, default=None)
        if main is None:
            return xs
        axes = set(main.varying)
        return [
            self.without_channels(x, reason)
            if x.varying
            and (
                (set(x.varying) < axes and all(self.keeps_length(main, a) for a in x.varying))
                or (
                    axes.isdisjoint(x.varying)
                    and all(x.shape[a] == 1 for a in axes)
                    and not self.tied_along(x, set(x.varying))
                )
            )
            else x
            for x in xs
        ]

    def aligned(self, x: Value, varying: set[int], ndim: int) -> Labels:
        """``x`` with leading axes added. A parameter gets labels along its only axis along which others vary."""
        shape = (1,) * (ndim - len(x.shape)) + x.shape
        axes = [a for a in varying if isinstance(x, Param) and a - (ndim - len(x.shape)) in x.long]
        if isinstance(x, Param) and len(axes) == 1:
            return along(self.along_of(x, axes[0] - (ndim - len(x.shape))).slots(), axes[0], shape)
        core = self.labelled(x).core
        return Labels(core.reshape((1,) * (ndim - core.ndim) + tuple(core.shape)), shape)

    def merged(self, x: Labels, axes: list[int], kind: Literal["or", "const"]) -> Labels:
        """Labels of what an operator computes from everything along ``axes``, which have a fixed length: one slot
        for all of it."""
        core = np.moveaxis(x.core.numpy(), axes, range(len(axes)))
        rest = core.shape[len(axes) :]
        columns = core.reshape(-1, int(np.prod(rest)))
        tuples, inverse = np.unique(columns, axis=1, return_inverse=True)
        dst = self.draft.new(tuples.shape[1])
        self.emit(Map(dst, tuple(t.copy() for t in tuples), kind))
        for t in tuples:
            self.draft.tie(dst, t)
        kept = [1 if a in axes else n for a, n in enumerate(x.core.shape)]
        return Labels(torch.from_numpy(dst[inverse.reshape(rest)]).reshape(kept), x.shape)

    def total(self, src: Slots) -> int:
        """One slot that reads all of ``src``: a sum, in which zeros do not show."""
        dst = self.draft.new(1)
        self.emit(Mix(dst, src, 1, False, None))
        self.keep(dst, "a sum over channels", PinCode.WHOLE_TENSOR)
        return int(dst[0])

    # -- cost -------------------------------------------------------------------------------------------
    def count(self, slots: Slots, each: int | None = None, *more: tuple[Slots, int]) -> None:
        """Say which of the operator's multiply-accumulates depend on the mask: ``each`` for every one of ``slots``
        (None: an equal part), and ``more`` such. The others are there whatever the mask, and so are all where there
        are fewer than that."""
        macs = self.macs()
        each = macs // max(len(slots), 1) if each is None else each
        for some, per in ((slots, each), *more):
            if 0 < per * len(some) <= macs:
                self.draft.products.append(Product(some, per))
                macs -= per * len(some)
        self.draft.fixed_macs += macs
