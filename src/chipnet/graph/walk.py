"""From a captured forward to a channel graph: one walk over its nodes."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from chipnet.graph.channels import Barrier, ChannelGraph, Frozen, Host, Mix, Norm, Pin, is_within
from chipnet.graph.computed_weights import made_weights, writing
from chipnet.graph.numbers import Settled, settle
from chipnet.graph.rules import FAKE_QUANTISED, LAYERS, apply, operator_name
from chipnet.graph.tracer import Labels, Realisation, Tracer, shape_of
from chipnet.graph.unread import unread
from chipnet.program.capture import Captured, base_of, is_view, written_by
from chipnet.program.methods_read import fused
from chipnet.program.removal import removable
from chipnet.program.watch import Attribute, Received, attributes_in, made_by

_ZERO_STAYS = frozenset(["mul", "masked_fill", "pad", "slice", "to", "_to_copy"])
"""What a parametrised layer's own forward may do around its operator, where a gate multiplies what it returns."""


def trace(
    model: nn.Module,
    program: Captured,
    realisation: Realisation,
    literal: Mapping[str, str] = MappingProxyType({}),
    training: Captured | None = None,
    gated: Set[str] = frozenset(),
    values: Sequence[Received] = (),
) -> ChannelGraph:
    """Walk the captured graph with the rules, and again while numbers in attributes turn out not to follow.

    ``literal``: nodes whose sizes do not follow widths, with the reason. ``training``: the train-mode graph, where
    that has parts which the other lacks (auxiliary heads): its facts hold too, its operators cost nothing.
    ``gated``: nodes of ``ChannelGraph.outputs`` after which a gate acts. ``values``: numbers that training uses.
    """
    literal = dict(literal)
    while True:
        graph, settled, used = _traced(model, program, realisation, literal, training, gated, values)
        if settled.whole.keys() <= literal.keys():
            break
        literal |= settled.whole
    graph.literal = literal
    more, graph.notes = unread(graph, dict(model.named_modules()), used)
    graph.numbers.update({(n.module, n.name, n.index): n for n in [*settled.numbers, *more]})
    return graph


def _traced(
    model: nn.Module,
    program: Captured,
    realisation: Realisation,
    literal: Mapping[str, str],
    training: Captured | None,
    gated: Set[str],
    values: Sequence[Received],
) -> tuple[ChannelGraph, Settled, set[tuple[str, str]]]:
    """One walk, what it says of numbers in attributes, and which attributes it has seen."""
    graph = ChannelGraph()
    t = Tracer(graph, dict(model.named_modules(remove_duplicate=False)), realisation)
    t.literal = literal
    t.fused = fused(t.modules) if realisation == "indexed" else frozenset()
    t.parameters = frozenset(n for n, _ in model.named_parameters())
    canonical = canonical_names(model)
    t.enter(program.graph.nodes)
    _walk(t, program, canonical, gated)
    if training is not None:
        t.counting = False
        _walk(t, training, canonical)
    t.settle_widths()
    _drop_hosts(graph, t.foreign)
    for name in t.foreign | t.data:  # its module is asked for it: nothing can stand in
        graph.owners.pop(name.rpartition(".")[0], None)
    watches = [p.watch for p in (program, training) if p is not None]
    received = [r for watch in watches if watch is not None for r in watch.unclaimed()]
    received += values
    settled = settle(graph, t.claims, received, functools.partial(_held, t.modules), literal)
    sources = [*(c.source for c in t.claims), *(r.source for r in received)]
    seen = [a for source in sources for a in attributes_in(source)]
    return graph, settled, {(a.module, a.name) for a in seen}


def _held(modules: Mapping[str, nn.Module], attribute: Attribute) -> int:
    """What an attribute holds."""
    value = getattr(modules[attribute.module], attribute.name)
    return int(value if attribute.index is None else value[attribute.index])


def _drop_hosts(graph: ChannelGraph, foreign: set[str]) -> None:
    """No gates where they would not act on every call: on parameters that another module reads (``foreign``), or
    that are read in two ways."""
    hosts: dict[str, set[Host]] = defaultdict(set)
    for fact in graph.facts:
        if isinstance(fact, (Mix, Norm)) and fact.host:
            hosts[fact.host.weight].add(fact.host)
    for i, fact in enumerate(graph.facts):
        host = fact.host if isinstance(fact, (Mix, Norm)) else None
        if host and (foreign & {host.weight, host.bias} or len(hosts[host.weight]) > 1):
            graph.facts[i] = replace(fact, host=None)  # type: ignore[arg-type]


def _walk(
    t: Tracer,
    program: Captured,
    canonical: dict[str, str],
    gated: Set[str] = frozenset(),
) -> None:
    graph, t.watch, t.made = t.graph, program.watch, {}
    held = {name: canonical.get(target, target) for name, target in program.held.items()}
    weights, skipped = _computed_weights(t, program, held)
    env: dict[torch.fx.Node, Any] = {}
    uses: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in held:
            uses[held[node.name]] += len(node.users)
    t.calls = dict(uses)

    chosen = set(program.every) <= program.outputs.keys()
    needed = set(program.graph.nodes) if chosen else program.nodes_behind(program.outputs)
    for node in program.graph.nodes:
        if node in skipped:
            continue
        if node.op == "placeholder":
            env[node] = _placeholder(t, node, held.get(node.name), program.constants)
        elif node.op == "get_attr":
            val = node.meta.get("val")
            env[node] = t.uniform(int(t.constant[0]), tuple(val.shape)) if isinstance(val, Tensor) else val
        elif node.op == "call_function":
            labels = functools.partial(_labels_of, env, weights, node)
            named = {k: v for k, v in node.kwargs.items() if k != "out"}  # it is written, not read
            args: Any = torch.fx.node.map_arg(node.args, labels)
            kwargs: Any = torch.fx.node.map_arg(named, labels)
            with contextlib.nullcontext() if node in needed else graph.unpinned():
                env[node] = apply(t, node, args, dict(kwargs))
            _write(t, node, env)
            t.offer_gate(env[node])
            if t.key in gated and t.key in graph.outputs:
                env[node] = t.gate_output(env[node])
            if (call := made_by(node)) is not None:
                t.made[call] = env[node]
    for node, labels in env.items():
        why = program.outputs.get(node.name)
        if why is not None and isinstance(labels, Labels):
            t.node = node
            slots, dst = t.labelled(labels).slots(), graph.new(1)
            graph.pin(slots, Pin(why, node.name, "", ""))
            graph.pin(dst, Pin(why, node.name, "", ""))
            graph.facts.append(Barrier(dst, slots, output=True))


def _labels_of(
    env: Mapping[torch.fx.Node, Any],
    weights: Mapping[tuple[torch.fx.Node, torch.fx.Node], Labels],
    node: torch.fx.Node,
    of: torch.fx.Node,
) -> Any:
    """Labels of what ``node`` reads; a weight that is computed for it stands for its computation."""
    return weights.get((node, of), env.get(of))


def _write(t: Tracer, node: torch.fx.Node, env: dict[torch.fx.Node, Any]) -> None:
    """After an operator that works in place: what it wrote to has its labels now, under every name."""
    for a in written_by(node):
        old, new = env.get(a), env[node]
        if not isinstance(old, Labels) or not isinstance(new, Labels) or a.op == "placeholder":
            continue
        if new.core is old.core:  # zeros stay zeros
            continue
        views = _views_of(a)
        order = {n: i for i, n in enumerate(node.graph.nodes)} if views else {}
        if any(order[u] > order[node] for v in views for u in v.users):  # a view of it is read later
            all_of_it = [v for v in (a, node, *views) if isinstance(env.get(v), Labels)]
            mixed = t.barrier([env[v] for v in all_of_it], "is written through a view of it")
            for v in all_of_it:  # something of all: non-zero, and kept
                env[v] = t.uniform(int(mixed.slots()[0]), env[v].shape)
        else:
            env[a] = new


def _views_of(node: torch.fx.Node) -> set[torch.fx.Node]:
    """Other nodes whose tensors share memory with the node's."""

    root = base_of(node)
    found, stack = {root}, [root]
    while stack:
        for user in stack.pop().users:
            if is_view(user) and user not in found:
                found.add(user)
                stack.append(user)
    return found - {node}


def _computed_weights(
    t: Tracer, program: Captured, held: dict[str, str]
) -> tuple[dict[tuple[torch.fx.Node, torch.fx.Node], Labels], set[torch.fx.Node]]:
    """Weights that layers compute from parameters of their own, and the nodes that do nothing else.

    A convolution or linear layer (of a subclass, or parametrised) whose weight depends on nothing but its own
    parameters is a plain layer with another weight: surgery freezes it, and here it is traced as one.
    """
    weights: dict[tuple[torch.fx.Node, torch.fx.Node], Labels] = {}
    static: set[torch.fx.Node] = set()
    inner: dict[str, list[torch.fx.Node]] = defaultdict(list)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in held or node.name in program.constants:
                static.add(node)
        elif node.op == "call_function":
            if all(n in static for n in node.all_input_nodes):
                static.add(node)
            else:
                t.node = node
                inner[t.module].append(node)
    for path, nodes in inner.items():
        module = t.modules.get(path)
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            continue
        layers = [n for n in nodes if operator_name(n) in LAYERS]
        around = [n for n in nodes if n not in layers]
        for node in layers:
            weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
            if not isinstance(weight, torch.fx.Node) or weight.op != "call_function" or weight not in static:
                break
            if operator_name(weight) in FAKE_QUANTISED:  # the weight itself, with scales along its channels
                break
            leaves = _leaves(weight)
            own = all(is_within(held[n.name], path) for n in leaves if n.name in held)
            plain_bias = bias is None or (isinstance(bias, torch.fx.Node) and bias.name in held)
            stays = removable(module)  # its class and forward
            plain = plain_bias and (stays or getattr(module, "padding_mode", "zeros") == "zeros")
            same = isinstance(module, nn.Conv2d) and "Same" in type(module).__name__  # as timm names them
            pads = all(same and n is node.args[0] and operator_name(n) == "pad" for n in around)
            around_it = pads or (stays and all(operator_name(n) in _ZERO_STAYS for n in around))
            if not (own and plain and around_it):
                break
            if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1:
                break
            shape = shape_of(weight)
            weights[node, weight] = Labels(None, shape, f"{path}.weight", computed=True)
            axis = -1 if isinstance(module, nn.Linear) else 1 - len(shape)
            t.graph.frozen[path] = Frozen(path, shape, axis, same)
        else:
            continue
        for node in layers:
            for key in [k for k in weights if k[0] is node]:
                del weights[key]
        t.graph.frozen.pop(path, None)
    frozen = {node for node, _ in weights}
    layers = [n for n in program.graph.nodes if operator_name(n) in LAYERS and n not in frozen]
    weights |= made_weights(t, layers, held, static)
    return weights, _only_for(weights, static)


def _only_for(
    weights: Mapping[tuple[torch.fx.Node, torch.fx.Node], Labels], static: set[torch.fx.Node]
) -> set[torch.fx.Node]:
    """Of the nodes that compute parameters only, those that compute nothing but ``weights``."""
    left = {n for n in static if n.op == "call_function" and (n.users or any(written_by(n)))}
    while True:
        others = {
            n
            for n in left
            if not all(u in left or (u, n) in weights for u in n.users)
            or any(n in writing(m) and m not in left for m in n.all_input_nodes)
        }
        if not others:
            return left
        left -= others


def _leaves(node: torch.fx.Node) -> set[torch.fx.Node]:
    found: set[torch.fx.Node] = set()
    stack, seen = [node], set()
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        if n.op == "call_function":
            stack.extend(n.all_input_nodes)
        else:
            found.add(n)
    return found


def _placeholder(t: Tracer, node: torch.fx.Node, held: str | None, constants: Mapping[str, Tensor]) -> Any:
    val = node.meta.get("val")
    if not isinstance(val, Tensor):
        return val
    shape = tuple(int(n) for n in val.shape)
    t.node = node
    if held is not None:
        return Labels(None, shape, held)
    if node.name in constants:
        return t.uniform(int((t.constant if bool(constants[node.name].any()) else t.zero)[0]), shape)
    slots = t.graph.new(1)
    t.source(slots, live=True, flow=True, reason="an input of the network")
    return t.uniform(int(slots[0]), shape)


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the one name ``named_parameters`` gives it."""
    first: dict[int, str] = {}
    names = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names[name] = first.setdefault(id(tensor), name)
    return names
