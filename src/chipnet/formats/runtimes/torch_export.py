"""PyTorch's own exported programs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from chipnet.formats.batch import captured
from chipnet.formats.runtimes.base import META, Format, Runner
from chipnet.program.inputs import Inputs
from chipnet.program.outputs import tensors


def write(model: nn.Module, inputs: Inputs, dynamic: bool, opset: int | None, meta: str, path: Path) -> None:
    torch.export.save(captured(model, inputs, dynamic), path, extra_files={META: meta})


def load(path: Path) -> Runner:
    network = torch.export.load(path).module()
    return lambda inputs: list(tensors(network(*inputs.args, **inputs.kwargs)))


FORMAT = Format(".pt2", write, load)
