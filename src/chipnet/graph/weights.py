"""What does a layer with a weight emit? Facts, costs, hosts of gates and index maps; and parameters that belong to
slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from chipnet.graph.attributes import claim
from chipnet.graph.facts import (
    Host,
    Layer,
    LiveNorm,
    Map,
    Mix,
    Norm,
    Number,
    Pin,
    PinCode,
    Rescaled,
    Resize,
    Slots,
)
from chipnet.graph.groups import small_groups
from chipnet.graph.heads import gated_by_heads
from chipnet.graph.labels import Labels, Made, Param, Value
from chipnet.graph.operator import Operator
from chipnet.graph.standard import STANDARD_MIX, STANDARD_NORM
from chipnet.program.names import is_within
from chipnet.program.spelling import is_spelt

COMPUTED = "a weight that is computed: what is left of it need not be what it would be made of less"
_SIZES_FIRST = frozenset(["zeros", "ones", "full", "empty"])
FRESH = _SIZES_FIRST | {f"new_{kind}" for kind in _SIZES_FIRST}
"""Operators that make tensors of given sizes, out of nothing."""
_SIZED = frozenset(["view", "reshape", "_unsafe_view", "repeat", "tile", "expand", "broadcast_to", *FRESH])


def mix(
    op: Operator,
    x: Slots,
    weight: Param,
    bias: Param | None,
    *,
    rows: int,
    axis: int,
    macs_per: int,
    area: int,
    groups: int = 1,
    transposed: bool = False,
) -> Slots:
    """Emit a convolution or linear layer; returns the slots that it writes.

    Args:
        op: the call.
        x: the slots that it reads.
        weight, bias: its parameters.
        rows: how many channels it writes.
        axis: the axis of channels in what it reads and writes.
        macs_per: multiply-accumulates for each pair of a channel written and a channel read in its group.
        area: positions of each channel that is written.
        groups: the number of groups. Channels of a group read those of the same group.
        transposed: the first axis of the weight belongs to what is read.
    """
    g = op.draft
    frozen = weight.frozen and not g.frozen[op.module].same
    module = _owned(op, weight.name, STANDARD_MIX, frozen)
    mapped = module if groups == 1 and _once(op, weight.name) else None
    src = _input(op, x, mapped, axis) if mapped and _read_by_others(op) else x
    dst = g.new(rows)
    few = not small_groups(groups, len(src))
    cols = _grouped(op, src, dst, groups)
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    if transposed and groups > 1:
        own(op, weight, {0: src, 1: dst.reshape(groups, -1)[0]} if few else {0: src})
    else:
        own(op, weight, {out_axis: dst, in_axis: cols} if few else {out_axis: dst})
    if bias is not None:
        own(op, bias, {0: dst})
    host = host_of(op, weight, bias, out_axis) if not (transposed and groups > 1) else None
    op.emit(Mix(dst, src, groups, bias is not None, host, op.module))
    fact = len(g.facts) - 1
    if not op.forward.counting:
        macs_per = area = 0
    g.layers.append(Layer(fact, module or weight.name, weight.name, dst, cols, macs_per, area))
    _register(op, module, fact, src, dst, "convolution" if weight.shape[2:] else "linear layer")
    if host is not None and (grids := op.forward.grids.get(host.weight)):
        dst = gated_by_heads(op, dst, host, grids)
    return _output(op, dst, mapped, axis) if mapped and _meets_others(op) else dst


def _grouped(op: Operator, src: Slots, dst: Slots, groups: int) -> Slots:
    """Tie what a grouped layer keeps together; returns the channels that each row reads."""
    if groups == 1:
        return src
    src_g, dst_g = src.reshape(groups, -1), dst.reshape(groups, -1)
    per_in, per_out = src_g.shape[1], dst_g.shape[1]
    if small_groups(groups, len(src)):
        for i, o in zip(src_g, dst_g, strict=True):
            op.draft.tie_all(np.concatenate([i, o]))
        if per_in > 1 or per_out > 1:
            op.note_tie(dst)
        return np.full(per_in, op.draft.constant, dtype=np.int64)
    for column in [*src_g.T, *dst_g.T]:  # the same positions remain in each group
        op.draft.tie_all(column)
    op.note_tie(src)
    op.note_tie(dst)
    return src_g[0]


def norm(
    op: Operator,
    x: Slots,
    weight: Value | None,
    bias: Value | None,
    stats: Sequence[Value | None],
    axis: int,
    *,
    groups: int = 0,
    mixes: Pin | None = None,
    live: LiveNorm | Rescaled | None = None,
    of: int = 0,
) -> Slots:
    """Emit a normalisation; returns the slots that it writes.

    Args:
        op: the call.
        x: the slots that it reads.
        weight, bias: its affine parameters. Computed ones hold no gates.
        stats: its statistics.
        axis: the axis of channels.
        groups: in how many groups statistics mix channels; 0: every channel has its own.
        mixes: why all that it reads is kept, where that is so.
        live: how its statistics are those of live channels, where they can be.
        of: the axis of its affine parameters that belongs to channels.
    """
    g = op.draft
    names = [p.name for p in (weight, bias, *stats) if isinstance(p, Param)]
    if computed := [p for p in (weight, bias, *stats) if isinstance(p, Labels)]:
        kept = np.full(len(x), op.read_all(computed, COMPUTED, PinCode.COMPUTED), dtype=np.int64)
        op.keep(x, COMPUTED, PinCode.COMPUTED)
        both = g.new(len(x))  # what computes them is needed where the norm is
        op.emit(Map(both, (x, kept), "and"))
        g.tie(both, x)
        x = both
    plain = type(op.owner) in STANDARD_NORM
    module = _owned(op, names[0], STANDARD_NORM) if names else (op.module if plain else None)
    mapped = module if names and _once(op, names[0]) else None
    if live is not None and isinstance(op.owner, STANDARD_NORM):  # a subclass that does nothing else
        module = op.module
    src = _input(op, x, mapped, axis) if mapped and (mixes or _read_by_others(op)) else x
    dst = g.new(len(src))
    g.tie(dst, src)
    if mixes is not None:
        g.pin(src, mixes)
    for name in names:
        g.own(name, of, dst)
    if live is not None:
        _note_live(op, live, src)
    if not names and plain:  # no tensor tells its width
        named = vars(op.owner)
        for name in {"num_features", "num_channels"} & named.keys():
            g.numbers[op.module, name, None] = Number(op.module, name, None, dst)
        if "normalized_shape" in named:
            g.numbers[op.module, "normalized_shape", of] = Number(op.module, "normalized_shape", of, dst)
        if groups and live is None:
            op.keep(dst[:1], "'num_groups' must not become 0", PinCode.ONE_STAYS)
            first = dst.reshape(groups, -1)[:, 0]
            g.numbers[op.module, "num_groups", None] = Number(op.module, "num_groups", None, first)
    host = host_of(op, weight, bias, of)
    op.emit(Norm(dst, src, host, groups, op.module, "all" if live is None else "live"))
    _register(op, module, len(g.facts) - 1, src, dst, "normalisation")
    return _output(op, dst, mapped, axis) if mapped and (mixes or _meets_others(op)) else dst


def _note_live(op: Operator, how: LiveNorm | Rescaled, src: Slots) -> None:
    """Remember how statistics are those of live channels. A module that is called twice has one mask."""
    g = op.draft
    if isinstance(how, Rescaled):
        g.rescaled[op.module] = replace(how, slots=src)
        return
    known = g.live.setdefault(op.module, (how, src))
    if known[0] == how and len(known[1]) == len(src):
        g.tie(known[1], src)
    else:
        for slots in (known[1], src):
            op.keep(slots, "a norm that is called on several shapes", PinCode.FIXED_WIDTH)


# -- gates and stand-ins ----------------------------------------------------------------------------------------
def host_of(op: Operator, weight: Value | None, bias: Value | None, axis: int = 0) -> Host | None:
    """The affine parameters of a call where a gate can be folded into them, or None."""
    if not isinstance(weight, Param) or not isinstance(bias, Param | None):
        return None
    second = bias.name if bias is not None else None
    if weight.frozen:
        return Host(op.module, weight.name, second, axis, op.draft.frozen[op.module].axis)
    if weight.made is not None or (bias is not None and bias.made is not None):  # gates do not pass through
        return None
    names = [n for n in (weight.name, second) if n is not None]
    if not op.forward.parameters.issuperset(names):  # a buffer
        return None
    if any(n.rpartition(".")[0] != op.module for n in names):
        op.draft.foreign_reads.update(names)
    if not all(is_within(n, op.module) for n in names):
        op.draft.foreign.update(names)  # of a module outside: no one forward call to fold the gate into
        return None
    return Host(op.module, weight.name, second, axis)


def _owned(op: Operator, weight: str, standard: tuple[type, ...], frozen: bool = False) -> str | None:
    """The module whose forward is exactly this operator, so that surgery can replace it; None if there is none."""
    is_standard = frozen or type(op.forward.modules.get(weight.rpartition(".")[0])) in standard
    return op.module if weight.rpartition(".")[0] == op.module and is_standard else None


def _register(op: Operator, module: str | None, fact: int, src: Slots, dst: Slots, what: str) -> None:
    """Remember which module's fact it is. Where nothing can stand in for a dead layer, one channel is pinned."""
    if module is not None:
        op.draft.owners.setdefault(module, []).append(fact)
    else:
        code = PinCode.NEVER_EMPTY if op.owner is not None and is_spelt(op.owner) else PinCode.ONE_STAYS
        why = op.why(f"a {what} that is not a plain torch.nn module keeps one channel", code)
        op.draft.pin(dst[:1], why)
        op.draft.pin(src[:1], why)


# -- index maps -------------------------------------------------------------------------------------------------
def _once(op: Operator, weight: str) -> bool:
    """May index maps stand around a call? Its weight must be read once, and by no method that fuses weights."""
    if op.forward.realisation == "plain" or op.forward.readers.get(weight, 0) != 1:
        return False
    return not any(is_within(op.module, around) for around in op.forward.fused)


def _read_by_others(op: Operator) -> bool:
    """Does the tensor that is read have other readers? They may want other channels of it."""
    source = op.node.args[0]
    return isinstance(source, Node) and len(source.users) > 1


def _meets_others(op: Operator) -> bool:
    """Does what is written meet another tensor? That may have other channels."""
    return any(len([a for a in n.all_input_nodes if a.op != "placeholder"]) > 1 for n in op.node.users)


def _input(op: Operator, outer: Slots, module: str, axis: int) -> Slots:
    """Put an index map before a module (``indexed``): it may read fewer channels than the tensor has."""
    inner = op.draft.new(len(outer))
    op.emit(Map(inner, (outer,), "or"))
    op.draft.resizes.append(Resize(module, "input", axis, outer, inner))
    return inner


def _output(op: Operator, inner: Slots, module: str, axis: int) -> Slots:
    """Put an index map after a module (``indexed``): it may write fewer channels than the tensor has."""
    outer = op.draft.new(len(inner))
    op.emit(Map(outer, (inner,), "or"))
    op.draft.resizes.append(Resize(module, "output", axis, outer, inner))
    return outer


# -- parameters -------------------------------------------------------------------------------------------------
def own(op: Operator, x: Param, owned: Mapping[int, Slots]) -> None:
    """Say that indices along axes of a weight or bias belong to slots: ``{axis: slots}``."""
    if x.made is not None:
        _own_made(op, x.made, owned)
    else:
        for axis, slots in owned.items():
            op.draft.own(x.name, axis, slots)


def _own_made(op: Operator, made: Made, owned: Mapping[int, Slots]) -> None:
    """Say that indices along axes of a computed weight belong to slots, and with them the indices of everything
    that it is made of. What else it reads is pinned."""
    cut = set()
    for axis, slots in owned.items():
        places = made.along[axis]
        if places is None:
            op.keep(slots, COMPUTED, PinCode.COMPUTED)
        for node, at in (places or {}).items():
            if node in made.leaves:
                op.draft.own(made.leaves[node], at, slots)
                cut.add((node, at))
            elif op.at(node).name in _SIZED:
                _follow(op.at(node), at, slots)
    for leaf, name in made.leaves.items():
        for at, n in enumerate(op.at(leaf).shape):
            if n > 1 and (leaf, at) not in cut:
                op.keep(op.data_slots(name, at, n), COMPUTED, PinCode.COMPUTED)


def _follow(op: Operator, axis: int, slots: Slots) -> None:
    """Claim the size of an operator behind a computed weight that counts ``slots``."""
    sizes: Any = next((a for a in op.node.args if isinstance(a, (list, tuple))), ())
    if len(sizes) == len(op.shape) and sizes[axis] == -1:
        return
    if op.is_literal:
        reason = "a weight that is computed with sizes that do not follow"
        op.keep(slots, op.forward.literal[op.key] or reason, PinCode.FIXED_WIDTH)
    known = op.draft.risky.get(op.key)
    op.risk(slots if known is None else torch.tensor([*known.slots, *slots]).numpy())
    claim(op, op.sizes(op.shape, 0, 0 if op.name in _SIZES_FIRST else 1)[axis], slots)
