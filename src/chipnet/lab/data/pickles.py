"""Pickles of other people's data, read without running their code: arrays and plain values only."""

from __future__ import annotations

import codecs
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from chipnet.errors import ConfigError


def _allowed() -> dict[tuple[str, str], Any]:
    """What arrays are pickled with, by any NumPy and Python: makers of arrays, which run nothing of a file's."""
    import importlib

    makers = {"_reconstruct": "multiarray", "scalar": "multiarray", "_frombuffer": "numeric"}
    found: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }
    for name, module in makers.items():
        place = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
        made = getattr(importlib.import_module(f"{place}.{module}"), name)
        found |= {(f"{core}.{module}", name): made for core in ("numpy.core", "numpy._core")}
    return found


class _Plain(pickle.Unpickler):
    allowed = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        if (found := self.allowed.get((module, name))) is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array and no plain value")
        return found


def plain_pickle(path: Path) -> dict[str, Any]:
    """The mapping in a pickle of arrays and plain values; texts of Python 2 are read as Latin-1.

    Raises:
        ConfigError: it holds anything else, or is damaged.
    """
    with open(path, "rb") as file, warnings.catch_warnings():
        # CIFAR was pickled with a NumPy of 2009; newer ones warn about how that one wrote its dtypes.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        try:
            found = _Plain(file, encoding="latin1").load()
        except Exception as error:  # bytes that are no pickle can fail in any way
            raise ConfigError(f"{path} is not a file of arrays and plain values: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}, not a mapping.")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in found.items()}
