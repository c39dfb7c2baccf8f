"""The table of rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
