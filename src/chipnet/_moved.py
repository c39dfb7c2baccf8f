"""Old dotted names of modules that have moved; they work until 0.3. Pickles of whole networks name modules too."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from types import CodeType, ModuleType
from typing import Any

NAMES = {
    "_cost": "program.counting",  # scripts that count as PyTorch does import it from there
    "cli": "lab.cli",
    "data": "lab.data",
    "latency": "timing",
    "losses": "methods.losses",
    "models": "lab.models",
    "projections": "methods.projections",
    "report": "lab.runs.report",
    "runs": "lab.runs.folder",
    "schedules": "methods.schedules",
    "train": "lab.train",
}
"""Below ``chipnet``: old name -> new name."""


class Moved(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds a module by its old name: the very module, under two names."""

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, rest = name.partition(".")
        old, dot, inner = rest.partition(".")
        if package != "chipnet" or old not in NAMES:
            return None
        new = f"chipnet.{NAMES[old]}{dot}{'.'.join(part.removeprefix('_') for part in inner.split('.'))}"
        if importlib.util.find_spec(new) is None:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=new)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        assert spec.origin is not None
        if spec.name.count(".") == 1:  # what is inside has been told of with it
            told = f"{spec.name} is {spec.origin} now; the old name goes with 0.3"
            warnings.warn(told, DeprecationWarning, stacklevel=2)
        module = importlib.import_module(spec.origin)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already, under its own name and spec."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, name: str) -> CodeType | None:
        """The code of the module under its new name, which ``python -m`` runs."""
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        own = importlib.util.find_spec(spec.origin)
        assert own is not None and isinstance(own.loader, importlib.abc.InspectLoader)
        return own.loader.get_code(own.name)

    def get_source(self, name: str) -> str | None:
        return None


def install() -> None:
    """Old names are found from now on."""
    sys.meta_path.insert(0, Moved())
