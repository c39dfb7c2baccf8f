"""Which layers and batch norms run in a forward, in which order, on what, and what becomes of what they give?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chipnet._util.torch_private import tree_leaves
from chipnet.graph.rules.layers import LAYERS
from chipnet.program.inputs import Inputs
from chipnet.repair.layers import LayerProduct, bound

_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_ADD = frozenset(("add", "__add__", "__radd__", "__iadd__", "iadd", "add_"))


@dataclass(eq=False)
class LayerCall:
    """One call of a layer, or of a batch norm with running statistics in eval mode.

    Attributes:
        name: of the layer's weight, or of the norm's running mean, as the model has it.
        layer: how the weight is used; None for a norm.
        given: the call's arguments by name.
        output: what it gave.
        bias: the name of the layer's bias, or None.
        source: of a norm, the layer whose output it reads.
        readers: how many operators that give tensors have read the output.
        norm: the first batch norm that read the output.
        normed: does only a batch norm read the output, and that norm, of layers, only this one?
        other: what the output, or the norm's, was added to.
    """

    name: str
    layer: LayerProduct | None
    given: Mapping[str, Any]
    output: Tensor
    bias: str | None = None
    source: LayerCall | None = None
    readers: int = 0
    norm: LayerCall | None = None
    normed: bool = False
    other: Tensor | None = None

    @property
    def added(self) -> bool:
        """Does the output, or what a norm makes of it, go into a sum and nowhere else?"""
        return self.other is not None and (self.norm or self).readers == 1 and self.readers == 1


class _Enough(BaseException):
    """All that was wanted has been seen. No forward is meant to catch it."""


class LayerWatch(TorchFunctionMode):
    """While it is on, calls of layers whose weight is a parameter, and of batch norms, are seen.

    Args:
        model: whose layers they are.
        wanted: names of those that are kept in ``calls``, with what becomes of their outputs; None: all.
        each: is handed every call instead; nothing is kept.
        done: may the forward end?
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Collection[str] | None = None,
        each: Callable[[LayerCall], None] | None = None,
        done: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.parameters = {id(t): n for n, t in model.named_parameters()}
        self.buffers = {id(t): n for n, t in model.named_buffers()}
        self.users = defaultdict[str, set[str]](set)
        """Parameter -> names of the weights of layers that use it; an empty one for anything else."""
        self.wanted, self.each, self.done = wanted, each, done
        self.calls: list[LayerCall] = []
        self.giver: dict[int, tuple[LayerCall, Tensor, int]] = {}
        """Id of a tensor -> who gave it, itself (so that no other one gets the same id), and its version."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.giver and getattr(func, "__name__", "") in _ADD and "alpha" not in kwargs:
            self._add(*args[:2])
        out = func(*args, **kwargs)
        if self.giver and any(isinstance(t, Tensor) for t in tree_leaves(out)):
            self._read(tree_leaves((args, kwargs)), {id(t) for t in tree_leaves(out)})
        call = self._call(func, args, kwargs, out)
        self._use(tree_leaves((args, kwargs)), call, any(isinstance(t, Tensor) for t in tree_leaves(out)))
        kept = call is not None and (self.wanted is None or call.name in self.wanted)
        if call is not None and self.each is not None:
            self.each(call)
        elif call is not None and (kept or call.source is not None):
            self.giver[id(out)] = call, out, out._version
            if kept:
                self.calls.append(call)
        if self.done():
            raise _Enough
        if call is not None and kept and self.wanted is not None:  # what follows may write over them
            call.given, call.output = {**call.given, "input": call.given["input"].clone()}, out.clone()
        return out

    def _read(self, leaves: Iterable[Any], given: Collection[int]) -> None:
        """An operator has read ``leaves``; the tensors ``given`` are what it gives. One that gives what it reads
        has written to it, or has done nothing."""
        for leaf in leaves:
            if id(leaf) in self.giver:
                call, tensor, version = self.giver[id(leaf)]
                written = tensor._version != version
                call.readers += id(leaf) not in given or written
                if written:
                    del self.giver[id(leaf)]

    def _use(self, leaves: Iterable[Any], call: LayerCall | None, gives: bool) -> None:
        """Note who uses parameters."""
        for leaf in leaves if gives else ():
            if id(leaf) in self.parameters:
                name = self.parameters[id(leaf)]
                layer = call is not None and call.layer is not None and name in (call.name, call.bias)
                self.users[name].add(call.name if call is not None and layer else "")

    def _giver(self, x: Any) -> LayerCall | None:
        return self.giver[id(x)][0] if id(x) in self.giver else None

    def _call(self, func: Any, args: Any, kwargs: Any, out: Any) -> LayerCall | None:
        operator = getattr(func, "__name__", "")
        if func is nn.functional.batch_norm:
            given = {**dict(zip(_NORM, args, strict=False)), **kwargs}
            name, source = self.buffers.get(id(given["running_mean"])), self._giver(given["input"])
            if name is None or given.get("training"):
                return None
            call = LayerCall(name, None, given, out, source=source)
            if source is not None and source.norm is None:
                source.norm = call
            return call
        if operator not in LAYERS:
            return None
        given = bound(operator, args, kwargs)
        name = self.parameters.get(id(given["weight"]))
        if name is None:
            return None
        return LayerCall(
            name, LayerProduct.of(operator, given), given, out, self.parameters.get(id(given.get("bias")))
        )

    def _add(self, a: Any, b: Any = None) -> None:
        for mine, other in ((a, b), (b, a)):
            call = self._giver(mine)
            if call is not None and isinstance(other, Tensor) and other.shape == mine.shape:
                (call.source or call).other = other.clone()  # the sum may be written over it


@torch.no_grad()
def calls(model: nn.Module, inputs: Inputs) -> list[LayerCall]:
    """All calls of one forward, in their order; of layers only those whose weight nothing else uses, and a bias
    that others use too is none."""
    with LayerWatch(model) as watch:
        inputs(model)
    users, norms = watch.users, defaultdict[str, set[str]](set)
    for call in watch.calls:
        if call.layer is not None:
            norm = call.norm.name if call.norm is not None and call.readers == 1 else ""
            norms[call.name].add(norm)
            users[norm].add(call.name)
        elif call.source is None:
            users[call.name].add(call.name)
    for call in watch.calls:
        if call.bias is not None and len(users[call.bias]) > 1:
            call.bias = None
        if call.norm is not None:
            call.normed = norms[call.name] == {call.norm.name} and users[call.norm.name] == {call.name}
    return [call for call in watch.calls if call.layer is None or users[call.name] == {call.name}]


@torch.no_grad()
def calls_of(model: nn.Module, inputs: Inputs, name: str, count: int, added: bool = False) -> list[LayerCall]:
    """The first ``count`` calls of one layer or norm; the forward ends with the last, or once it is ``added``."""
    watch = LayerWatch(model, {name}, done=lambda: _complete(watch.calls, count, added))
    try:
        with watch:
            inputs(model)
    except _Enough:
        pass
    return watch.calls


def _complete(seen: list[LayerCall], count: int, added: bool) -> bool:
    return len(seen) >= count and (not added or seen[-1].other is not None)


@torch.no_grad()
def each_call(model: nn.Module, inputs: Inputs, seen: Callable[[LayerCall], None]) -> None:
    """Hand every call of a forward to ``seen``, as it happens; nothing is kept."""
    with LayerWatch(model, each=seen):
        inputs(model)
