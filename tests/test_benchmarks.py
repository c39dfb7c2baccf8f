"""Every benchmark can be imported: what the documentation says to run starts."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("[a-z_]*.py")))
def test_a_benchmark_can_be_imported(name):
    try:
        importlib.import_module("benchmarks" if name == "__init__" else f"benchmarks.{name}")
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] in ("benchmarks", "chipnet"):
            raise
        pytest.skip(f"needs {missing.name}")
