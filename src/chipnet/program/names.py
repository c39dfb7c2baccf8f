"""Which operator, module, line and shape has a node, and what are modules and parameters called?"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping

from torch import nn
from torch.fx import Node

from chipnet._util.torch_private import calls_around, qualified_name, trace_of, value_of

_NOT_USERS = re.compile("/torch/nn/|/chipnet/program/spelling/")


def operator_name(node: Node) -> str:
    """The operator of a node, as `short_name` writes it; for a function of Python's, its module and name.

    ``add_.Tensor`` -> ``add``, ``mylib::mul.default`` -> ``mylib::mul``, ``operator.getitem`` -> ``getitem``.
    """
    if node.target is operator.getitem:
        return "getitem"
    name = qualified_name(node.target)
    if name is None:
        return f"{getattr(node.target, '__module__', '')}::{getattr(node.target, '__name__', node.target)}"
    return short_name(name)


def short_name(qualified: str) -> str:
    """The name of an operator. ATen's have no namespace, and an operator that works in place has the name of the
    other.

    Example:
        >>> short_name("aten::add_"), short_name("aten::__and__"), short_name("mylib::add_")
        ('add', '__and__', 'mylib::add_')
    """
    namespace, name = qualified.split("::")
    if namespace != "aten":
        return qualified
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of a node's output, or of the first one."""
    val = value_of(node)
    val = val[0] if isinstance(val, (tuple, list)) else val
    return tuple(int(n) for n in val.shape)


def line_of(node: Node) -> str:
    """File and line of the user's code that made a node; "" where they are not known."""
    found = re.findall(r'File "([^"]+)", line (\d+)', trace_of(node))
    outside = [f for f in found if not _NOT_USERS.search(f[0].replace("\\", "/"))] or found
    return f"{outside[-1][0].rsplit('/', 1)[-1]}:{outside[-1][1]}" if outside else ""


def is_within(name: str, module: str) -> bool:
    """Is a module, parameter or buffer ``name`` the module itself, or in it?

    Example:
        >>> is_within("conv1.weight", "conv1"), is_within("conv10.weight", "conv1"), is_within("conv1", "")
        (True, False, True)
    """
    return not module or name == module or name.startswith(f"{module}.")


def within(name: str, module: str) -> str:
    """A module's or parameter's path as a module around it knows it.

    Example:
        >>> within("block.attn.proj.weight", "block.attn"), within("weight", "")
        ('proj.weight', 'weight')
    """
    return name.removeprefix(f"{module}.") if module else name


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the one name ``named_parameters`` gives it."""
    first: dict[int, str] = {}
    names = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names[name] = first.setdefault(id(tensor), name)
    return names


class Modules(Mapping[str, nn.Module]):
    """All modules of a model by their paths. A module with several paths is called by the first.

    Example:
        >>> shared = nn.ReLU()
        >>> modules = Modules(nn.Sequential(shared, shared))
        >>> list(modules), modules.first("1")
        (['', '0', '1'], '0')
    """

    def __init__(self, model: nn.Module) -> None:
        self._by_path = dict(model.named_modules(remove_duplicate=False))
        self._first: dict[int, str] = {}
        for path, module in self._by_path.items():
            self._first.setdefault(id(module), path)

    def __getitem__(self, path: str) -> nn.Module:
        return self._by_path[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)

    def first(self, path: str) -> str:
        """The first path of the module at ``path``."""
        path = re.sub(r"@\d+", "", path)  # as torch.export numbers its calls
        return self._first.get(id(self.get(path)), path)

    def around(self, node: Node) -> str:
        """The path of the innermost module whose forward contains a node."""
        return self.first(next(reversed(calls_around(node).values()), ""))
