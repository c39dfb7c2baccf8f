"""ExecuTorch, with XNNPACK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from chipnet._util.imports import optional_import
from chipnet._util.torch_private import tree_leaves
from chipnet.formats.batch import captured, resized
from chipnet.formats.runtimes.base import META, Format, Runner
from chipnet.program.inputs import Inputs

_LARGEST = 64
"""ExecuTorch plans its memory ahead: a file with a dynamic batch takes up to so many."""


def _needed(module: str) -> Any:
    return optional_import(module, needed_for="ExecuTorch export", install="chipnet[executorch]")


def write(model: nn.Module, inputs: Inputs, dynamic: bool, opset: int | None, meta: str, path: Path) -> None:
    exir = _needed("executorch.exir")
    xnnpack = _needed("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    if dynamic:  # what it plans for is the batch that it sees, whatever range the axis has
        inputs = resized(inputs, _LARGEST)
    edge = exir.to_edge_transform_and_lower(
        captured(model, inputs, dynamic, largest=_LARGEST),
        partitioner=[xnnpack.XnnpackPartitioner()],
        constant_methods={META: meta},
    )
    path.write_bytes(edge.to_executorch().buffer)


def load(path: Path) -> Runner:
    program = _needed("executorch.runtime").Runtime.get().load_program(path)
    method = program.load_method("forward")

    def run(inputs: Inputs) -> list[Tensor]:
        values = [x for x in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(x, Tensor)]
        return [x.clone() for x in method.execute(values)]

    return run


FORMAT = Format(".pte", write, load)
