"""Which facts does the whole network emit? One walk over the nodes of a captured forward."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from chipnet._util.torch_private import calls_around, value_of
from chipnet.graph.activations import activations
from chipnet.graph.attributes import tie_features, tie_widths
from chipnet.graph.call import Forward
from chipnet.graph.channels import ChannelGraph
from chipnet.graph.draft import Draft
from chipnet.graph.facts import (
    Barrier,
    Heads,
    Host,
    Map,
    Mix,
    Norm,
    Pin,
    PinCode,
    Place,
    Realisation,
    Source,
)
from chipnet.graph.frozen_weights import computed_weights
from chipnet.graph.heads import kept_grids
from chipnet.graph.labels import Labels, Param, along, uniform
from chipnet.graph.norm_modules import norm_calls
from chipnet.graph.numbers import Settled, settle
from chipnet.graph.operator import Operator
from chipnet.graph.queries import keep_queries
from chipnet.graph.rules.ask import apply, is_pointwise
from chipnet.graph.rules.norms import norm_module
from chipnet.graph.standard import STANDARD_MIX, STANDARD_NORM, STANDARD_POOL
from chipnet.graph.unread import unread
from chipnet.program.capture import Captured, base_of, is_view, written_by
from chipnet.program.methods_read import fused
from chipnet.program.names import Modules, canonical_names, operator_name
from chipnet.program.watch import Attribute, Received, attributes_in, made_by

_LAYERS = (*STANDARD_MIX, *STANDARD_NORM, *STANDARD_POOL)
_ANY_WIDTH = frozenset("mean sum softmax log_softmax dropout contiguous clone detach to".split())  # noqa: SIM905


def trace(
    model: nn.Module,
    program: Captured,
    realisation: Realisation,
    literal: Mapping[str, str] = MappingProxyType({}),
    training: Captured | None = None,
    gated: Set[str] = frozenset(),
    values: Sequence[Received] = (),
    heads: Heads = "narrow",
    by_head: Set[str] = frozenset(),
) -> ChannelGraph:
    """Walk the captured graph with the rules, and again while numbers in attributes turn out not to follow.

    Args:
        model: what was captured.
        program: its forward in eval mode.
        realisation: may layers read or write fewer channels than the tensors around them have?
        literal: nodes whose sizes do not follow widths, with the reason.
        training: its forward in train mode, where that has parts which the other lacks (auxiliary heads). Its facts
            hold too; its operators cost nothing.
        gated: nodes of ``ChannelGraph.outputs`` after which a gate acts.
        values: numbers that the train-mode forward uses as values.
        heads: does attention lose features, the same in all heads, whole heads, or both?
        by_head: weights of attention whose heads go whole where ``heads`` says both.
    """
    modules = Modules(model)
    canonical = canonical_names(model)
    forward = Forward(
        modules=modules,
        parameters=frozenset(n for n, _ in model.named_parameters()),
        realisation=realisation,
        literal=literal,
        fused=fused(modules) if realisation == "indexed" else frozenset(),
        readers=_readers(program, canonical),
        entered=_entered(modules, program.graph.nodes),
        results=_results(program.graph.nodes),
        watch=program.watch,
        counting=True,
        narrow=heads == "narrow",
    )
    while True:
        draft, settled, used = _traced(forward, program, canonical, training, gated, values)
        found = {**draft.grids, **forward.grids} if heads == "both" else {}
        grids = {weight: rows for weight, rows in found.items() if weight not in by_head}
        if draft.heads.keys() > forward.heads.keys() or len(grids) > len(forward.grids):
            forward = replace(forward, heads={**forward.heads, **draft.heads}, grids=grids)
            continue
        if not settled.kept.keys() <= forward.literal.keys():
            forward = replace(forward, literal={**forward.literal, **settled.kept})
            continue
        if not (kept := kept_grids(draft, forward.grids)):
            break
        by_head = by_head | kept
        grids = {weight: rows for weight, rows in forward.grids.items() if weight not in by_head}
        forward = replace(forward, grids=grids, literal=literal)
    graph = draft.finished(forward.literal)
    more, notes = unread(graph, draft.pieces, modules, used)
    numbers = {(n.module, n.name, n.index): n for n in [*settled.numbers, *more]}
    boxed = frozenset(forward.grids)
    return replace(graph, numbers={**graph.numbers, **numbers}, notes=notes, boxed=boxed)


def _traced(
    forward: Forward,
    program: Captured,
    canonical: Mapping[str, str],
    training: Captured | None,
    gated: Set[str],
    values: Sequence[Received],
) -> tuple[Draft, Settled, set[tuple[str, str]]]:
    """One walk: its draft, what it says of numbers in attributes, and the attributes that it has seen."""
    draft = Draft()
    _walk(forward, draft, program, canonical, gated)
    if training is not None:
        readers = _readers(training, canonical)
        second = replace(forward, readers=readers, watch=training.watch, counting=False)
        _walk(second, draft, training, canonical)
    tie_widths(draft)
    tie_features(draft)
    _drop_hosts(draft)
    keep_queries(draft)
    # Others read these of their modules, so nothing can stand in for the modules.
    for name in draft.foreign | draft.foreign_reads | draft.data:
        draft.owners.pop(name.rpartition(".")[0], None)
    watches = [p.watch for p in (program, training) if p is not None]
    received = [
        r
        for watch in watches
        if watch is not None
        for r in watch.unclaimed(draft.known, draft.divisions.roots)
    ]
    received += (r for r in values if r.source not in draft.divisions.roots)
    held = functools.partial(_held, forward.modules)
    settled = settle(draft, draft.claims, received, held, forward.literal, draft.extents)
    sources = [*(c.source for c in draft.claims), *(r.source for r in received)]
    seen = [a for source in sources for a in attributes_in(source)]
    return draft, settled, {(a.module, a.name) for a in seen}


def _readers(program: Captured, canonical: Mapping[str, str]) -> Mapping[str, int]:
    """How many operators read each parameter and buffer."""
    found: Counter[str] = Counter()
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in program.held:
            name = program.held[node.name]
            found[canonical.get(name, name)] += len(node.users)
    return found


def _entered(modules: Modules, nodes: Iterable[Node]) -> Mapping[str, Set[str]]:
    """Module -> the calls by which it is entered."""
    entered: dict[str, set[str]] = defaultdict(set)
    for call, path in {c for node in nodes for c in calls_around(node).items()}:
        entered[modules.first(path)].add(call)
    return entered


def _results(nodes: Iterable[Node]) -> Mapping[str, int]:
    """How many tensors made in each call of a module are read outside of it."""
    return Counter(
        call for n in nodes for call in calls_around(n) if any(call not in calls_around(u) for u in n.users)
    )


def _held(modules: Mapping[str, nn.Module], attribute: Attribute) -> int:
    """The value of an attribute."""
    value = getattr(modules[attribute.module], attribute.name)
    return int(value if attribute.index is None else value[attribute.index])


def _drop_hosts(draft: Draft) -> None:
    """Take gates away where they would not act on every call: from parameters that another module reads, and from
    those that are read in two ways."""
    hosts: dict[str, set[Host]] = defaultdict(set)
    for fact in draft.facts:
        if isinstance(fact, (Map, Mix, Norm, Source)) and fact.host:
            hosts[fact.host.key].add(fact.host)
    for i, fact in enumerate(draft.facts):
        host = fact.host if isinstance(fact, (Map, Mix, Norm, Source)) else None
        if host and (draft.foreign & {host.weight, host.bias} or len(hosts[host.key]) > 1):
            draft.facts[i] = replace(fact, host=None)  # type: ignore[arg-type]


def _walk(
    forward: Forward,
    draft: Draft,
    program: Captured,
    canonical: Mapping[str, str],
    gated: Set[str] = frozenset(),
) -> None:
    """Call the rule of every operator, in their order."""
    held = {name: canonical.get(target, target) for name, target in program.held.items()}
    weights, frozen, skipped = computed_weights(forward, program, held)
    draft.frozen.update({f.module: f for f in frozen})
    made = [param.made for param in weights.values() if param.made is not None]
    draft.foreign.update(name for one in made for name in one.leaves.values())
    needed = _held_to_widths(forward, program)
    norms = norm_calls(forward, program, held)
    skipped = {*skipped, *(n for norm in norms.values() for n in norm.nodes)} - norms.keys()
    env: dict[Node, Any] = {}
    for node in program.graph.nodes:
        if node in skipped:
            continue
        op = Operator(node, forward, draft)
        if node.op == "placeholder":
            env[node] = _placeholder(op, held.get(node.name), program.constants)
        elif node.op == "get_attr":
            val = value_of(node)
            env[node] = op.constant(tuple(val.shape)) if isinstance(val, Tensor) else val
        elif node.op == "call_function":
            # A weight that is computed for the operator stands for its computation.
            inputs: Any = {of: weights.get((node, of), env.get(of)) for of in node.all_input_nodes}
            named = {k: v for k, v in node.kwargs.items() if k != "out"}  # it is written, not read
            args, kwargs = map_arg((node.args, named), inputs.__getitem__)
            norm = norms.get(node)
            with contextlib.nullcontext() if node in needed else draft.unpinned():
                if norm is not None:
                    env[node] = apply(op, (env[norm.x], norm), {}, norm_module)
                else:
                    env[node] = apply(op, args, dict(kwargs))
            _write(op, env)
            _offer_gate(op, env[node])
            if op.key in gated and op.key in draft.outputs:
                env[node] = _gated(op, env[node])
            if (call := made_by(node)) is not None:
                draft.results[forward.counting, call] = env[node]
    if forward.counting:
        draft.activations = activations(program.graph.nodes, env)
    for node, x in env.items():
        why = program.outputs.get(node.name)
        if why is not None and isinstance(x, Labels | Param):
            op = Operator(node, forward, draft)
            slots, dst = op.labelled(x).slots(), draft.new(1)
            for kept in (slots, dst):
                draft.pin(kept, Pin(PinCode.OUTPUT, why, Place(node.name)))
            op.emit(Barrier(dst, slots, output=True))


def _held_to_widths(forward: Forward, program: Captured) -> set[Node]:
    """Nodes whose rules may keep what they read: those behind outputs that matter, and behind what runs only at the
    widths of the dense network.

    What is computed for nobody runs in the compact network too. It may read fewer channels where all that follows
    runs at any width.
    """
    every = set(program.every) <= program.outputs.keys()
    rigid = [n.name for n in program.graph.nodes if not _runs_at_any_width(forward, n)]
    return program.nodes_behind([*program.outputs, *(program.stored if every else ()), *rigid])


def _runs_at_any_width(forward: Forward, node: Node) -> bool:
    """Is a node no operator, in a layer that surgery cuts or replaces, or a function of one tensor that takes any
    number of channels, also none?"""
    if node.op != "call_function" or type(forward.modules.get(forward.modules.around(node))) in _LAYERS:
        return True
    return len(node.all_input_nodes) == 1 and (is_pointwise(node.target) or operator_name(node) in _ANY_WIDTH)


def _placeholder(op: Operator, held: str | None, constants: Mapping[str, Tensor]) -> Any:
    """What stands for a parameter, a buffer, a constant or an input of the network."""
    if not isinstance(op.outputs, Tensor):
        return op.outputs
    if held is not None:
        return Param(held, op.shape)
    if op.node.name in constants:
        return op.constant(op.shape, zero=not bool(constants[op.node.name].any()))
    slots = op.draft.new(1)
    op.source(slots, live=True, flow=True, reason="an input of the network", code=PinCode.INPUT)
    return uniform(int(slots[0]), op.shape)


# -- operators that work in place ---------------------------------------------------------------------------------
def _write(op: Operator, env: dict[Node, Any]) -> None:
    """Give what an operator has written to in place its new labels, under every name of its memory."""
    for a in written_by(op.node):
        old, new = env.get(a), env[op.node]
        if not isinstance(old, Labels) or not isinstance(new, Labels) or a.op == "placeholder":
            continue
        if new.core is old.core:  # zeros stay zeros
            continue
        views = _views_of(a)
        order = {n: i for i, n in enumerate(op.node.graph.nodes)} if views else {}
        if any(order[u] > order[op.node] for v in views for u in v.users):  # a view of it is read later
            all_of_it = [v for v in (a, op.node, *views) if isinstance(env.get(v), Labels)]
            mixed = op.barrier([env[v] for v in all_of_it], "is written through a view of it")
            for v in all_of_it:  # something of all: non-zero, and kept
                env[v] = uniform(int(mixed.slots()[0]), env[v].shape)
        else:
            env[a] = new


def _views_of(node: Node) -> set[Node]:
    """Other nodes whose tensors share memory with the node's."""
    root = base_of(node)
    found, stack = {root}, [root]
    while stack:
        for user in stack.pop().users:
            if is_view(user) and user not in found:
                found.add(user)
                stack.append(user)
    return found - {node}


# -- gates on outputs of modules ----------------------------------------------------------------------------------
def _offer_gate(op: Operator, x: Any) -> None:
    """Remember a tensor with channels that is the one output of a module, called once: a gate could act there."""
    if not op.forward.counting or not op.module or not isinstance(x, Labels) or len(x.varying) != 1:
        return
    if any(r.module == op.module for r in op.draft.resizes):
        return
    inner = next(reversed(calls_around(op.node)))
    once = op.forward.entered[op.module] == {inner} and op.forward.results[inner] == 1
    if once and all(inner not in calls_around(u) for u in op.node.users):
        op.draft.outputs[op.key] = op.module, x.slots()


def _gated(op: Operator, x: Labels) -> Labels:
    """Labels behind a gate on the output of the operator's module."""
    src = x.slots()
    dst = op.draft.new(len(src))
    op.draft.tie(dst, src)
    (axis,) = x.varying
    host = Host(op.module, op.module, None, output=axis - len(x.shape))
    op.emit(Norm(dst, src, host, module=op.module))
    return along(dst, axis, x.shape)
