"""Which ATen operators does a forward run? ``torch.export`` of a copy of the network tells."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind

from chipnet._util.torch_private import schema_of, tree_leaves, value_of
from chipnet.errors import CaptureError
from chipnet.program.inputs import Inputs
from chipnet.program.outputs import tensors
from chipnet.program.ready import attributes, copied, refusal
from chipnet.program.recorded import record
from chipnet.program.watch import Watch, mark, watched

_REGIONS = {
    torch.ops.higher_order.wrap_with_autocast: 4,
    torch.ops.higher_order.wrap_with_set_grad_enabled: 1,
}
"""Operators that hold others: how many settings stand before the graph inside and its inputs."""


@dataclass(frozen=True)
class Captured:
    """One captured forward.

    Attributes:
        graph: its ATen operators in order. Each node knows what it gives, its module and the user's line.
        held: placeholder -> the name of the parameter or buffer.
        constants: placeholder -> its value.
        outputs: node -> why it is kept: outputs that matter.
        every: the nodes of all outputs.
        stored: the nodes of what the forward stores in attributes of modules.
        module: holds the graphs of regions; it lives as long as the graph.
    """

    graph: torch.fx.Graph
    held: Mapping[str, str]
    constants: Mapping[str, Tensor]
    outputs: Mapping[str, str]
    every: tuple[str, ...]
    stored: tuple[str, ...]
    module: torch.fx.GraphModule
    watch: Watch | None = None
    """Which operators received numbers from attributes, where that is known."""

    def behind(self, names: Iterable[str]) -> set[str]:
        """Parameters and buffers that these nodes read, directly or not."""
        return {self.held[n.name] for n in self.nodes_behind(names) if n.name in self.held}

    def nodes_behind(self, names: Iterable[str]) -> set[torch.fx.Node]:
        """These nodes and what they read, directly or not."""
        writers: dict[torch.fx.Node, list[torch.fx.Node]] = defaultdict(list)
        for node in self.graph.nodes:
            for written in written_by(node):
                writers[base_of(written)].append(node)
        wanted, seen = set(names), set[torch.fx.Node]()
        stack = [n for n in self.graph.nodes if n.name in wanted]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack += [*node.all_input_nodes, *writers[base_of(node)]]
        return seen

    def used(self) -> set[str]:
        """Parameters and buffers that any operator reads."""
        return {
            self.held[n.name]
            for n in self.graph.find_nodes(op="placeholder")
            if n.users and n.name in self.held
        }

    def ends(self) -> list[str]:
        """Nodes that nothing reads."""
        outputs = {n for node in self.graph.find_nodes(op="output") for n in node.all_input_nodes}
        return [
            n.name
            for n in self.graph.nodes
            if n.op == "call_function" and not n.users and n not in outputs and not list(written_by(n))
        ]

    def keeping(self, names: Iterable[str], why: str) -> Captured:
        """The same, with more nodes that matter."""
        return replace(self, outputs={**dict.fromkeys(names, why), **self.outputs})


def written_by(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """What an operator writes to, in place or by ``out=``."""
    schema = schema_of(node.target)
    for i, argument in enumerate(schema.arguments if schema is not None else ()):
        a = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        info = argument.alias_info
        if isinstance(a, torch.fx.Node) and info is not None and info.is_write:
            yield a


def is_view(node: torch.fx.Node) -> bool:
    """Does a node's tensor share memory with its first argument?"""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], torch.fx.Node):
        return False
    if getattr(node.target, "__name__", "") == "getitem":
        return True
    returns = getattr(schema_of(node.target), "returns", ())
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def base_of(node: torch.fx.Node) -> torch.fx.Node:
    """The node whose memory a node's tensor is a view of."""
    while is_view(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def capture(model: nn.Module, inputs: Inputs, train: bool = False) -> Captured:
    """The forward of ``model`` in eval (or train) mode.

    The model must have run once (`ready`). A copy of it is captured, because what a forward stores on its modules
    during capture holds no numbers.

    Raises:
        CaptureError: it cannot be captured.
    """
    try:
        return _captured(model, inputs, train, Watch())
    except Exception:  # numbers that know where they come from are not for it: then nothing is known of them
        return _captured(model, inputs, train, None)


def _captured(model: nn.Module, inputs: Inputs, train: bool, watch: Watch | None) -> Captured:
    shown = copied(model, shared=True).train(train)
    if watch is not None:
        mark(shown)
    if isinstance(shown, torch.fx.GraphModule):  # as an nn.Module, torch.export calls its forward
        shown = _as_module(shown)
    flat = _Flat(shown, inputs, watch)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _silent(), watched(watch):
            program = torch.export.export(shown, inputs.args, inputs.kwargs, strict=False)
            _inline(program.graph_module)
    except Exception as error:
        if watch is not None:
            raise
        found = _recorded(model, inputs, train)
        if found is not None:
            return found
        raise CaptureError(
            f"{refusal(model, inputs, 'torch.export', error)}"
            "Take what depends on values of tensors (if, loops, int(), tolist()) out of forward, or prune a part "
            "of the network: Structure(model.backbone, ...)."
        ) from error
    if _has_unknown_sizes(program.graph_module) and (found := _recorded(model, inputs, train)) is not None:
        return found
    signature = program.graph_signature
    specs = [(s.arg.name, s) for s in signature.input_specs if hasattr(s.arg, "name")]
    held = {
        name: s.target
        for name, s in specs
        if s.kind in (InputKind.PARAMETER, InputKind.BUFFER) and s.target is not None
    }
    outputs = [getattr(s.arg, "name", "") for s in signature.output_specs if s.kind == OutputKind.USER_OUTPUT]
    constants = {
        name: program.constants[s.target] for name, s in specs if s.kind == InputKind.CONSTANT_TENSOR
    }
    return flat.captured(program.graph_module, outputs, held, constants, watch)


def _has_unknown_sizes(module: torch.fx.GraphModule) -> bool:
    """Does the size of a tensor depend on values of another, as in ``repeat_interleave`` by a buffer?"""
    values = tree_leaves([value_of(n) for n in module.graph.nodes])
    return any(isinstance(n, torch.SymInt) for v in values if isinstance(v, Tensor) for n in v.shape)


def _recorded(model: nn.Module, inputs: Inputs, train: bool) -> Captured | None:
    """The forward as it runs on real tensors, where ``torch.export`` refused it; None where it depends on the
    values of inputs."""
    own = copied(model).train(train)
    if isinstance(own, torch.fx.GraphModule):
        return None
    flat = _Flat(own, inputs, None)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _silent():
            module, held = record(own, inputs)
    except Exception:
        return None
    (output,) = module.graph.find_nodes(op="output")
    names = [n.name if isinstance(n, torch.fx.Node) else "" for n in output.args[0]]
    return flat.captured(module, names, held)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """While the block lasts, nothing is printed or logged: our error says what ``torch.export`` would."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Flat:
    """Makes the forward of a model return a list of tensors, since ``torch.export`` does not know every class of
    outputs.

    First those that matter, then all, then those that it stores in attributes.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, watch: Watch | None) -> None:
        forward = model.forward
        self.first = self.stored = 0
        """How many tensors matter, and how many are stored in attributes."""

        @functools.wraps(forward)
        def flat(*args: Any, **kwargs: Any) -> list[Tensor]:
            before = {id(t) for t in attributes(model)}
            with watch or contextlib.nullcontext():
                out = forward(*args, **kwargs)
            every = list(tensors(out))
            first = every if inputs.outputs is None or model.training else inputs.outputs(out)
            new = {id(t): t for t in attributes(model) if id(t) not in before}
            self.first, self.stored = len(first), len(new)
            return [*first, *(every if first is not every else ()), *new.values()]

        vars(model)["forward"] = flat

    def captured(
        self,
        module: torch.fx.GraphModule,
        outputs: Sequence[str],
        held: Mapping[str, str],
        constants: Mapping[str, Tensor] = MappingProxyType({}),
        watch: Watch | None = None,
    ) -> Captured:
        """The captured forward whose graph gives the nodes ``outputs``, in their order; "" stands for what is no
        node."""
        last = len(outputs) - self.stored
        return Captured(
            module.graph,
            held,
            constants,
            dict.fromkeys(filter(None, outputs[: self.first]), "an output of the network"),
            tuple(filter(None, outputs[:last])),
            tuple(filter(None, outputs[last:])),
            module,
            watch,
        )


def _as_module(model: torch.fx.GraphModule) -> nn.Module:
    plain = nn.Module()
    vars(plain).update(vars(model), forward=model.forward)
    return plain


def _inline(module: torch.fx.GraphModule) -> None:
    """Put the operators inside ``with torch.autocast(...)`` and ``with torch.no_grad()`` in the place of these
    regions.

    A region is one operator to ``torch.export``. What it is for, precision and gradients, moves no channel.
    """
    graph = module.graph
    for node in [n for n in graph.nodes if n.op == "call_function" and n.target in _REGIONS]:
        region, *inputs = node.args[_REGIONS[node.target] :]
        inside = getattr(module, region.target)
        _inline(inside)
        placeholders = inside.graph.find_nodes(op="placeholder")
        with graph.inserting_before(node):
            outputs = graph.graph_copy(inside.graph, dict(zip(placeholders, inputs, strict=True)))
        for user in list(node.users):  # each takes one output of the region
            user.replace_all_uses_with(outputs[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
        graph.erase_node(node)
        if not region.users:
            graph.erase_node(region)
