"""Budget-aware structured pruning: a trained network and a budget in, a smaller exact network out.

The public page. Everything else lives in private modules and in ``chipnet.models``, ``chipnet.data``,
``chipnet.methods``, ``chipnet.projections``, ``chipnet.losses`` and ``chipnet.schedules``.

Names are imported when they are first used: the command line says its first line before PyTorch is there.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from chipnet._gates import detach
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
    "detach",
    "export",
    "load",
    "masked",
    "save",
    "verify_compact",
]

_MODULES = {
    "_budget": ["Budget"],
    "_compact": ["compact", "masked", "verify_compact"],
    "_cost": ["Cost"],
    "_errors": [
        "BudgetError",
        "CaptureError",
        "ChipNetError",
        "ConfigError",
        "ExportError",
        "LoadError",
        "PlanError",
    ],
    "_export": ["export"],
    "_gates": ["detach"],
    "_io": ["load", "save"],
    "_masks": ["Masks"],
    "_plan": ["Plan"],
    "_pruner": ["Pruner"],
    "_structure": ["Structure"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"chipnet.{_HOME[name]}"), name)
    elif name.startswith("__"):
        raise AttributeError(f"module 'chipnet' has no attribute {name!r}")
    else:  # a module of the package: chipnet.models, chipnet.train
        try:
            value = importlib.import_module(f"chipnet.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"chipnet.{name}":
                raise
            raise AttributeError(f"module 'chipnet' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
