"""Batch norms in the weights of the convolutions before them: the same function, with fewer operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from chipnet._util.torch_private import ConvNd, ConvTransposeNd, calls_around
from chipnet.program.names import canonical_names
from chipnet.program.ready import copied

_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONV_OPS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def fold_norms(model: nn.Module, program: torch.export.ExportedProgram) -> tuple[nn.Module, int]:
    """A copy of ``model`` with batch norms in the weights of the convolutions before them, and how many there were.

    The graph says which: a batch norm in eval mode whose input is a convolution's output that nothing else reads,
    both with weights of their own that nothing else uses. Modules carry it out, so class and forward stay.
    """
    first = canonical_names(model)
    named = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    uses: dict[str, int] = {}
    for node in program.graph.nodes:
        for source in node.all_input_nodes:
            if source.name in named:
                name = first.get(named[source.name], named[source.name])
                uses[name] = uses.get(name, 0) + 1

    def owner(argument: Any) -> str | None:
        """The module whose weight this is, if it is used once."""
        name = named.get(getattr(argument, "name", ""), "")
        name = first.get(name, name)
        return name.rpartition(".")[0] if name and uses[name] == 1 else None

    small = copied(model)
    modules = dict(small.named_modules())
    tensors = {**dict(small.named_parameters()), **dict(small.named_buffers())}

    def own(arguments: Sequence[Any], module: nn.Module, *names: str) -> bool:
        """Are these the module's tensors as they are, and nothing computed from them?"""
        found = [tensors.get(first.get(named.get(getattr(a, "name", ""), ""), "")) for a in arguments]
        return all(
            (a is None) == (held is None) and t is held
            for a, t, held in zip(arguments, found, [getattr(module, n) for n in names], strict=True)
        )

    count = 0
    for node in program.graph.nodes:
        if node.op != "call_function" or not str(node.target).startswith("aten.batch_norm."):
            continue
        before = node.args[0]
        if str(before.target).split(".")[-2:-1] not in [[op] for op in _CONV_OPS]:
            continue
        if len(before.users) != 1 or node.args[5]:  # another reads it too; statistics of the batch
            continue
        conv, norm = modules.get(owner(before.args[1]) or ""), modules.get(owner(node.args[3]) or "")
        if (
            isinstance(conv, ConvNd)
            and _only_a_norm(norm)
            and (_called(before, modules), _called(node, modules)) == (conv, norm)
            and own((*before.args, None)[1:3], conv, "weight", "bias")
            and own(node.args[1:5], norm, "weight", "bias", "running_mean", "running_var")  # type: ignore[arg-type]
        ):
            _fold(conv, norm)
            count += 1
    return small, count


def _called(node: torch.fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The innermost module whose forward made the node."""
    stack = list(calls_around(node).values())
    return modules.get(stack[-1].split("@")[0]) if stack else None


@torch.no_grad()
def _fold(conv: ConvNd, norm: Any) -> None:
    """Rows of the weight are multiplied by what the norm multiplies their channel by. A transposed convolution's
    weight has its rows on the second axis, by groups: ``[in, out / groups, ...]``."""
    scale = torch.rsqrt(norm.running_var + norm.eps) * (1 if norm.weight is None else norm.weight)
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias
    weight, ones = conv.weight, [1] * len(conv.kernel_size)
    if isinstance(conv, ConvTransposeNd):
        grouped = weight.unflatten(0, (conv.groups, -1)) * scale.reshape(conv.groups, 1, -1, *ones)
        folded = grouped.flatten(0, 1)
    else:
        folded = weight * scale.reshape(-1, 1, *ones)
    conv.weight, conv.bias = nn.Parameter(folded.to(weight.dtype)), nn.Parameter(shift.to(weight.dtype))
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(norm, name, None)
    # What is left: the modules in it, if any, and its hooks, which the indexed realisation needs.
    norm.__class__ = nn.Sequential


def _only_a_norm(module: nn.Module | None) -> bool:
    """A batch norm and what it calls on its output: nothing, or timm's drop and activation."""
    if type(module) in _PLAIN_NORMS:
        return True
    names = (
        [type(module).__name__, *(name for name, _ in module.named_children())] if module is not None else []
    )
    return names == ["BatchNormAct2d", "drop", "act"]
