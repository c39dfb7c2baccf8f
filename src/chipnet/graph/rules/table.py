"""The table of rules."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
"""Operator, as `operator_name` writes it, to its rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators: ATen's by their bare names (``"mul"``, which is ``mul_`` too), others with
    their namespace (``"torchvision::deform_conv2d"``).

    Raises:
        ValueError: an operator has a rule already.
    """

    def register(f: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for operator {name!r}")
            RULES[name] = f
        return f

    return register


def operator_name(node: Node) -> str:
    """ATen's ``add_.Tensor`` -> ``add``. What is not ATen's keeps its namespace: ``mylib::mul`` is another."""
    if node.target is operator.getitem:
        return "getitem"
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return f"higher_order::{node.target.name()}"
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return f"{getattr(node.target, '__module__', '')}::{getattr(node.target, '__name__', node.target)}"
    namespace, name = schema.name.split("::")
    if namespace != "aten":
        return str(schema.name)
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
