"""From a module and example inputs to a channel graph: ``torch.export`` and one walk over its nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind

from chipnet._errors import CaptureError
from chipnet._graph import Barrier, ChannelGraph, Mix, Norm, Pin
from chipnet._rules import apply
from chipnet._trace import Labels, Realisation, Tracer

Inputs = tuple[Any, ...]


def as_inputs(example_inputs: Any) -> Inputs:
    """A tensor or a sequence of positional arguments, as the tuple a forward is called with."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs)
    raise CaptureError(
        f"example_inputs must be a tensor or a tuple of forward's arguments, got {type(example_inputs).__name__}"
    )


def export(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The model's forward in eval mode as an ATen graph. The model is left as it was."""
    training = {m: m.training for m in model.modules()}
    try:
        with torch.no_grad():
            model.eval()
            return torch.export.export(model, inputs, strict=False)
    except Exception as e:
        shapes = ", ".join(str(tuple(a.shape)) if isinstance(a, Tensor) else repr(a) for a in inputs)
        said = str(e).strip().split("\n")[0]
        raise CaptureError(
            f"{type(model).__name__} could not be captured with example inputs of shape {shapes}.\n"
            f"torch.export said: {type(e).__name__}: {said}\n"
            f"{_user_line(e)}"
            "Check first that model(*example_inputs) runs; then remove data-dependent control flow from forward."
        ) from e
    finally:
        for module, flag in training.items():
            module.training = flag


def _user_line(error: BaseException) -> str:
    lines = []
    tb = error.__traceback__
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        if "/torch/" not in name.replace("\\", "/") and "/chipnet/_" not in name.replace("\\", "/"):
            lines.append(f"{name}:{tb.tb_lineno} in {tb.tb_frame.f_code.co_name}")
        tb = tb.tb_next
    return f"at {lines[-1]}\n" if lines else ""


def trace(
    model: nn.Module,
    program: torch.export.ExportedProgram,
    realisation: Realisation,
    literal: frozenset[str] = frozenset(),
) -> ChannelGraph:
    """Walk the exported graph with the rules. ``literal``: nodes known to hold the user's fixed sizes."""
    graph = ChannelGraph()
    t = Tracer(graph, dict(model.named_modules(remove_duplicate=False)), realisation)
    t.literal = literal
    t.parameters = frozenset(n for n, _ in model.named_parameters())
    signature = program.graph_signature
    specs = {s.arg.name: s for s in signature.input_specs if hasattr(s.arg, "name")}
    outputs = [
        s.arg.name
        for s in signature.output_specs
        if s.kind == OutputKind.USER_OUTPUT and hasattr(s.arg, "name")
    ]
    canonical = canonical_names(model)
    env: dict[torch.fx.Node, Any] = {}
    uses: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            kind, target = specs[node.name].kind, specs[node.name].target
            if kind in (InputKind.PARAMETER, InputKind.BUFFER) and target is not None:
                uses[canonical.get(target, target)] += len(node.users)
    t.calls = dict(uses)

    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = _placeholder(t, node, specs[node.name], canonical)
        elif node.op == "get_attr":
            val = node.meta.get("val")
            env[node] = t.uniform(int(t.constant[0]), tuple(val.shape)) if isinstance(val, Tensor) else val
        elif node.op == "call_function":
            args = torch.fx.node.map_arg(node.args, lambda n: env[n])
            kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: env[n])
            env[node] = apply(t, node, args, dict(kwargs))
        elif node.op == "output":
            t.node = node
            for n in node.all_input_nodes:
                if n.name in outputs and isinstance(env[n], Labels):
                    slots = t.labelled(env[n]).slots()
                    dst = graph.new(1)
                    graph.pin(slots, Pin("an output of the network", n.name, "", ""))
                    graph.pin(dst, Pin("an output of the network", n.name, "", ""))
                    graph.facts.append(Barrier(dst, slots, output=True))
    for i, fact in enumerate(graph.facts):  # a gate around one module's call would not act on another's
        if isinstance(fact, (Mix, Norm)) and fact.host and t.foreign & {fact.host.weight, fact.host.bias}:
            graph.facts[i] = replace(fact, host=None)
    return graph


def _placeholder(t: Tracer, node: torch.fx.Node, spec: Any, canonical: dict[str, str]) -> Any:
    val = node.meta.get("val")
    if not isinstance(val, Tensor):
        return val
    shape = tuple(int(n) for n in val.shape)
    t.node = node
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
        return Labels(None, shape, canonical.get(spec.target, spec.target))
    slots = t.graph.new(1)
    t.source(slots, live=True, flow=spec.kind == InputKind.USER_INPUT, reason="an input of the network")
    return t.uniform(int(slots[0]), shape)


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
