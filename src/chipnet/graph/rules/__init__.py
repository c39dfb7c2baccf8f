"""What does an operator do to channels? One rule for each operator; `rule` registers one for an operator of yours.

An operator without a rule is not an error, nor is a rule that fails: its inputs are pinned, with the operator and
the user's line as the reason.
"""

from chipnet.graph.facts import PinCode
from chipnet.graph.labels import Labels, Param, along, uniform
from chipnet.graph.operator import Operator
from chipnet.graph.rules import (  # noqa: F401
    attention,
    axes,
    contractions,
    elementwise,
    indexing,
    layers,
    movement,
    norms,
    parts,
    quantised,
    recurrent,
    reductions,
    space,
)
from chipnet.graph.rules.table import rule, rule_of
from chipnet.graph.weights import mix, norm, own

__all__ = [
    "Labels",
    "Operator",
    "Param",
    "PinCode",
    "along",
    "mix",
    "norm",
    "own",
    "rule",
    "rule_of",
    "uniform",
]
