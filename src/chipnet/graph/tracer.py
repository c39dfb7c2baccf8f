"""What a rule may do: read labels of its inputs, emit facts, give labels to its outputs.

Labels of a tensor are the slot of every element, stored at the smallest shape that broadcasts to the tensor's
(``[1, C, 1, 1]`` for a feature map). Operators that only move data are run on labels as they would be on data.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from chipnet.graph.channels import (
    Barrier,
    ChannelGraph,
    Host,
    Layer,
    Map,
    Mix,
    Norm,
    Number,
    Pin,
    Product,
    Rescaled,
    Resize,
    Risk,
    Slots,
    Source,
    is_within,
)
from chipnet.graph.numbers import Claim, count
from chipnet.program.counting import counting
from chipnet.program.watch import Call, Shape, Watch, attributes_in, is_from_attribute, source_of

if TYPE_CHECKING:
    from chipnet.graph.computed_weights import Made

Realisation = Literal["plain", "indexed"]
STANDARD_MIX = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
STANDARD_NORM = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
FITTED = frozenset("in_channels out_channels in_features out_features num_features num_parameters".split())  # noqa: SIM905
"""Widths that PyTorch's layers keep as numbers: surgery sets them by the tensors."""
STANDARD_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@dataclass(frozen=True)
class Labels:
    """Labels of one tensor: ``core`` broadcasts to ``shape``. ``param``: a parameter or buffer, not yet moved;
    ``computed``: the weight of a layer that computes it from parameters of its own, which surgery freezes;
    ``made``: one that goes on being computed (``param`` is then the largest of what it is made of);
    ``turned``: the two axes of the parameter have changed places."""

    core: Tensor | None
    shape: tuple[int, ...]
    param: str | None = None
    computed: bool = False
    made: Made | None = None
    turned: bool = False

    @property
    def varying(self) -> list[int]:
        """Axes along which labels differ."""
        return [] if self.core is None else [a for a, n in enumerate(self.core.shape) if n > 1]

    def full(self) -> Tensor:
        """Labels at the tensor's own shape."""
        assert self.core is not None
        return self.core.expand(self.shape)

    def along(self, axis: int) -> Slots:
        """Labels along an axis, of the first of each of the others."""
        assert self.core is not None
        core = self.core.movedim(axis, 0).reshape(self.core.shape[axis], -1)[:, 0]
        return core.expand(self.shape[axis]).numpy().copy()

    def slots(self) -> Slots:
        """All labels, flat."""
        assert self.core is not None
        return self.core.reshape(-1).numpy()


def _calls(node: Node) -> dict[str, str]:
    """The calls of modules that a node is in, from the outermost: a name for each, and the module's path."""
    return {call: path for call, (path, _) in (node.meta.get("nn_module_stack") or {}).items()}


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a node's (first) output."""
    val = node.meta["val"]
    val = val[0] if isinstance(val, (tuple, list)) else val
    return tuple(int(n) for n in val.shape)


def shrink(full: Tensor) -> Tensor:
    """The smallest core of a full label tensor."""
    for axis, n in enumerate(full.shape):
        if n > 1:
            first = full.narrow(axis, 0, 1)
            if full.stride(axis) == 0 or bool((full == first).all()):
                full = first
    return full


@dataclass(frozen=True)
class Mark:
    """Where the graph stood before a rule was asked: how many slots, facts, layers and index maps it had, what it
    had counted, and which modules stood in its tables."""

    slots: int
    facts: int
    layers: int
    products: int
    resizes: int
    macs: int
    tables: tuple[frozenset[str], ...]


class Tracer:
    """Walks the captured graph; rules in ``_rules`` call the methods below."""

    def __init__(self, graph: ChannelGraph, modules: dict[str, nn.Module], realisation: Realisation) -> None:
        self.graph, self.modules, self.realisation = graph, modules, realisation
        self.node: Node = None  # type: ignore[assignment]
        self.calls: dict[str, int] = {}
        self.parameters: frozenset[str | None] = frozenset()
        self.literal: Mapping[str, str] = {}
        """Operators whose sizes do not follow widths, with the reason. All others are taken to follow them."""
        self.watch: Watch | None = None
        self.fused: frozenset[str] = frozenset()
        """Modules inside which an index map would be lost: a method that fuses weights does not see it."""
        self.made: dict[int, Any] = {}
        """By the number of a call of a function: labels of what it gave."""
        self.claims: list[Claim] = []
        self.alike: list[tuple[Slots, Slots, Pin]] = []
        """Slots of which there are equally many, as an operator received the size of one tensor for another."""
        self.counting = True
        self.foreign: set[str] = set()
        """Parameters that a module reads which does not own them: no gate can be folded into these."""
        self.entered: dict[str, set[str]] = defaultdict(set)
        self._first: dict[int, str] = {}
        for name, module in modules.items():
            self._first.setdefault(id(module), name)
        self._params: dict[tuple[str, int], Slots] = {}
        self._origin: dict[int, int] = {}
        self._shifted: set[int] = set()
        """Slots that are functions of their origin, and not zero where it is."""
        self._stays: set[int] = set()
        """Slots that are not zero whatever the masks."""
        self.constant = graph.new(1)
        self.zero = graph.new(1)
        graph.facts.append(Source(self.constant, live=True, flow=False))
        graph.facts.append(Source(self.zero, live=False, flow=False))
        graph.pin(self.constant, Pin("a constant", "", "", ""))
        graph.pin(self.zero, Pin("a constant", "", "", ""))

    # -- where we are -----------------------------------------------------------------------------------
    @property
    def module(self) -> str:
        """The innermost module whose forward contains the current node."""
        return self.named(next(reversed(_calls(self.node).values()), ""))

    def named(self, path: str) -> str:
        """The module at a path; one with two names has the first."""
        path = re.sub(r"@\d+", "", path)
        return self._first.get(id(self.modules.get(path)), path)

    def enter(self, nodes: Iterable[Node]) -> None:
        """Remember by which calls each module is entered."""
        for call, path in {c for node in nodes for c in _calls(node).items()}:
            self.entered[self.named(path)].add(call)

    @property
    def line(self) -> str:
        """File and line of the user's code that made the current node."""
        found = re.findall(r'File "([^"]+)", line (\d+)', self.node.meta.get("stack_trace") or "")
        outside = [f for f in found if "/torch/nn/" not in f[0].replace("\\", "/")] or found
        return f"{outside[-1][0].rsplit('/', 1)[-1]}:{outside[-1][1]}" if outside else ""

    def why(self, reason: str) -> Pin:
        return Pin(reason, self.node.name, self.module, self.line)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the current node's (first) output."""
        return shape_of(self.node)

    # -- sizes kept as numbers ----------------------------------------------------------------------------
    @property
    def is_literal(self) -> bool:
        """Are the current operator's sizes known not to follow widths?"""
        return self.key in self.literal

    def pin_literal(self, x: Labels, reason: str) -> None:
        """Keep all channels of ``x``, whose size the current operator has as a number that stays."""
        self.pin(x, self.literal.get(self.key) or reason)

    @property
    def key(self) -> str:
        """Name of the current operator, unique over the graphs that are walked."""
        return self.node.name if self.counting else f"training {self.node.name}"

    @property
    def call(self) -> Call | None:
        """How the current operator was called, where it received numbers from attributes."""
        return self.watch.of(self.node) if self.watch is not None else None

    def given(self, name: str, position: int) -> Any:
        """An argument as the current operator received it, if any of them came from attributes."""
        call = self.call
        return call.given(name, position) if call is not None else None

    def sizes(self, shape: tuple[int, ...], skip: int = 0, first: int = 1) -> list[Any]:
        """The numbers that say how long the axes of ``shape`` are, one each (None: not known), as the current
        operator received them from its argument ``first`` on, after ``skip`` others."""
        numbers = self.call.numbers(first)[skip:] if self.call is not None else []
        if len(numbers) != len(shape) or any(n not in (-1, s) for n, s in zip(numbers, shape, strict=True)):
            return [None] * len(shape)
        return [None if n == -1 else n for n in numbers]

    def claim(self, number: Any, slots: Slots, empty: bool = False) -> bool:
        """``number``, which the current operator received, counts ``slots``: is it from attributes? Few operators
        take a width of 0; those that do say ``empty``."""
        if isinstance(source := source_of(number), Shape):
            self._as_wide(source, slots)
        if not is_from_attribute(number) or self.call is None:
            return False
        self.call.claimed.add(number.source)
        if all(a.name in FITTED and self._is_torchs(a.module) for a in attributes_in(number.source)):
            return True  # surgery keeps those of layers true anyway
        self.claims.append(Claim(self.key, number.source, slots.copy()))
        if not empty:
            self.graph.pin(slots[:1], self.why(f"'{number.source}' must not become 0"))
        return True

    def _as_wide(self, size: Shape, slots: Slots) -> None:
        """There are as many ``slots`` as channels of a tensor."""
        x = None if size.made is None else self.made.get(size.made)
        if isinstance(x, Labels) and size.axis in x.varying and x.shape[size.axis] == len(slots):
            self.alike.append((slots.copy(), x.along(size.axis), self.why(f"tied by {self.node.target}")))

    def settle_widths(self) -> None:
        """Tie what may differ in number, where an operator received the size of one tensor for another."""
        for slots, others, why in self.alike:
            if count(self.graph, slots) != count(self.graph, others):
                self.graph.tie(slots, others)
                self.graph.meetings.append((int(slots[0]), why))

    def _is_torchs(self, module: str) -> bool:
        return type(self.modules[module]).__module__.startswith("torch.nn.")

    def risk(self, slots: Slots) -> None:
        """The current operator's arguments may be numbers of the user's."""
        self.graph.risky[self.key] = Risk(self.line, slots)

    # -- labels -----------------------------------------------------------------------------------------
    def uniform(self, slot: int, shape: tuple[int, ...]) -> Labels:
        """A tensor all of whose elements share one slot."""
        return Labels(torch.full([1] * len(shape), slot, dtype=torch.int64), shape)

    def along(self, slots: Slots, axis: int, shape: tuple[int, ...]) -> Labels:
        """A tensor whose label depends on the index along ``axis`` only."""
        core = torch.from_numpy(np.ascontiguousarray(slots))
        return Labels(core.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))]), shape)

    def labelled(self, x: Labels) -> Labels:
        """Give a raw parameter labels: one slot per index along its only long axis, else one rigid slot."""
        if x.core is not None:
            return x
        long = [a for a, n in enumerate(x.shape) if n > 1]
        if x.param is not None and len(long) == 1:
            return self.along(self.param_slots(x.param, long[0], x.shape[long[0]]), long[0], x.shape)
        if x.param is not None:
            for axis, n in enumerate(x.shape[::-1] if x.turned else x.shape):
                if n > 1:
                    why = self.why("a parameter with several axes is used as data")
                    self.graph.pin(self.param_slots(x.param, axis, n), why)
        return self.uniform(int(self.constant[0]), x.shape)

    @property
    def data(self) -> set[str]:
        """Parameters that are used as data."""
        return {name for name, _ in self._params}

    def param_slots(self, name: str, axis: int, size: int) -> Slots:
        """Slots of a parameter that is used as data along ``axis``."""
        if (name, axis) not in self._params:
            slots = self.graph.new(size)
            self.graph.facts.append(Source(slots, live=True, flow=False))
            self.graph.own(name, axis, slots)
            self._params[name, axis] = slots
        return self._params[name, axis]

    def moved(self, full: Tensor) -> Labels:
        """Labels that came out of a data-movement operator; what remains must stay a box."""
        out = Labels(shrink(full), tuple(full.shape))
        if len(out.varying) > 1:
            self.box(out)
        return out

    def box(self, x: Labels) -> None:
        """A tensor is a dense box: keep one axis prunable, tie labels that share an index along it.

        Of the axes along which labels vary, the one that leaves the most classes is taken.
        """
        assert x.core is not None
        core = self.graph.classes(x.core.numpy())
        found = []
        for axis in x.varying:
            rows = np.moveaxis(core, axis, 0).reshape(core.shape[axis], -1)
            trial = ChannelGraph()
            _, ids = np.unique(rows, return_inverse=True)
            trial.new(int(ids.max()) + 1)
            ids = ids.reshape(rows.shape)
            for row in ids:
                trial.tie_all(np.unique(row).tolist())
            found.append((len({trial.find(i) for i in range(trial.slots)}), axis, rows))
        _, _, rows = max(found, key=lambda f: (f[0], -f[1]))
        for row in rows:
            self.graph.tie_all(np.unique(row).tolist())
        self.meet(rows)

    def meet(self, slots: Slots) -> None:
        """Remember that the current operator ties ``slots``."""
        self.graph.meetings.append((int(slots.flat[0]), self.why(f"tied by {self.node.target}")))

    def channels(self, x: Labels, axis: int) -> Slots | None:
        """Slot of every index along ``axis``; None where channels lie along other axes only."""
        x = self.labelled(x)
        assert x.core is not None
        axis %= len(x.shape)
        n = x.shape[axis]
        if x.varying == [axis]:
            return x.slots()
        if not x.varying:
            return np.full(n, int(x.core.reshape(-1)[0]), dtype=np.int64)
        if axis not in x.varying:
            parts = np.unique(x.slots())
            if not self.graph.pinned(parts).all():
                return None
            one = self.graph.new(
                1
            )  # what differs along other axes is of a fixed size: two inputs in one batch
            self.graph.facts.append(Map(one, tuple(parts[k : k + 1] for k in range(len(parts))), "or"))
            self.graph.pin(one, self.why("an input of a fixed size"))
            return np.full(n, int(one[0]), dtype=np.int64)
        rows = np.moveaxis(x.core.numpy(), axis, 0).reshape(n, -1)
        dst = self.graph.new(n)
        columns = tuple(rows[:, k].copy() for k in range(rows.shape[1]))
        self.graph.facts.append(Map(dst, columns, "or"))
        for c in columns:
            self.graph.tie(dst, c)
        return dst

    # -- facts ------------------------------------------------------------------------------------------
    def pin(self, x: Labels, reason: str) -> None:
        """Keep all channels of ``x``."""
        self.graph.pin(self.labelled(x).slots(), self.why(reason))

    def source(self, slots: Slots, live: bool, flow: bool, reason: str) -> None:
        self.graph.facts.append(Source(slots, live, flow))
        self.graph.pin(slots, self.why(reason))

    def hold(self, inputs: list[Labels], reason: str) -> Slots:
        """Keep all of ``inputs``: one slot that reads them."""
        src = [self.labelled(x).slots() for x in inputs]
        for s in src:
            self.graph.pin(s, self.why(reason))
        dst = self.graph.new(1)
        all_src = np.unique(np.concatenate(src)) if src else np.empty(0, dtype=np.int64)
        self.graph.facts.append(Barrier(dst, all_src))
        self.graph.pin(dst, self.why(reason))
        return dst

    def barrier(self, inputs: list[Labels], reason: str) -> Any:
        """Pin every input and give outputs of a fixed size."""
        self.graph.fixed_macs += self.macs()
        dst = self.hold(inputs, reason)
        val = self.node.meta.get("val")
        if isinstance(val, (tuple, list)):
            return tuple(
                self.uniform(int(dst[0]), tuple(v.shape)) if isinstance(v, Tensor) else v for v in val
            )
        return self.uniform(int(dst[0]), tuple(val.shape)) if isinstance(val, Tensor) else val

    def beside(self, x: Labels, others: list[Any], reason: str) -> Labels:
        """``x``, computed with ``others``, which are kept whole: zero where ``x`` is, whatever they are."""
        others = [o for o in others if not self.is_constant(o)]
        x = self.labelled(x)
        if not others:
            return x
        assert x.core is not None
        src, inverse = np.unique(x.core.numpy(), return_inverse=True)
        dst = self.graph.new(len(src))
        whole = np.full(len(src), int(self.hold(others, reason)[0]), dtype=np.int64)
        self.graph.facts.append(Map(dst, (src, whole), "and"))
        self.graph.tie(dst, src)
        return Labels(torch.from_numpy(dst[inverse.reshape(x.core.shape)]), x.shape)

    def places(self, x: Labels) -> Labels:
        """Where values of ``x`` stood: numbers, not zero at zero."""
        assert x.core is not None
        src, inverse = np.unique(x.core.numpy(), return_inverse=True)
        dst = self.graph.new(len(src))
        self.graph.facts.append(Map(dst, (src,), "place"))
        self.graph.tie(dst, src)
        for slot, source in zip(dst.tolist(), src.tolist(), strict=True):
            self._origin[slot] = self.origin(source)
            self._shifted.add(slot)
        return Labels(torch.from_numpy(dst[inverse.reshape(x.core.shape)]), x.shape)

    def is_constant(self, x: Any) -> bool:
        """The same whatever the masks: a number, or a tensor that no channel of the network goes into."""
        if not isinstance(x, Labels):
            return True
        return x.core is not None and {*x.core.reshape(-1).tolist()} <= {
            int(self.constant[0]),
            int(self.zero[0]),
        }

    @property
    def _tables(self) -> tuple[dict[str, Any], ...]:
        """What surgery does to modules and numbers beside cutting tensors."""
        return self.graph.pools, self.graph.rescaled, self.graph.risky

    def mark(self) -> Mark:
        """Where the graph stands now: what `undo` goes back to."""
        g = self.graph
        tables = tuple(frozenset(table) for table in self._tables)
        lists = len(g.facts), len(g.layers), len(g.products), len(g.resizes)
        return Mark(g.slots, *lists, g.fixed_macs, tables)

    def undo(self, mark: Mark, reason: str) -> None:
        """A rule failed halfway: what it has made since ``mark`` is kept whole, and is no layer or module that
        surgery could replace. (Ties and pins stay: they only keep more.)"""
        g = self.graph
        g.pin(np.arange(mark.slots, g.slots, dtype=np.int64), self.why(reason))
        for i, fact in enumerate(g.facts[mark.facts :], mark.facts):
            if isinstance(fact, (Mix, Norm)):
                g.facts[i] = Barrier(fact.dst, fact.src)
        del g.layers[mark.layers :]
        del g.products[mark.products :]
        del g.resizes[mark.resizes :]
        g.fixed_macs = mark.macs
        for name in [n for n, facts in g.owners.items() if facts[-1] >= mark.facts]:
            del g.owners[name]
        for table, before in zip(self._tables, mark.tables, strict=True):
            for name in table.keys() - before:
                del table[name]

    def count(self, slots: Slots, each: int | None = None) -> None:
        """Of the current operator's multiply-accumulates ``each`` (None: an equal part) go with each of ``slots``;
        the rest is there whatever the masks, and so are all where there are fewer than that."""
        macs = self.macs()
        each = macs // max(len(slots), 1) if each is None else each
        if 0 < each * len(slots) <= macs:
            self.graph.products.append(Product(slots, each))
            macs -= each * len(slots)
        self.graph.fixed_macs += macs

    def macs(self) -> int:
        """The current operator's own multiply-accumulates, by PyTorch's counter."""
        if not self.counting:
            return 0
        args, kwargs = torch.fx.node.map_arg(
            (self.node.args, self.node.kwargs), lambda n: n.meta.get("val", n)
        )
        fakes = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        if not any(f.is_floating_point() or f.is_complex() for f in fakes) or not callable(self.node.target):
            return 0
        try:
            with fakes[0].fake_mode, counting() as counter:  # type: ignore[attr-defined]
                self.node.target(*args, **kwargs)
            return int(counter.get_total_flops()) // 2
        # It cannot be rerun on fakes, or its sizes depend on values: the real forward counts it.
        except Exception:
            return 0

    def map(
        self,
        inputs: list[Labels],
        kind: Literal["or", "and", "const"],
        shape: tuple[int, ...] | None = None,
    ) -> Labels:
        """An elementwise operator of broadcast ``inputs``; its result has the current operator's shape, or
        ``shape``."""
        shape = self.shape if shape is None else shape
        ndim = len(shape)
        known = [x for x in inputs if x.core is not None]
        varying = {a + ndim - len(x.shape) for x in known for a in x.varying}
        xs = [self._aligned(x, varying, ndim) for x in inputs]
        xs = self._on_one_axis(xs)
        varying = {a for x in xs for a in x.varying}
        for x in xs:
            mine = set(x.varying)
            if not mine:
                for a in varying:
                    if x.shape[a] == 1:  # broadcast: must not shrink to nothing
                        self.pin(x, "broadcast along channels")
                    else:
                        for y in xs:
                            self.pin(y, "meets a tensor of fixed width")
            elif mine != varying and not all(self.fixed(y, varying - mine) for y in xs):
                for y in xs:
                    self.pin(y, "meets a tensor that varies along another axis")
        cores = np.broadcast_arrays(*[x.core.numpy() for x in xs])  # type: ignore[union-attr]
        rows = np.stack([c.reshape(-1) for c in cores])
        tuples, inverse = np.unique(rows, axis=1, return_inverse=True)
        dst = self.graph.new(tuples.shape[1])
        self.graph.facts.append(Map(dst, tuple(t.copy() for t in tuples), kind))
        met = 0
        for x, t in zip(xs, tuples, strict=True):
            one = not varying and not self.graph.pinned(t).any()  # the only channel of a tensor that may go
            if x.varying or one:  # axes that it lacks are of a fixed length
                self.graph.tie(dst, t)
                met += 1
        if met > 1:
            self.meet(dst)
        if met == 0:  # all that it is made of is there whatever the masks, and so is this
            self.graph.pin(dst, self.graph.pins[self.graph.find(int(tuples[0, 0]))])
        for slot, *sources in zip(dst.tolist(), *tuples.tolist(), strict=True):
            origins = {self.origin(s) for s in sources}
            if len(origins) == 1:
                self._origin[slot] = origins.pop()
                several = all if kind == "and" else any
                if kind == "const" or several(s in self._shifted for s in sources):
                    self._shifted.add(slot)
            if kind == "const" or (kind == "and" and self._stays.issuperset(sources)):
                self._stays.add(slot)
        return Labels(torch.from_numpy(np.asarray(dst[inverse.reshape(cores[0].shape)])), shape)

    def _on_one_axis(self, xs: list[Labels]) -> list[Labels]:
        """Of tensors whose labels vary along different axes, those with fewer channels to lose are kept whole: they
        are then as any number at every position (a window over time, a kernel for each position)."""

        def weight(x: Labels) -> tuple[bool, int]:
            classes = self.graph.classes(x.slots())
            return not self.is_data(x), len(np.unique(classes[~self.graph.pinned(classes)]))

        main = max((x for x in xs if x.varying), key=weight, default=None)
        if main is None:
            return xs
        axes = set(main.varying)
        return [
            self.whole(x, "meets a tensor that varies along another axis")
            if x.varying
            and axes.isdisjoint(x.varying)
            and all(x.shape[a] == 1 for a in axes)
            and not self.fixed(x, set(x.varying))
            else x
            for x in xs
        ]

    def is_data(self, x: Labels) -> bool:
        """Is ``x`` made of parameters or buffers that are used as data, and of nothing else?"""
        sources = {slot for slots in self._params.values() for slot in slots.tolist()}
        return x.core is not None and all(self.origin(s) in sources for s in x.slots().tolist())

    def whole(self, x: Labels, reason: str) -> Labels:
        """``x``, kept whole: from here on a tensor without channels."""
        if not self.is_data(x):
            return self.uniform(int(self.hold([x], reason)[0]), x.shape)
        self.pin(x, reason)
        return self.uniform(int(self.constant[0]), x.shape)

    def is_zero(self, x: Any) -> bool:
        """Is ``x`` zero whatever the input: a number, or a constant tensor?"""
        if isinstance(x, Labels):
            return x.core is not None and set(x.core.reshape(-1).tolist()) == set(self.zero.tolist())
        return bool(x == 0)

    def stays(self, x: Labels) -> bool:
        """Is ``x`` not zero, whatever the masks, as what is shifted by an ``eps`` is?"""
        return x.core is not None and self._stays.issuperset(x.core.reshape(-1).tolist())

    def vanishes(self, x: Labels) -> bool:
        """Is ``x`` zero where what it follows is zero?"""
        assert x.core is not None
        return self._shifted.isdisjoint(x.core.reshape(-1).tolist())

    def total(self, src: Slots) -> Slots:
        """One slot that reads all of ``src``: a sum, in which zeros do not show."""
        dst = self.graph.new(1)
        self.graph.facts.append(Mix(dst, src, 1, False, None))
        self.graph.pin(dst, self.why("a sum over channels"))
        return dst

    def rescales(self, x: Labels) -> bool:
        """Does the current operator, a mean over all that ``x`` varies along, only divide, after an ``eps`` of its
        module's was added, and has that a weight to multiply by? Then surgery makes up for fewer channels."""
        module, divided = self.modules.get(self.module), list(self.node.users)
        names = [n for n in ("weight", "gamma") if module is not None and n in module._parameters]
        if (
            not names
            or not isinstance(getattr(module, "eps", None), float)
            or not str(self.node.target).startswith("aten.mean")
            or not all(
                str(add.target) == "aten.add.Tensor"
                and add.args[1] == module.eps  # type: ignore[union-attr]
                and all(str(u.target) == "aten.div.Tensor" and u.args[1] is add for u in add.users)
                for add in divided
            )
        ):
            return False
        self.graph.rescaled[self.module] = Rescaled(self.module, names[0], x.slots())
        return True

    def gate_output(self, x: Labels) -> Labels:
        """A gate on the current module's output: after it, shut channels are zero."""
        src = x.slots()
        dst = self.graph.new(len(src))
        self.graph.tie(dst, src)
        (axis,) = x.varying
        host = Host(self.module, self.module, None, output=axis - len(x.shape))
        self.graph.facts.append(Norm(dst, src, host, module=self.module))
        return self.along(dst, axis, x.shape)

    def offer_gate(self, x: Any) -> None:
        """Note a tensor with channels that is the output of a module, called once: a gate could act there."""
        if not self.counting or not self.module or not isinstance(x, Labels) or len(x.varying) != 1:
            return
        if any(r.module == self.module for r in self.graph.resizes):
            return
        inner = next(reversed(_calls(self.node)))
        if self.entered[self.module] == {inner} and all(inner not in _calls(u) for u in self.node.users):
            self.graph.outputs[self.key] = self.module, x.slots()

    def fixed(self, x: Labels, axes: Set[int]) -> bool:
        """Do labels that differ along ``axes`` only exist together? Then nothing shrinks along these."""
        assert x.core is not None
        classes = self.graph.classes(x.core.numpy())
        first = classes
        for axis in axes & set(x.varying):
            first = first.take([0], axis)
        return bool((classes == first).all())

    def stays_as_long(self, x: Labels, axis: int) -> bool:
        """Does nothing shrink along ``axis``: labels are alike along it, or exist together and differ along another
        axis too?"""
        return axis not in x.varying or (len(x.varying) > 1 and self.fixed(x, {axis}))

    def across(self, x: Labels, axes: list[int], kind: Literal["or", "const"]) -> Labels:
        """An operator that combines what lies along ``axes`` of a fixed length: one label for all of it."""
        assert x.core is not None
        core = np.moveaxis(x.core.numpy(), axes, range(len(axes)))
        rest = core.shape[len(axes) :]
        columns = core.reshape(-1, int(np.prod(rest)))
        tuples, inverse = np.unique(columns, axis=1, return_inverse=True)
        dst = self.graph.new(tuples.shape[1])
        self.graph.facts.append(Map(dst, tuple(t.copy() for t in tuples), kind))
        for t in tuples:
            self.graph.tie(dst, t)
        kept = [1 if a in axes else n for a, n in enumerate(x.core.shape)]
        return Labels(torch.from_numpy(dst[inverse.reshape(rest)]).reshape(kept), x.shape)

    def origin(self, slot: int) -> int:
        """The slot that ``slot`` is an elementwise function of."""
        return self._origin.get(slot, slot)

    def follows(self, x: Labels, of: Labels) -> bool:
        """Is every element of ``x`` a function of the same element of ``of`` alone, and of no other?"""
        if x.core is None or of.core is None or len(x.shape) != len(of.shape):
            return False
        if any(x.shape[a] != of.shape[a] for a in {*x.varying, *of.varying}):
            return False
        a, b = torch.broadcast_tensors(x.core, of.core)
        pairs = zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True)
        return all(self.origin(i) == self.origin(j) for i, j in pairs)

    def _aligned(self, x: Labels, varying: set[int], ndim: int) -> Labels:
        """``x`` with leading axes added, and a raw parameter labelled along the axis the others vary on."""
        shape = (1,) * (ndim - len(x.shape)) + x.shape
        if x.core is None and x.param is not None and len(varying) == 1:
            (axis,) = varying
            if shape[axis] > 1:
                mine = axis - (ndim - len(x.shape))
                return self.along(self.param_slots(x.param, mine, shape[axis]), axis, shape)
        core = self.labelled(x).core
        assert core is not None
        return Labels(core.reshape((1,) * (ndim - core.ndim) + tuple(core.shape)), shape)

    # -- layers -----------------------------------------------------------------------------------------
    def host(self, weight: Labels | None, bias: Labels | None, axis: int = 0) -> Host | None:
        """The affine parameters of the current node, where a gate can be folded into them."""
        if weight is not None and weight.computed and weight.param is not None:
            output = self.graph.frozen[self.module].axis
            return Host(self.module, weight.param, bias.param if bias is not None else None, axis, output)
        if weight is None or weight.param is None or (bias is not None and bias.param is None):
            return None
        if weight.made is not None or (
            bias is not None and bias.made is not None
        ):  # gates do not pass through
            return None
        if not self.parameters.issuperset(w.param for w in (weight, bias) if w is not None):  # a buffer
            return None
        owner = weight.param.rpartition(".")[0]
        names = [t.param for t in (weight, bias) if t is not None and t.param is not None]
        if any(n.rpartition(".")[0] != self.module for n in names):
            self.foreign.update(names)  # read by another module: no one forward call to fold the gate into
            return None
        return Host(owner, weight.param, bias.param if bias is not None else None, axis)

    def own(self, x: Labels, owned: Mapping[int, Slots]) -> None:
        """Indices along axes of a layer's weight or bias belong to slots."""
        if x.made is not None:
            x.made.own(self, owned)
        elif x.param is not None:
            for axis, slots in owned.items():
                self.graph.own(x.param, axis, slots)

    def owned(self, weight: str, standard: tuple[type, ...], frozen: bool = False) -> str | None:
        """The module that is exactly this operator, so that its call can be replaced or re-indexed."""
        owner = weight.rpartition(".")[0]
        is_standard = frozen or type(self.modules.get(owner)) in standard
        return owner if owner == self.module and is_standard else None

    def _in(self, outer: Slots, module: str, axis: int) -> Slots:
        """In the indexed realisation: a module may read fewer channels than the tensor has."""
        inner = self.graph.new(len(outer))
        self.graph.facts.append(Map(inner, (outer,), "or"))
        self.graph.resizes.append(Resize(module, "input", axis, outer, inner))
        return inner

    def mix(
        self,
        x: Slots,
        weight: Labels,
        bias: Labels | None,
        *,
        groups: int = 1,
        transposed: bool = False,
        rows: int,
        axis: int,
        macs_per: int,
        area: int,
    ) -> Slots:
        """A convolution or linear layer with a plain parameter as weight."""
        g = self.graph
        assert weight.param is not None
        frozen = weight.computed and not g.frozen[self.module].same
        module = self.owned(weight.param, STANDARD_MIX, frozen)
        apart = module if groups == 1 and self._once(weight.param) else None
        src = self._in(x, apart, axis) if apart and self._read_by_others() else x
        dst = g.new(rows)
        per_in, per_out = len(src) // groups, rows // groups
        src_g, dst_g = src.reshape(groups, per_in), dst.reshape(groups, per_out)
        if groups == 1:
            cols = src
        elif groups > per_in:  # many small groups: a group lives or dies whole
            for i, o in zip(src_g, dst_g, strict=True):
                g.tie_all([*i.tolist(), *o.tolist()])
            if per_in > 1 or per_out > 1:
                self.meet(dst)
            cols = np.repeat(self.constant, per_in)
        else:  # few wide groups: the same positions remain in each
            for column in [*src_g.T, *dst_g.T]:
                g.tie_all(column.tolist())
            self.meet(src)
            self.meet(dst)
            cols = src_g[0]
        out_axis, in_axis = (1, 0) if transposed else (0, 1)
        few = groups == 1 or groups <= per_in
        if transposed and groups > 1:
            self.own(weight, {0: src, 1: dst_g[0]} if few else {0: src})
        else:
            self.own(weight, {out_axis: dst, in_axis: cols} if few else {out_axis: dst})
        if bias is not None:
            self.own(bias, {0: dst})
        host = self.host(weight, bias, out_axis) if not (transposed and groups > 1) else None
        g.facts.append(Mix(dst, src, groups, bias is not None, host, self.module))
        fact = len(g.facts) - 1
        name = module if module is not None else weight.param
        if not self.counting:
            macs_per = area = 0
        g.layers.append(Layer(fact, name, weight.param, dst, cols, macs_per, area))
        self._register(module, fact, src, dst, "convolution" if weight.shape[2:] else "linear layer")
        return self._out(dst, apart, axis) if apart and self._meets_others() else dst

    def norm(
        self,
        x: Slots,
        weight: Labels | None,
        bias: Labels | None,
        stats: list[Labels],
        axis: int,
        *,
        groups: int = 0,
        mixes: str | None = None,
    ) -> Slots:
        """A normalisation, with its affine parameters and statistics. ``groups``: in how many groups statistics mix
        channels; ``mixes``: why it cannot read less."""
        g = self.graph
        names = [t.param for t in (weight, bias, *stats) if t is not None and t.param is not None]
        plain = type(self.modules.get(self.module)) in STANDARD_NORM
        module = self.owned(names[0], STANDARD_NORM) if names else (self.module if plain else None)
        apart = module if names and self._once(names[0]) else None
        src = self._in(x, apart, axis) if apart and (mixes or self._read_by_others()) else x
        dst = g.new(len(src))
        g.tie(dst, src)
        if mixes is not None:
            g.pin(src, self.why(mixes))
        for n in names:
            g.own(n, 0, dst)
        if not names and plain:  # no tensor tells its width
            named = vars(self.modules[self.module])
            for name in {"num_features", "num_channels"} & named.keys():
                g.numbers[self.module, name, None] = Number(self.module, name, None, dst)
            if groups:
                g.pin(dst[:1], self.why("'num_groups' must not become 0"))
                first = dst.reshape(groups, -1)[:, 0]
                g.numbers[self.module, "num_groups", None] = Number(self.module, "num_groups", None, first)
        g.facts.append(Norm(dst, src, self.host(weight, bias), groups, self.module))
        self._register(module, len(g.facts) - 1, src, dst, "normalisation")
        return self._out(dst, apart, axis) if apart and (mixes or self._meets_others()) else dst

    def _once(self, weight: str) -> bool:
        if self.realisation == "plain" or self.calls.get(weight, 0) != 1:
            return False
        return not any(is_within(self.module, around) for around in self.fused)

    def _read_by_others(self) -> bool:
        """The tensor read here has other readers: they may want other channels of it."""
        source = self.node.args[0]
        return isinstance(source, Node) and len(source.users) > 1

    def _meets_others(self) -> bool:
        """What is written here meets another tensor, which may have other channels."""
        return any(len([a for a in n.all_input_nodes if a.op != "placeholder"]) > 1 for n in self.node.users)

    def _register(self, module: str | None, fact: int, src: Slots, dst: Slots, what: str) -> None:
        if module is not None:
            self.graph.owners.setdefault(module, []).append(fact)
        else:  # nothing can stand in for it when it is dead: it stays alive
            why = self.why(f"a {what} that is not a plain torch.nn module keeps one channel")
            self.graph.pin(dst[:1], why)
            self.graph.pin(src[:1], why)

    def _out(self, dst: Slots, module: str, axis: int) -> Slots:
        outer = self.graph.new(len(dst))
        self.graph.facts.append(Map(outer, (dst,), "or"))
        self.graph.resizes.append(Resize(module, "output", axis, outer, dst))
        return outer
