"""One model, captured: what an analysis is made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from chipnet.analysis.options import Options
from chipnet.errors import CaptureError
from chipnet.program.capture import Captured, capture
from chipnet.program.counting import counted
from chipnet.program.inputs import Inputs
from chipnet.program.names import canonical_names
from chipnet.program.ready import check_ready, ready
from chipnet.program.spelling import spell
from chipnet.program.watch import Received, values_in_training


@dataclass(frozen=True)
class Network:
    """A copy of a model with the graphs of its forward.

    Attributes:
        model: a copy that has run once, with its attention spelt out; the user's model is not changed.
        inputs: the example inputs.
        shapes: of every tensor in the user's model's state dict.
        unsaved: of its buffers that no state dict has.
        program: the eval graph.
        training: the train-mode graph, where only the outputs of that need some of the parameters.
        values: numbers that the train-mode forward uses as values.
        macs: multiply-accumulates of one real forward, by PyTorch's counter.
        untraced: parameters that no graph reads, or that no output needs where the train-mode graph is not known.
        ignored, chosen: modules that the user's patterns name.
    """

    model: nn.Module
    inputs: Inputs
    shapes: Mapping[str, tuple[int, ...]]
    unsaved: Mapping[str, tuple[int, ...]]
    program: Captured
    training: Captured | None
    values: Sequence[Received]
    macs: int
    untraced: tuple[str, ...]
    ignored: frozenset[str]
    chosen: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any, options: Options) -> Network:
        """Capture a model.

        Raises:
            CaptureError: export failed, or a pattern matches no module.
            ConfigError: the outputs are not there.
        """
        given = Inputs.of(example_inputs, options.outputs)
        check_ready(model, given)
        ignored, chosen = options.ignored(model), options.chosen(model)
        shapes = {n: tuple(t.shape) for n, t in model.state_dict(keep_vars=True).items()}
        buffers = model.named_buffers(remove_duplicate=False)
        unsaved = {n: tuple(b.shape) for n, b in buffers if n not in shapes}
        own, inputs = ready(model, given)
        spell(own)
        macs = counted(own, inputs)
        program, training, untraced = _graphs(own, inputs)
        values = values_in_training(own, inputs)
        return cls(own, inputs, shapes, unsaved, program, training, values, macs, untraced, ignored, chosen)


def _graphs(model: nn.Module, inputs: Inputs) -> tuple[Captured, Captured | None, tuple[str, ...]]:
    """The eval graph, the train-mode graph where it is needed, and the parameters that neither reads."""
    program = capture(model, inputs)
    first = canonical_names(model)

    def read(graph: Captured, nodes: Iterable[str]) -> set[str]:
        return {first.get(n, n) for n in graph.behind(nodes)} & names

    names = {n for n, _ in model.named_parameters()}
    missing = names - read(program, program.every)
    if not missing:
        return program, None, ()
    twice = inputs.twice()
    try:
        training = capture(ready(model, twice, train=True)[0], twice, train=True)
    except CaptureError:  # it wants targets: what training may need of this graph stays
        ends = [n for n in program.ends() if read(program, [n]) & missing]
        kept = program.keeping(ends, "read by nothing in eval mode, and training may read it")
        return kept, None, tuple(sorted(missing))
    stored = [n for n in training.stored if read(training, [n]) & missing]
    training = training.keeping(stored, "stored by the train-mode forward")
    untraced = tuple(sorted(missing - {first.get(n, n) for n in program.used() | training.used()}))
    return program, training if missing & read(training, training.outputs) else None, untraced
