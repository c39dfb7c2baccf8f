"""How is a rule called, and what holds where there is none, or where it fails?"""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch

from chipnet._util.torch_private import OpOverload
from chipnet.graph.facts import PinCode
from chipnet.graph.labels import values_in
from chipnet.graph.operator import Operator
from chipnet.graph.rules.elementwise import pointwise
from chipnet.graph.rules.table import RULES, Rule, key_of


def apply(op: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], rule: Rule | None = None) -> Any:
    """Labels of an operator's output, from labels of its inputs. Where its rule fails, the inputs are pinned.

    ``rule``: another than the operator's own.
    """
    before = op.draft.mark()
    try:
        return rule(op, *args) if rule is not None else _apply(op, args, kwargs)
    except Exception as e:
        said = str(e).strip().split("\n")[0]
        reason = f"the rule for '{op.name}' failed ({type(e).__name__}: {said})"
        op.draft.undo(before, op.why(reason, PinCode.RULE_FAILED))
        return op.barrier(values_in(args, kwargs), reason, PinCode.RULE_FAILED)


def _apply(op: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if op.node.target is getitem:
        return args[0][args[1]]
    if (key := key_of(op.node.target)) in RULES:
        return RULES[key](op, *args, **kwargs)
    inputs = values_in(args, kwargs)
    if inputs and is_pointwise(op.node.target):
        return pointwise(op, *args, **kwargs)
    return op.barrier(inputs, f"no rule for operator '{op.name}'", PinCode.NO_RULE)


def is_pointwise(target: Any) -> bool:
    """Does PyTorch say of an ATen operator that it computes element by element? Other people's tags are not
    believed."""
    return (
        isinstance(target, OpOverload) and target.namespace == "aten" and torch.Tag.pointwise in target.tags
    )
