"""TorchScript, by a trace."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from chipnet.formats.runtimes.base import META, Format, Runner
from chipnet.program.inputs import Inputs
from chipnet.program.outputs import tensors


def write(model: nn.Module, inputs: Inputs, dynamic: bool, opset: int | None, meta: str, path: Path) -> None:
    # A trace: control flow is fixed as it is in eval mode, and forward hooks are followed.
    given = {"example_kwarg_inputs": inputs.kwargs} if inputs.kwargs else {"example_inputs": inputs.args}
    traced = torch.jit.trace(model, **given, strict=False)
    torch.jit.save(traced, str(path), _extra_files={META: meta.encode()})


def load(path: Path) -> Runner:
    network = torch.jit.load(str(path))
    return lambda inputs: list(tensors(network(*inputs.args, **inputs.kwargs)))


FORMAT = Format(".ts", write, load)
