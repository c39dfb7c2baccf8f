"""Which rule has an operator?"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from chipnet._util.torch_private import OpOverloadPacket, operator_of, qualified_name
from chipnet.errors import ConfigError
from chipnet.program.names import short_name

Rule = Callable[..., Any]
R = TypeVar("R", bound=Rule)
RULES: dict[Any, Rule] = {}
"""Operator, as `key_of` gives it, to its rule."""


def rule(*operators: Any, replace: bool = False) -> Callable[[R], R]:
    """Register a function as the rule of operators. It holds for networks that are captured from then on.

    A rule is called for each node of a graph that is one of the operators: with an `Operator`, which says where the
    node stands and emits facts, and with the operator's arguments. In the place of tensors these are `Labels`, or
    `Param` where a parameter or buffer is given as it is. It returns labels of the output; of several, a tuple.

    Args:
        operators: each as ``torch.ops`` gives it (``torch.ops.mylib.scale``), as ``torch.library.custom_op`` made
            it, or by its name, ``"mylib::scale"``, where it may not be there yet. A rule is for all overloads; one
            for ATen's ``add`` is for ``add_`` too. An operator that is defined anew is another one.
        replace: put the rule in the place of the one that an operator has.

    Raises:
        ConfigError: what is given is no operator, or it has a rule already.

    Example:
        >>> @torch.library.custom_op("rule_example::scale", mutates_args=())
        ... def scale(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        ...     return x * by
        >>> @rule(torch.ops.rule_example.scale)
        ... def scale_rule(op, x, by):
        ...     return op.map([x, by], "and")  # zero where x or by is
        >>> rule_of(scale) is scale_rule
        True
    """
    keys = [_known(operator) for operator in operators]
    if not keys:
        raise ConfigError("rule() needs an operator: @rule(torch.ops.mylib.scale)")
    for key, operator in zip(keys, operators, strict=True):
        if not replace and (key in RULES or keys.count(key) > 1):
            raise ConfigError(
                f"the operator {operator} has a rule already. To put another in its place: rule(..., replace=True)"
            )

    def register(function: R) -> R:
        RULES.update(dict.fromkeys(keys, function))
        return function

    return register


def rule_of(operator: Any) -> Rule | None:
    """The rule of an operator, given as for `rule`; None where it has none.

    Raises:
        ConfigError: what is given is no operator.
    """
    return RULES.get(_known(operator))


def aten(names: str) -> list[OpOverloadPacket]:
    """ATen's operators of these names; a version of PyTorch may lack some.

    Example:
        >>> aten("add mul no_such_operator")
        [<OpOverloadPacket(op='aten.add')>, <OpOverloadPacket(op='aten.mul')>]
    """
    return [getattr(torch.ops.aten, name) for name in names.split() if hasattr(torch.ops.aten, name)]


def key_of(operator: Any) -> Any:
    """What the table knows an operator by: the object of ``torch.ops`` that has all overloads, for ``add_`` that of
    ``add``; the name of one that is not there yet; None of what is no operator."""
    if isinstance(operator, str) and re.fullmatch(r"\w+::\w+", operator):
        named = operator.split("::")
        operator = getattr(getattr(torch.ops, named[0]), named[1], operator)
        if isinstance(operator, str):
            return operator
    key, name = operator_of(operator), qualified_name(operator)
    if name is not None and name.startswith("aten::"):
        key = getattr(torch.ops.aten, short_name(name), key)
    if name in RULES:  # registered before the operator was there
        RULES.setdefault(key, RULES.pop(name))
    return key


def _known(operator: Any) -> Any:
    key = key_of(operator)
    if key is None:
        raise ConfigError(
            f"{operator!r} is no operator: a rule is for one such as torch.ops.mylib.scale or 'mylib::scale'"
        )
    return key
