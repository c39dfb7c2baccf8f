"""How a rule is asked, and what holds where it fails."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from chipnet.graph.rules.elementwise import pointwise
from chipnet.graph.rules.table import RULES, operator_name
from chipnet.graph.tracer import Labels, Tracer


def apply(t: Tracer, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Labels of a node's output, given labels of its inputs. Where a rule fails, its inputs are kept whole."""
    t.node = node
    name = operator_name(node)
    before = t.mark()
    try:
        return _ask(t, name, args, kwargs)
    except Exception as e:
        said = str(e).strip().split("\n")[0]
        inputs = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, Labels)]
        t.undo(before, reason := f"the rule for '{name}' failed ({type(e).__name__}: {said})")
        return t.barrier(inputs, reason)


def _ask(t: Tracer, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name == "getitem":
        return args[0][args[1]]
    if name in RULES:
        return RULES[name](t, *args, **kwargs)
    inputs = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, Labels)]
    if inputs and isinstance(t.node.target, torch._ops.OpOverload) and _pointwise(t.node.target):
        return pointwise(t, *args, **kwargs)
    return t.barrier(inputs, f"no rule for operator '{name}'")


def _pointwise(op: torch._ops.OpOverload) -> bool:
    """By PyTorch's own tag, for ATen's operators only: what others tag is theirs to answer for."""
    return op.namespace == "aten" and torch.Tag.pointwise in op.tags
