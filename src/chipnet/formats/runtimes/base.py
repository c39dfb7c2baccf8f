"""What a format is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from chipnet.program.inputs import Inputs

META = "chipnet"
"""Under this name the metadata (JSON) are in every file."""

Runner = Callable[[Inputs], list[Tensor]]


@dataclass(frozen=True)
class Format:
    """How a network is written for a runtime, and run by it.

    Attributes:
        suffix: of its files.
        write: puts a network (in eval mode on the CPU) into a file: called with the network, example inputs, may
            the batch vary, an opset or None, metadata as JSON, the path.
        load: loads the file in its own runtime; returns what runs it.
        opsets: can an opset be asked for?
    """

    suffix: str
    write: Callable[[nn.Module, Inputs, bool, int | None, str, Path], None]
    load: Callable[[Path], Runner]
    opsets: bool = False
