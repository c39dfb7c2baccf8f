"""Budget-aware structured pruning: a trained network and a budget in, a smaller exact network out.

The public page. Everything else lives in private modules and in ``chipnet.models``, ``chipnet.data``,
``chipnet.methods``, ``chipnet.projections``, ``chipnet.losses`` and ``chipnet.schedules``.
"""

from chipnet._budget import Budget
from chipnet._compact import compact, masked, verify_compact
from chipnet._cost import Cost
from chipnet._errors import (
    BudgetError,
    CaptureError,
    ChipNetError,
    ConfigError,
    ExportError,
    LoadError,
    PlanError,
)
from chipnet._export import export
from chipnet._io import load, save
from chipnet._masks import Masks
from chipnet._plan import Plan
from chipnet._pruner import Pruner
from chipnet._structure import Structure

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "BudgetError",
    "CaptureError",
    "ChipNetError",
    "ConfigError",
    "Cost",
    "ExportError",
    "LoadError",
    "Masks",
    "Plan",
    "PlanError",
    "Pruner",
    "Structure",
    "compact",
    "export",
    "load",
    "masked",
    "save",
    "verify_compact",
]
