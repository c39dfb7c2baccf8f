"""Every private name of PyTorch's that chipnet uses: each stands here once, with the reason.

A release of PyTorch may move or change them without notice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Node
from torch.library import CustomOpDef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten

__all__ = [
    "FakeTensor",  # what torch.export computes with: it holds no numbers, and is refused as an input
    "FakeTensorMode",  # makes them, where a forward is recorded without torch.export
    "TorchDispatchMode",  # sees every operator that runs; PyTorch's own documentation imports it from there
    "tree_flatten",  # arguments and outputs are nested lists and dicts: what torch.export flattens, in its order
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_unflatten",
]

# -- operators ----------------------------------------------------------------------------------------------------
OpOverload = torch._ops.OpOverload
"""One overload of an operator, the target of a node: the class has no public name."""
OpOverloadPacket = torch._ops.OpOverloadPacket
"""An operator with all of its overloads, as ``torch.ops`` gives it."""
HigherOrderOperator = torch._ops.HigherOrderOperator
"""An operator that takes functions, such as ``cond``."""


def schema_of(target: Any) -> torch.FunctionSchema | None:
    """What an overload says of its arguments and results: which are written to, which are views. None of others."""
    return getattr(target, "_schema", None)


def operator_of(target: Any) -> OpOverloadPacket | HigherOrderOperator | None:
    """The operator of an overload, of what ``torch.library.custom_op`` made, or itself; None of what is none.

    Example:
        >>> operator_of(torch.ops.aten.add_.Tensor), operator_of(torch.add)
        (<OpOverloadPacket(op='aten.add_')>, None)
    """
    target = target._opoverload if isinstance(target, CustomOpDef) else target
    target = target.overloadpacket if isinstance(target, OpOverload) else target
    return target if isinstance(target, (OpOverloadPacket, HigherOrderOperator)) else None


def qualified_name(operator: Any) -> str | None:
    """``namespace::name`` of an operator; None where it is none. The names are in no public attribute.

    Example:
        >>> qualified_name(torch.ops.aten.add), qualified_name(torch.ops.aten.add_.Tensor)
        ('aten::add', 'aten::add_')
    """
    operator = operator_of(operator)
    if isinstance(operator, OpOverloadPacket):
        return str(operator._qualified_op_name)
    return f"higher_order::{operator.name()}" if operator is not None else None


# -- nodes: torch.export documents what it keeps in `meta`, but not the keys --------------------------------------
def value_of(node: Node) -> Any:
    """What a node gives: tensors that hold no numbers, or numbers; None where that is not known."""
    return node.meta.get("val")


def set_value(node: Node, value: Any) -> None:
    """Say what a node gives."""
    node.meta["val"] = value


def calls_around(node: Node) -> dict[str, str]:
    """The calls of modules that a node is in, from the outermost: a name for each, and the module's path."""
    return {call: path for call, (path, _) in (node.meta.get("nn_module_stack") or {}).items()}


def trace_of(node: Node) -> str:
    """The lines of code that made a node, as in a traceback; "" where they are not known."""
    return node.meta.get("stack_trace") or ""


def place(node: Node, stack: dict[str, tuple[str, Any]], trace: str) -> None:
    """Say in which calls of modules a node is (a name for each -> its path and class), and which code made it."""
    node.meta.update(nn_module_stack=stack, stack_trace=trace)


def annotation_of(node: Node, key: str) -> Any:
    """What ``torch.fx.traceback.annotate`` wrote on a node."""
    return (node.meta.get("custom") or {}).get(key)


def storage_key(memory: torch.UntypedStorage) -> int:
    """A number for memory that tensors share: what holds no numbers has no address."""
    return memory._cdata


# -- modules ------------------------------------------------------------------------------------------------------
ConvNd = nn.modules.conv._ConvNd
"""The base of all convolutions."""
ConvTransposeNd = nn.modules.conv._ConvTransposeNd
"""The base of transposed ones."""
NormBase = nn.modules.batchnorm._NormBase
"""The base of batch and instance norms."""
BatchNorm = nn.modules.batchnorm._BatchNorm
"""The base of batch norms."""


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """A module's own parameters, to be written to as well; None for those that it could have."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Any]:
    """A module's own buffers, to be written to as well; None for those that it could have."""
    return module._buffers


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """A module's children, also one under two names."""
    return module._modules


STORES = ("_parameters", "_buffers", "_modules")
"""Attributes in which a module holds these: all others are of the user's."""


def unsaved_buffers(module: nn.Module) -> set[str]:
    """Names of a module's buffers that no state dict has."""
    return module._non_persistent_buffers_set


def hooks_before(module: nn.Module) -> dict[int, Any]:
    """Hooks that a module calls before its forward, by their keys, to be removed as well."""
    return module._forward_pre_hooks


def hooks_after(module: nn.Module) -> dict[int, Any]:
    """Hooks that a module calls after its forward, by their keys, to be removed as well."""
    return module._forward_hooks


def hooks_called_always(module: nn.Module) -> dict[int, bool]:
    """Keys of those that are called where the forward fails, too: to be removed with their hooks."""
    return module._forward_hooks_always_called


def hooks_of_loading(module: nn.Module) -> dict[int, Any]:
    """Hooks that a module calls before a state dict is loaded: old spectral norms forget to remove theirs."""
    return module._load_state_dict_pre_hooks


def pruned_name(hook: Any) -> str:
    """The tensor that a hook of ``torch.nn.utils.prune`` computes."""
    return hook._tensor_name


def refresh(rnn: nn.RNNBase) -> None:
    """Let a recurrent layer see parameters that have been put in: it keeps them in a list, too."""
    rnn._init_flat_weights()


load_plainly = nn.Module._load_from_state_dict
"""What a module does with a state dict: norms override it and add statistics that old files lack."""

# -- modes and files ----------------------------------------------------------------------------------------------
no_modes = _disable_current_modes
"""Inside, a call runs on real tensors though a forward is being recorded."""
no_functions = torch._C.DisableTorchFunction
"""Inside, modes that watch functions do not see calls."""
rebuild_tensor = torch._utils._rebuild_tensor_v2
"""What a file of ``torch.save`` calls to make a tensor."""
rebuild_parameter = torch._utils._rebuild_parameter
"""What a file of ``torch.save`` calls to make a parameter."""
