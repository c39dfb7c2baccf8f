"""ONNX, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from chipnet._util.imports import optional_import
from chipnet._util.torch_private import tree_leaves
from chipnet.errors import ExportError
from chipnet.formats.batch import batch_shapes
from chipnet.formats.runtimes.base import META, Format, Runner
from chipnet.program.inputs import Inputs
from chipnet.program.outputs import tensors


def write(model: nn.Module, inputs: Inputs, dynamic: bool, opset: int | None, meta: str, path: Path) -> None:
    optional_import("onnxscript", needed_for="ONNX export", install="chipnet[onnx]")
    leaves = [x for x in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(x, Tensor)]
    count = len(list(tensors(inputs(model))))
    names = {
        "input_names": ["input"] if len(leaves) == 1 else None,
        "output_names": ["output"] if count == 1 else None,
    }
    program = torch.onnx.export(
        model,
        inputs.args,
        kwargs=inputs.kwargs,
        dynamo=True,
        verbose=False,
        opset_version=opset,
        dynamic_shapes=batch_shapes(model, inputs) if dynamic else None,
        **names,  # type: ignore[arg-type]
    )
    assert program is not None
    written = program.model.opset_imports.get("")
    if opset is not None and written != opset:  # a conversion that failed is only logged
        raise ExportError(
            f"PyTorch cannot write this network in opset {opset}, only in {written}. Leave opset out."
        )
    program.model.metadata_props[META] = meta
    program.save(path)


def load(path: Path) -> Runner:
    runtime = optional_import("onnxruntime", needed_for="Checking an ONNX file", install="chipnet[onnx]")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> list[Tensor]:
        values = [x for x in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(x, Tensor)]
        feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), values, strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, feeds)]

    return run


FORMAT = Format(".onnx", write, load, opsets=True)
