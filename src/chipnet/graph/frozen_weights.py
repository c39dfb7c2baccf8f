"""Which layers compute a weight that surgery can freeze?

A convolution or linear layer (of a subclass, or parametrised) whose weight depends on its own parameters alone is a
plain layer with another weight. Surgery puts that plain layer in its place, and the walk sees it so already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

from torch import nn
from torch.fx import Node

from chipnet._util.torch_private import ConvNd, ConvTransposeNd
from chipnet.graph.call import Forward
from chipnet.graph.computed_weights import made_weights, writing
from chipnet.graph.facts import Frozen
from chipnet.graph.labels import Param
from chipnet.graph.rules.layers import LAYERS
from chipnet.graph.rules.quantised import FAKE_QUANTISED
from chipnet.program.capture import Captured, written_by
from chipnet.program.names import is_within, operator_name, shape_of
from chipnet.program.removal import removable

Weights = Mapping[tuple[Node, Node], Param]
"""A layer and a node that it reads -> what stands for that."""
_ZERO_STAYS = frozenset(["mul", "masked_fill", "pad", "slice", "to", "_to_copy"])
"""What a parametrised layer's own forward may do around its operator, where a gate multiplies what it returns."""


def computed_weights(
    forward: Forward, program: Captured, held: Mapping[str, str]
) -> tuple[Weights, list[Frozen], Set[Node]]:
    """Three things: what stands for weights that layers compute; the layers that surgery freezes; and the nodes
    that compute nothing but such weights.

    ``held``: placeholder -> the parameter or buffer.
    """
    static: set[Node] = set()
    inner: dict[str, list[Node]] = defaultdict(list)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in held or node.name in program.constants:
                static.add(node)
        elif node.op == "call_function":
            if all(n in static for n in node.all_input_nodes):
                static.add(node)
            else:
                inner[forward.modules.around(node)].append(node)
    weights: dict[tuple[Node, Node], Param] = {}
    frozen = []
    for path, nodes in inner.items():
        module = forward.modules.get(path)
        layers = [n for n in nodes if operator_name(n) in LAYERS]
        around = [n for n in nodes if n not in layers]
        if isinstance(module, (ConvNd, nn.Linear)) and all(
            _can_be_frozen(path, module, n, around, held, static) for n in layers
        ):
            for node in layers:
                weight: Node = node.args[1]  # type: ignore[assignment]
                shape = shape_of(weight)
                weights[node, weight] = Param(f"{path}.weight", shape, frozen=True)
                axis = -1 if isinstance(module, nn.Linear) else 1 - len(shape)
                frozen.append(Frozen(path, shape, axis, _pads_itself(module)))
    known = {node for node, _ in weights}
    layers = [n for n in program.graph.nodes if operator_name(n) in LAYERS and n not in known]
    weights |= made_weights(forward, layers, held, static)
    return weights, frozen, _only_for(weights, static)


def _pads_itself(module: nn.Module) -> bool:
    """Does a convolution pad its input as TensorFlow does? timm gives these names with "Same"."""
    return isinstance(module, nn.Conv2d) and "Same" in type(module).__name__


def _can_be_frozen(
    path: str,
    module: nn.Module,
    node: Node,
    around: Sequence[Node],
    held: Mapping[str, str],
    static: Set[Node],
) -> bool:
    """Would a plain layer with the same weight compute what this call does, together with the operators ``around``
    it in the forward of ``module``?"""
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    if not isinstance(weight, Node) or weight.op != "call_function" or weight not in static:
        return False
    if operator_name(weight) in FAKE_QUANTISED:  # the weight itself, with scales along its channels
        return False
    if not all(is_within(held[n.name], path) for n in _leaves(weight) if n.name in held):
        return False
    stays = removable(module)  # its class and forward
    if bias is not None and not (isinstance(bias, Node) and bias.name in held):
        return False
    if not stays and getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    same = _pads_itself(module)
    pads = all(same and n is node.args[0] and operator_name(n) == "pad" for n in around)
    if not pads and not (stays and all(operator_name(n) in _ZERO_STAYS for n in around)):
        return False
    return not (isinstance(module, ConvTransposeNd) and module.groups > 1)


def _only_for(weights: Weights, static: Set[Node]) -> set[Node]:
    """The nodes that compute ``weights`` and nothing else."""
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


def _leaves(node: Node) -> set[Node]:
    found: set[Node] = set()
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
