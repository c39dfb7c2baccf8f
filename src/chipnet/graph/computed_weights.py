"""Which computed weights can be cut, and which of their parameters with them?

A weight can be cut along an axis where each index along it is made of the same index of everything behind it. So it
is where operators work element by element, move elements along other axes, or reduce other axes. The forward then
computes from the smaller parameters just what is left of the weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch.fx import Node

from chipnet._util.torch_private import unsaved_buffers, value_of
from chipnet.graph.call import Forward
from chipnet.graph.labels import Made, Param, axes_of
from chipnet.graph.rules.quantised import FAKE_QUANTISED
from chipnet.graph.standard import is_torch_nn
from chipnet.graph.weights import FRESH
from chipnet.program.capture import is_view, written_by
from chipnet.program.names import Modules, operator_name, shape_of

Source = tuple[Node, int | None]
"""A node that is read, and the axis of it that is meant; None: all of it, at every index."""

_SAME = frozenset("clone contiguous detach alias to _to_copy lift_fresh_copy positive".split())  # noqa: SIM905
_SCALES = _SAME | {"mul", "multiply", "div", "divide", "true_divide"}
_BROADCASTS = _SAME | {"expand", "expand_as", "broadcast_to", "copy", "fill", "zero", "where", "masked_fill"}
_LIKE = frozenset(["zeros_like", "ones_like", "full_like", "empty_like"])
_REDUCES = {"sum": 1, "mean": 1, "amax": 1, "amin": 1, "var": 1, "std": 1, "linalg_vector_norm": 2}
"""Reductions, and where their axes stand among the arguments."""
_ALONG = frozenset(["softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod"])
_MOVES = frozenset(
    "view reshape _unsafe_view flatten unflatten permute transpose t mT unsqueeze squeeze movedim flip "  # noqa: SIM905
    "rot90 repeat tile roll slice select narrow index index_select split split_with_sizes chunk unbind".split()
)


def made_weights(
    forward: Forward, layers: Iterable[Node], held: Mapping[str, str], static: Set[Node]
) -> dict[tuple[Node, Node], Param]:
    """Weights and biases that ``layers`` compute from parameters and buffers, where the weight can be cut along an
    axis.

    Args:
        forward: the captured forward.
        layers: the nodes of its layers.
        held: placeholder -> the parameter or buffer.
        static: nodes that depend on parameters, buffers and constants only.
    """
    found: dict[tuple[Node, Node], Param] = {}
    modules = forward.modules
    cut = frozenset(node for node, name in held.items() if _is_kept(modules, name))
    for layer in layers:
        if is_torch_nn(modules.get(modules.around(layer))):
            continue
        weight, *bias = (a for a in layer.args[1:3] if isinstance(a, Node))
        leaves = {
            node: {n: held[n.name] for n in _everything(node) if n.name in held}
            for node in (weight, *bias)
            if _is_computed(node, static)
        }
        if weight in leaves and forward.parameters.isdisjoint(leaves[weight].values()):  # a constant kernel
            continue
        if not all(n and len(set(n.values())) == len(n) for n in leaves.values()):  # one under two names
            continue
        axes = {node: range(min(len(shape_of(node)), 2)) for node in leaves}
        mine = {n: Made({a: _behind(n, a, cut, static) for a in axes[n]}, leaves[n]) for n in leaves}
        if weight in mine and all(places is None for places in mine[weight].along.values()):
            continue
        found |= {(layer, node): made.param(node) for node, made in mine.items()}
    return found


def _is_kept(modules: Modules, name: str) -> bool:
    """Is a parameter or buffer part of the state that is saved?"""
    owner, _, key = name.rpartition(".")
    return key not in unsaved_buffers(modules[owner])


def _is_computed(node: Node, static: Set[Node]) -> bool:
    """Is a node computed from parameters? One parameter times numbers does not count."""
    if operator_name(node) in FAKE_QUANTISED:
        return False
    while operator_name(node) in _SCALES and len(node.all_input_nodes) == 1 and not any(writing(node)):
        node = node.all_input_nodes[0]
    return node.op == "call_function" and node in static


def _behind(node: Node, axis: int, cut: Set[str], static: Set[Node]) -> dict[Node, int] | None:
    """The nodes behind ``node``, each with the axis that belongs to ``axis``.

    None where indices are mixed, or where a placeholder is reached that is not among ``cut``.
    """
    states: dict[Node, int | None] = {}
    stack: list[Source] = [(node, axis)]
    while stack:
        n, a = stack.pop()
        if n in states:
            if states[n] != a:  # every index reads others too
                return None
            continue
        states[n] = a
        if n not in static or (n.op != "call_function" and a is not None and n.name not in cut):
            return None
        read, written = _sources(n, a), _written_through(n, a)
        if read is None or written is None:
            return None
        stack += [*read, *written]
    return {n: a for n, a in states.items() if a is not None}


def _everything(node: Node) -> set[Node]:
    """All nodes behind a node, and those that write into its memory."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        n = stack.pop()
        if n not in seen:
            seen.add(n)
            stack += [*n.all_input_nodes, *writing(n)]
    return seen


def writing(node: Node) -> Iterator[Node]:
    """Operators that write into a node's memory, and views of it through which others do."""
    for user in node.users:
        if node in written_by(user) or (is_view(user) and user.args[0] is node and any(writing(user))):
            yield user


def _written_through(node: Node, axis: int | None) -> list[Source] | None:
    """The operators that write into a node's memory, each with the axis that belongs to ``axis``."""
    found: list[Source] = []
    for user in writing(node):
        axes = range(len(shape_of(user))) if axis is not None else (None,)
        at = [a for a in axes if (node, axis) in (_sources(user, a) or ())]
        if not at or node.op != "call_function" or user.args[0] is not node:
            return None
        found.append((user, at[0]))
    return found


def _sources(node: Node, axis: int | None) -> list[Source] | None:
    """The nodes that each index along ``axis`` is made of, with the axis of each that belongs to it.

    None where an index is made of other indices too, or where the operator is not known.
    """
    if node.op != "call_function":
        return []
    inputs = node.all_input_nodes
    if axis is None:
        return [(n, None) for n in inputs]
    name, shape = operator_name(node), shape_of(node)
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags:
        return None
    if name in FRESH:
        return []
    if name == "getitem" or name in _LIKE:
        return [(inputs[0], axis)]
    if torch.Tag.pointwise in tags or name in _BROADCASTS:
        return [_broadcast(n, axis, shape) for n in inputs]
    if name in _REDUCES:
        return _reduced(node, axis, _REDUCES[name])
    if name in _ALONG:
        return None if node.args[1] % len(shape) == axis else [(inputs[0], axis)]  # type: ignore[operator]
    if name in ("cat", "stack"):
        dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(shape)  # type: ignore[arg-type]
        return None if dim == axis else [(n, axis - (name == "stack" and dim < axis)) for n in inputs]
    if name in ("pad", "constant_pad_nd"):
        widths: Any = node.args[1]
        at = 2 * (len(shape) - 1 - axis)
        return None if any(widths[at : at + 2]) else [(inputs[0], axis)]
    if name == "index_put":
        return _put(node, axis)
    return _moved(node, axis) if name in _MOVES else None


def _broadcast(node: Node, axis: int, shape: tuple[int, ...]) -> Source:
    own = axis - len(shape) + len(shape_of(node))
    return node, own if own >= 0 and shape_of(node)[own] == shape[axis] else None


def _reduced(node: Node, axis: int, position: int) -> list[Source] | None:
    x = node.all_input_nodes[0]
    dims = node.args[position] if len(node.args) > position else node.kwargs.get("dim")
    size = shape_of(x)
    over = axes_of(len(size), dims)
    left = [a for a in range(len(size)) if len(shape_of(node)) == len(size) or a not in over]
    return None if left[axis] in over else [(x, left[axis])]


def _put(node: Node, axis: int) -> list[Source] | None:
    """The sources of ``x[:, :, i] = values``, for an axis before those that are indexed."""
    x, indices, values = node.args[:3]
    at = [i for i, index in enumerate(indices) if index is not None]  # type: ignore[arg-type]
    chosen: list[Node] = [indices[i] for i in at]  # type: ignore[index, misc]
    if axis >= at[0] or at != list(range(at[0], at[-1] + 1)) or any(_is_mask(n) for n in chosen):
        return None
    ndim = len(shape_of(node)) - len(at) + max(len(shape_of(n)) for n in chosen)
    sizes = (*shape_of(node)[: axis + 1], *[1] * (ndim - axis - 1))
    return [(x, axis), _broadcast(values, axis, sizes), *((n, None) for n in chosen)]  # type: ignore[list-item, arg-type]


def _is_mask(node: Node) -> bool:
    return value_of(node).dtype in (torch.bool, torch.uint8)


def _moved(node: Node, axis: int) -> list[Source] | None:
    """The sources of an operator that moves elements: it is run on the indices along an axis."""
    x, *others = node.all_input_nodes
    if any(_is_mask(n) for n in others) or node.args[0] is not x:
        return None
    size, shape = shape_of(x), shape_of(node)
    for at in [a for a, n in enumerate(size) if n == shape[axis]]:
        index = torch.arange(size[at], dtype=torch.int32).reshape(
            [-1 if a == at else 1 for a in range(len(size))]
        )
        stands = {
            x: index.expand(size).contiguous(),
            **{n: torch.zeros(shape_of(n), dtype=torch.int64) for n in others},
        }
        args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), stands.__getitem__)
        out = node.target(*args, **kwargs)  # type: ignore[operator]
        out = out[0] if isinstance(out, (tuple, list)) else out
        wanted = torch.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        if tuple(out.shape) == shape and bool((out == wanted).all()):
            return [(x, at), *((n, None) for n in others)]
    return None
