"""What does an operator do to channels? One rule for each operator; `rule` registers one for an operator of yours.

An operator without a rule is not an error, nor is a rule that fails: its inputs are pinned, with the operator and
the user's line as the reason.
"""

from chipnet.graph.labels import Labels, Param, along, uniform
from chipnet.graph.operator import Operator
from chipnet.graph.rules import (
    attention,
    axes,
    contractions,
    elementwise,
    indexing,
    layers,
    movement,
    norms,
    quantised,
    recurrent,
    reductions,
    space,
)
from chipnet.graph.rules.layers import LAYERS
from chipnet.graph.rules.table import rule, rule_of
from chipnet.graph.weights import mix, norm, own

__all__ = [
    "LAYERS",
    "Labels",
    "Operator",
    "Param",
    "along",
    "attention",
    "axes",
    "contractions",
    "elementwise",
    "indexing",
    "layers",
    "mix",
    "movement",
    "norm",
    "norms",
    "own",
    "quantised",
    "recurrent",
    "reductions",
    "rule",
    "rule_of",
    "space",
    "uniform",
]
