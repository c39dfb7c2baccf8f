"""Inputs as batches of any size, and networks captured for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.torch_private import tree_leaves, tree_map
from chipnet.errors import ConfigError
from chipnet.program.inputs import Inputs


def batch_of(inputs: Inputs) -> int:
    first = next(
        (x for x in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(x, Tensor) and x.dim()), None
    )
    if first is None or not len(first):
        raise ConfigError("inputs hold no tensor with a batch of at least one.")
    return len(first)


def resized(inputs: Inputs, size: int) -> Inputs:
    """The same inputs as a batch of another size: the first ones, and again from the start where they run out."""
    batch = batch_of(inputs)
    index = torch.arange(size) % batch

    def one(x: Any) -> Any:
        return x[index] if isinstance(x, Tensor) and x.dim() and len(x) == batch else x

    return Inputs(*tree_map(one, (inputs.args, inputs.kwargs)))


def batch_shapes(model: nn.Module, inputs: Inputs, largest: int | None = None) -> Any:
    batch = batch_of(inputs)
    axis = torch.export.Dim("batch", max=largest) if largest else torch.export.Dim("batch")
    shapes = torch.export.ShapesCollection()
    for x in tree_leaves((inputs.args, inputs.kwargs)):
        if isinstance(x, Tensor) and x.dim() and len(x) == batch:
            shapes[x] = {0: axis}
    return shapes.dynamic_shapes(model, inputs.args, inputs.kwargs)


def captured(
    model: nn.Module, inputs: Inputs, dynamic: bool, largest: int | None = None
) -> torch.export.ExportedProgram:
    shapes = batch_shapes(model, inputs, largest) if dynamic else None
    return torch.export.export(model, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False)
