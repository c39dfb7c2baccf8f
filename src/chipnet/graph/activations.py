"""Which memory do operators take for their results, and from when to when?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from chipnet._util.torch_private import storage_key, value_of
from chipnet.graph.facts import Activation, Slots
from chipnet.graph.labels import Labels


@dataclass
class _Storage:
    """Memory that tensors share: its size in bytes, the tensors in it, and the operators that touch it."""

    bytes: int
    tensors: list[tuple[Tensor, Any]] = field(default_factory=list)
    touched: list[int] = field(default_factory=list)
    given: bool = False
    """Is it an input, a parameter or a buffer?"""


def activations(nodes: Iterable[Node], env: Mapping[Node, Any]) -> list[Activation]:
    """The activations of a captured forward with the labels ``env``. Tensors share memory as in the capture."""
    order = {node: number for number, node in enumerate(nodes)}
    storages: dict[int, _Storage] = {}
    for node in order:
        for tensor, labels in _tensors(value_of(node), env.get(node)):
            try:
                memory = tensor.untyped_storage()
            except NotImplementedError:  # inside of vmap
                continue
            storage = storages.setdefault(storage_key(memory), _Storage(memory.nbytes()))
            storage.tensors.append((tensor, labels))
            storage.given |= node.op != "call_function"
            storage.touched += [order[node], *(order[user] for user in node.users)]
    found = []
    for storage in storages.values():
        if storage.given or not storage.bytes:
            continue
        for tensor, labels in storage.tensors:
            if isinstance(labels, Labels) and tensor.numel() * tensor.element_size() == storage.bytes:
                slots, each = _elements(labels, tensor)
                found.append(Activation(slots, each, min(storage.touched), max(storage.touched)))
                break
    return found


def _tensors(val: Any, labels: Any) -> list[tuple[Tensor, Any]]:
    if isinstance(val, Tensor):
        return [(val, labels)]
    if isinstance(val, list | tuple):
        given = labels if isinstance(labels, list | tuple) and len(labels) == len(val) else [None] * len(val)
        return [pair for v, x in zip(val, given, strict=True) for pair in _tensors(v, x)]
    return []


def _elements(labels: Labels, tensor: Tensor) -> tuple[Slots, int]:
    """Slots of a tensor, each as often as it stands in the core of the labels, and bytes of each of these."""
    core = labels.core.numpy().reshape(-1)
    return core, tensor.numel() * tensor.element_size() // max(len(core), 1)
