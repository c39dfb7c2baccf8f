"""Private names of PyTorch's stand in one file, each with a reason: what a new release breaks is found there."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "src" / "chipnet"
OWN = ROOT / "_util" / "torch_private.py"
OF_MODULES = frozenset(
    "_parameters _buffers _modules _forward_hooks _forward_pre_hooks _non_persistent_buffers_set _schema "  # noqa: SIM905
    "_forward_hooks_always_called _load_state_dict_pre_hooks _tensor_name _init_flat_weights _cdata meta".split()
)
"""Attributes of objects of PyTorch's, though what object it is does not show; `meta` is a node's."""


def private(source: str) -> Iterator[str]:
    """Private names of PyTorch's in a source: imported, an attribute of something of torch's, or of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield from (f"{node.module}.{a.name}" for a in node.names if "._" in f"{node.module}.{a.name}")
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            first = text.split(".")[0]
            of_torchs = first in ("torch", "nn") and node.attr[0] == "_" and node.attr[:2] != "__"
            if of_torchs or (node.attr in OF_MODULES and first not in ("self", "reader")):
                yield text


def test_private_names_are_found() -> None:
    source = (
        "from torch.utils._pytree import a\nnn.modules.conv._ConvNd; m._buffers; torch.__version__; n.meta"
    )
    assert list(private(source)) == [
        "torch.utils._pytree.a",
        "nn.modules.conv._ConvNd",
        "m._buffers",
        "n.meta",
    ]


def test_private_names_stand_in_one_file() -> None:
    files = [path for path in ROOT.rglob("*.py") if path != OWN]
    assert {path.name: names for path in files if (names := list(private(path.read_text())))} == {}


def test_what_is_private_has_a_reason() -> None:
    """A docstring under every name, or a comment beside an imported one."""
    body = ast.parse(OWN.read_text()).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert ast.get_docstring(node), node.name
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) != "__all__":
            assert isinstance(after, ast.Expr), ast.unparse(node)
