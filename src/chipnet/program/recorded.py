"""What does a forward compute where ``torch.export`` refuses numbers that it takes from tensors?

It is recorded as it runs on real tensors. A number from a buffer or a constant is the same in every call, so the
recording holds for all inputs. A number that depends on the inputs is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.overrides import TorchFunctionMode

from chipnet._util.torch_private import (
    FakeTensorMode,
    no_functions,
    no_modes,
    place,
    set_value,
    tree_flatten,
    tree_leaves,
    tree_map_only,
    tree_unflatten,
    value_of,
)
from chipnet.program.inputs import Inputs
from chipnet.program.lines import users_frame

_NUMBERS = frozenset(
    getattr(Tensor, name)
    for name in (
        "item",
        "tolist",
        "numpy",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "equal",
        "allclose",
    )
) | {torch.equal, torch.allclose}


class InputDependentError(Exception):
    """What runs depends on the values of the inputs."""


def record(model: nn.Module, inputs: Inputs) -> tuple[torch.fx.GraphModule, dict[str, str]]:
    """The graph of ``model``, whose forward gives a list of tensors; and placeholder -> parameter or buffer.

    The model is run, which may change it.

    Raises:
        InputDependentError: the graph is not the same for all inputs.
    """
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    leaves, spec = tree_flatten((inputs.args, inputs.kwargs))
    given = [x.clone() for x in leaves if isinstance(x, Tensor)]  # a forward may write to them
    stack: dict[str, tuple[str, Any]] = {}

    def forward(held_values: list[Tensor], values: list[Tensor]) -> list[Tensor]:
        left = iter(values)
        args, kwargs = tree_unflatten([next(left) if isinstance(x, Tensor) else x for x in leaves], spec)
        graph = get_proxy_mode().tracer.graph  # type: ignore[union-attr]
        create = graph.create_node

        def create_node(*a: Any, **k: Any) -> torch.fx.Node:
            node = create(*a, **k)
            place(node, dict(stack), _line())
            return node

        graph.create_node = create_node  # type: ignore[method-assign]
        try:
            with _Numbers():
                return torch.func.functional_call(
                    model, dict(zip(held, held_values, strict=True)), args, kwargs
                )
        finally:
            del graph.create_node

    _follow(model, stack)
    module = make_fx(forward, pre_dispatch=True)([t.detach() for t in held.values()], given)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for node in module.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.dynamic_output_shape in tags and _reads_input(node):
            raise InputDependentError(f"the shape of what {node.target} gives depends on its input")
        set_value(node, tree_map_only(Tensor, mode.from_tensor, value_of(node)))
    placeholders = module.graph.find_nodes(op="placeholder")
    return module, {node.name: name for node, name in zip(placeholders, held, strict=False)}


def _follow(model: nn.Module, stack: dict[str, tuple[str, Any]]) -> None:
    """Keep ``stack`` up to date: the calls of modules that are running, from the outermost."""
    calls: dict[str, int] = {}
    for path, module in model.named_modules():

        def enter(module: nn.Module, args: Any, path: str = path) -> None:
            calls[path] = calls.get(path, -1) + 1
            stack[f"{path}@{calls[path]}"] = path, type(module)

        def leave(module: nn.Module, args: Any, out: Any, path: str = path) -> None:
            stack.pop(next(reversed(stack)))

        module.register_forward_pre_hook(enter, prepend=True)
        module.register_forward_hook(leave, always_call=True)


class _Numbers(TorchFunctionMode):
    """Allows numbers to be taken from tensors that do not depend on the inputs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _NUMBERS:
            return func(*args, **(kwargs or {}))
        tracked = get_proxy_mode().tracer.tensor_tracker  # type: ignore[union-attr]
        for x in tree_leaves((args, kwargs)):
            known = tracked.get(x) if isinstance(x, Tensor) else None
            if known is not None and _reads_input(known.proxy.node):
                raise InputDependentError(f"Tensor.{func.__name__} of a tensor that depends on the input")
        with no_functions(), no_modes():
            return func(*args, **(kwargs or {}))


def _reads_input(node: torch.fx.Node) -> bool:
    """Does a node depend on the network's inputs, which are the placeholders that are not ``held``?"""
    seen, stack = set(), [node]
    while stack:
        n = stack.pop()
        if n.op == "placeholder" and not str(n.target).startswith("held_values"):
            return True
        if n not in seen:
            seen.add(n)
            stack.extend(n.all_input_nodes)
    return False


def _line() -> str:
    """The innermost line of the user's code that runs now."""
    frame = users_frame()
    if frame is None:
        return ""
    file = frame.f_code.co_filename.replace("\\", "/")
    return f'File "{file}", line {frame.f_lineno}, in {frame.f_code.co_name}'
