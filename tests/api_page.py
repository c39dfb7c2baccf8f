"""What the API page (docs/api.md) lists."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"


def members() -> dict[str, list[str]]:
    """Of every module on the page the names that are public: those that are listed, else all of its own without an
    underscore. A class stands under its module."""
    found: dict[str, list[str]] = {}
    for path, options in re.findall(
        r"^::: (chipnet\S*)\n((?: .*\n)*)", PAGE.read_text() + "\n", re.MULTILINE
    ):
        listed = re.search(r"members:\s*(?:\[(.*)\]|((?:- \w+\s*)+))", options)
        module, name = path, ""
        if path[path.rfind(".") + 1].isupper():
            module, _, name = path.rpartition(".")
        if name:
            names = [name]
        elif listed is not None:
            names = re.findall(r"\w+", listed[1] or listed[2])
        else:
            names = [n for n in defined(importlib.import_module(module)) if n[0] != "_"]
        found.setdefault(module, []).extend(names)
    return found


def defined(module: ModuleType) -> list[str]:
    """Functions, classes and values that a module defines itself."""
    body = ast.parse(inspect.getsource(module)).body
    named = [n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    given = [
        t for n in body if isinstance(n, (ast.Assign, ast.AnnAssign)) for t in getattr(n, "targets", [n])
    ]
    return named + [
        n.id for t in given for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    ]


def names() -> set[str]:
    """Dotted names of all that is public."""
    return {f"{module}.{name}" for module, listed in members().items() for name in listed}
