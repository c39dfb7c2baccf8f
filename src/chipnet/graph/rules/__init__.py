"""One rule per operator: what it does to channels, as facts.

A rule reads labels of the operator's inputs and returns labels of its outputs. An operator without a rule is
not an error, nor is a rule that fails: its inputs are pinned, with the operator and the user's line as the reason.
"""

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
from chipnet.graph.rules.ask import apply
from chipnet.graph.rules.layers import LAYERS
from chipnet.graph.rules.quantised import FAKE_QUANTISED
from chipnet.graph.rules.table import RULES, rule

__all__ = [
    "FAKE_QUANTISED",
    "LAYERS",
    "RULES",
    "apply",
    "attention",
    "axes",
    "contractions",
    "elementwise",
    "indexing",
    "layers",
    "movement",
    "norms",
    "quantised",
    "recurrent",
    "reductions",
    "rule",
    "space",
]
