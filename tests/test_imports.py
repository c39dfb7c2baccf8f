"""Imports go down only: types and imports inside functions too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "chipnet"

FLOORS = [
    "errors",
    "_util",
    "program",
    "graph",
    "analysis",
    "budget",
    "gates",
    "surgery",
    "formats",
    "timing",
    "trials",
    "structure",
    "masks",
    "methods",
    "pruner",
    "",  # the public page
    "integrations",
    "lab",
    "__main__",
]
"""From the ground up; a file imports from its own floor and from those below."""


def modules() -> dict[str, Path]:
    """Dotted name below ``chipnet`` -> file, for every module but the alias finder."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path, every: bool = True) -> Iterator[str]:
    """What of ``chipnet`` a file imports, as dotted names below it; without ``every`` only at its top level."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if every else tree.body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            if name.split(".")[0] == "chipnet":
                below = name.split(".")[1:]
                while below and ".".join(below) not in MODULES:
                    below.pop()
                yield ".".join(below)


def floor(module: str) -> int:
    return FLOORS.index(module.partition(".")[0])


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("", "_moved")])
def test_imports_go_down(module: str) -> None:
    assert [m for m in imports(MODULES[module]) if floor(m) > floor(module)] == []


def test_no_circle_of_files() -> None:
    """Neither of types, nor of imports inside functions; a folder's own page may name what is in it."""
    edges = {m: {i for i in imports(p) if i != m} for m, p in MODULES.items() if m not in ("", "_moved")}
    while edges:
        free = [m for m, below in edges.items() if not below & edges.keys()]
        assert free, f"a circle among {sorted(edges)}"
        for m in free:
            del edges[m]
