"""Budget-aware structured pruning: a trained network and a budget in, a smaller exact network out.

The public page. What else the API page (docs/api.md) lists of the modules inside is public too.

Names are imported when they are first used: the command line says its first line before PyTorch is there.
"""

import importlib
from typing import TYPE_CHECKING, Any

from chipnet import _moved
from chipnet._util.version import __version__ as __version__

if TYPE_CHECKING:
    from chipnet.analysis.cost import Cost
    from chipnet.budget.budget import Budget
    from chipnet.errors import (
        BudgetError,
        CaptureError,
        ChipNetError,
        ConfigError,
        ExportError,
        LoadError,
        PlanError,
    )
    from chipnet.formats.export import export
    from chipnet.gates.hooks import detach
    from chipnet.masks import Masks
    from chipnet.pruner import Pruner
    from chipnet.repair.refit import refit
    from chipnet.structure import Structure
    from chipnet.surgery.apply import compact
    from chipnet.surgery.masked import masked, verify_compact
    from chipnet.surgery.plan import Plan
    from chipnet.surgery.storage import load, save
    from chipnet.widths.shrink import shrink, shrink_family

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
    "refit",
    "save",
    "shrink",
    "shrink_family",
    "verify_compact",
]

_MODULES = {
    "budget.budget": ["Budget"],
    "surgery.apply": ["compact"],
    "surgery.masked": ["masked", "verify_compact"],
    "analysis.cost": ["Cost"],
    "errors": [
        "BudgetError",
        "CaptureError",
        "ChipNetError",
        "ConfigError",
        "ExportError",
        "LoadError",
        "PlanError",
    ],
    "formats.export": ["export"],
    "gates.hooks": ["detach"],
    "surgery.storage": ["load", "save"],
    "masks": ["Masks"],
    "surgery.plan": ["Plan"],
    "pruner": ["Pruner"],
    "repair.refit": ["refit"],
    "structure": ["Structure"],
    "widths.shrink": ["shrink", "shrink_family"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


_moved.install()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"chipnet.{_HOME[name]}"), name)
    elif name.startswith("__"):
        raise AttributeError(f"module 'chipnet' has no attribute {name!r}")
    else:  # a module of the package: chipnet.lab.models, chipnet.lab.train
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
