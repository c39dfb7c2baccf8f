"""Imports go down only: types and imports inside functions too."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import api_page
import pytest
from floors import FLOORS

ROOT = Path(__file__).resolve().parents[1] / "src" / "chipnet"


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


def test_the_laboratory_uses_the_public_page_only() -> None:
    """What our own loop needs, a loop of yours needs too. (``errors`` and ``_util`` know nothing of pruning.)"""
    known = api_page.names() | {"chipnet.__version__"}
    assert {"chipnet.Pruner", "chipnet.methods.losses.distillation"} <= known
    private = []
    for path in (ROOT / "lab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module != "__future__":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"] if node.value.id == "chipnet" else []
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name != "chipnet"]
            private += [
                f"{path.relative_to(ROOT)}: {name}"
                for name in names
                if re.match(r"chipnet\.(?!(lab|_util|errors)\b)", name) and name not in known
            ]
    assert private == []


def test_test_files_import_no_test_file() -> None:
    """What several of them need stands in files of its own, without `test_` in their names."""
    files, wrong = list(Path(__file__).parent.rglob("*.py")), []
    tests = {path.stem for path in files if path.stem.startswith("test_")}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Constant):  # "module:function", as in options
                names += re.findall(r"\btest_\w+(?=:\w)|^test_\w+$", str(node.value))
            wrong += [f"{path.name}: {n}" for n in names if n in tests - {path.stem}]
    assert wrong == []


def test_no_two_test_files_have_one_name():
    """Pytest imports them by their names alone, and refuses the second one of a whole run."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_files_and_functions_are_short() -> None:
    """500 lines of a file; 60 of a function, without what its docstring says."""
    long_ = []
    for path in ROOT.rglob("*.py"):
        source = path.read_text()
        if (lines := source.count("\n")) > 500:
            long_.append(f"{path.relative_to(ROOT)}: {lines}")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.body[ast.get_docstring(node) is not None :]
                lines = node.end_lineno - first[0].lineno + 1 if first else 0
                if lines > 60:
                    long_.append(f"{path.relative_to(ROOT)}: {node.name}: {lines}")
    assert long_ == []
