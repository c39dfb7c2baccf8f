"""Every private name of PyTorch's that chipnet uses: each stands here once, with the reason.

A release of PyTorch may move or change them without notice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.library import CustomOpDef

OpOverload = (
    torch._ops.OpOverload
)  # one overload of an operator, the target of a node: the class has no public name
OpOverloadPacket = torch._ops.OpOverloadPacket  # an operator with all of its overloads, as torch.ops gives it
HigherOrderOperator = torch._ops.HigherOrderOperator  # an operator that takes functions, such as cond

tree_leaves = torch.utils._pytree.tree_leaves  # arguments of operators and forwards are trees of these kinds


def qualified_name(operator: Any) -> str | None:
    """``namespace::name`` of an operator; None where it is none. The names are in no public attribute.

    Example:
        >>> (
        ...     qualified_name(torch.ops.aten.add),
        ...     qualified_name(torch.ops.aten.add_.Tensor),
        ...     qualified_name(torch.add),
        ... )
        ('aten::add', 'aten::add_', None)
    """
    if isinstance(operator, OpOverload):
        return str(operator._schema.name)
    if isinstance(operator, OpOverloadPacket):
        return str(operator._qualified_op_name)
    if isinstance(operator, CustomOpDef):
        return str(operator._qualname)
    return f"higher_order::{operator.name()}" if isinstance(operator, HigherOrderOperator) else None
