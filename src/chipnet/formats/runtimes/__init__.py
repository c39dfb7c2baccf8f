"""The formats: one object in one file each. Files of this folder are found by themselves.

>>> print(*NAMES)
onnx torch-export torchscript executorch
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chipnet.formats.runtimes.base import Format

_FIRST = ("onnx", "torch-export", "torchscript")
_there = sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.name != "base")
NAMES = (*_FIRST, *(name for name in _there if name not in _FIRST))
"""Names of formats: those of their files, so that the command line lists them without PyTorch."""


def named(name: str) -> "Format":
    """The format of this name."""
    found: Format = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").FORMAT
    return found
