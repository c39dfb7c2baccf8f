"""Networks in the formats of other runtimes: written, loaded there, compared, and only then given their name.

How a file is written and run is said by a `Format`, one per runtime. Everything else is shared, and stands here.
Nothing here knows of pruning; a network is any module.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.files import replacing
from chipnet._util.given import NETWORK, new_file
from chipnet._util.text import amount, value_text
from chipnet.errors import ChipNetError, ConfigError, ExportError
from chipnet.formats.batch import batch_of, captured, resized
from chipnet.formats.fold import fold_norms
from chipnet.formats.runtimes import NAMES, named
from chipnet.program.inputs import Inputs
from chipnet.program.outputs import tensors
from chipnet.program.ready import copied
from chipnet.surgery.verify import compared

FORMATS = {name: named(name) for name in NAMES}

_OTHERS = " The network itself runs: try fold=False, another opset or another format."
_RUNS = " Check first that the network runs on these inputs in eval mode on the CPU."
_NOT_DYNAMIC = (
    " If the forward fixes the batch size, export it for one: dynamic_batch=False (--static-batch)."
)


@dataclass(frozen=True)
class Exported:
    """A file that computes what the network does, as checked.

    Attributes:
        path: the file.
        format: a name of `FORMATS`.
        size: of the file, in bytes.
        folded: batch norms that went into the convolution before them.
        batches: batch sizes that were compared.
        difference: largest difference of any output.
        scale: the largest output.
    """

    path: Path
    format: str
    size: int
    folded: int
    batches: tuple[int, ...]
    difference: float
    scale: float

    def __str__(self) -> str:
        sizes = " and ".join(map(str, self.batches))
        return (
            f"{self.path}: {amount(self.size, 'byte')}, {amount(self.folded, 'batch norm')} folded; loaded again, "
            f"batches of {sizes}: outputs differ by {self.difference:.1e} at most (scale {self.scale:.3g})"
        )


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    inputs: Any,
    *,
    format: str | None = None,
    dynamic_batch: bool = True,
    opset: int | None = None,
    fold: bool = True,
    metadata: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
) -> Exported:
    """Write a network for another runtime, load the file there, and compare outputs on `inputs`.

    The file gets its name only when that went well: a mismatch leaves no file, and an older one as it was.

    Args:
        model: any network, compact or dense, of float32 for most runtimes. It is not changed; what is exported is
            a copy in eval mode on the CPU.
        path: the file; the folder must exist.
        inputs: real inputs, a batch of any size: a tensor, a tuple of forward's arguments or a dict of its keyword
            arguments. Outputs are compared on them.
        format: `onnx`, `torch-export`, `torchscript` or `executorch`; the default goes by the suffix of `path`
            (`.onnx`, `.pt2`, `.ts`, `.pte`).
        dynamic_batch: the file takes batches of any size: of those inputs whose first axis is as long as that of
            the first one. Otherwise it takes the size of `inputs`.
        opset: of ONNX; the default is PyTorch's.
        fold: batch norms whose input is a convolution's output and nothing else's go into its weight. The same
            function, computed with fewer operations.
        metadata: JSON values that travel in the file, under the name `chipnet`.
        tolerance: largest difference allowed, relative to the largest output; 1e-9 at most for a float64 network.

    Raises:
        ExportError: the network cannot be written in this format, or the file computes something else.
        ConfigError: an unknown format, a runtime that is not installed, or a folder that does not exist.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(
        ...         net, f"{folder}/net.pt2", torch.randn(7, 3, 8, 8), metadata={"labels": ["a", "b"]}
        ...     )
        >>> done.format, done.folded, done.batches
        ('torch-export', 1, (7, 1))
    """
    NETWORK.check("model", model)
    path = new_file("path", path)
    kind = _kind(path, format)
    if opset is not None and not FORMATS[kind].opsets:
        raise ConfigError(f"opset belongs to ONNX; {kind} has none. Leave it out.")
    try:
        meta = json.dumps({} if metadata is None else metadata)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metadata must be JSON values: {error}.") from error
    given = Inputs.of(inputs).to(torch.device("cpu"))
    with _step(kind, "copying the network to the CPU", _RUNS):
        network = copied(model).cpu().eval()
    double = any(p.dtype == torch.float64 for p in network.parameters())
    size = batch_of(given)
    traced = resized(given, 2) if dynamic_batch else given
    with _step(kind, "capturing the network", _RUNS + (_NOT_DYNAMIC if dynamic_batch else "")):
        program = captured(network, traced, dynamic_batch)
    with _step(kind, "folding the batch norms", " Try fold=False, and please report it."):
        small, folded = fold_norms(network, program) if fold else (network, 0)
    with torch.no_grad(), replacing(path, FORMATS[kind].suffix) as temporary:
        with _step(kind, "writing the file"):
            FORMATS[kind].write(small, traced, dynamic_batch, opset, meta, temporary)
        with _step(kind, "loading the file"):
            run = FORMATS[kind].load(temporary)
        worst, scale = 0.0, 0.0
        sizes = (size, 2 if size == 1 else 1) if dynamic_batch else (size,)
        for n in sizes:
            some = resized(given, n)
            with _step(kind, f"running the file on a batch of {n}"):
                found = run(some)
            with _step(kind, f"running the network on a batch of {n}", _RUNS):
                wanted = list(tensors(some(network)))
            worst, scale = _compared(wanted, found, kind, n, worst, scale)
        limit = min(tolerance, 1e-9) if double else tolerance
        if not worst <= limit * scale:
            raise ExportError(
                f"the {kind} file does not compute what the network does: outputs differ by {worst:.3g} at scale "
                f"{scale:.3g}, more than {limit:g} of it. No file was left. Try fold=False or another opset, and "
                "please report it."
            )
    return Exported(path, kind, path.stat().st_size, folded, sizes, worst, scale)


def _kind(path: Path, format: str | None) -> str:
    known = ", ".join(f"{name} ({f.suffix})" for name, f in FORMATS.items())
    if format is None:
        found = [name for name, f in FORMATS.items() if path.suffix == f.suffix]
        if not found:
            raise ConfigError(f"the suffix of {path} names no format: {known}. Give format=.")
        return found[0]
    if not isinstance(format, str) or format not in FORMATS:
        raise ConfigError(f"unknown format {value_text(format)}; known: {known}")
    return format


def _compared(
    wanted: list[Tensor], found: list[Tensor], kind: str, size: int, worst: float, scale: float
) -> tuple[float, float]:
    """The largest difference and the largest output so far. NaN and infinities must stand in the same places."""
    shapes = [[tuple(x.shape) for x in outs] for outs in (wanted, found)]
    if shapes[0] != shapes[1]:
        raise ExportError(
            f"on a batch of {size} the {kind} file returns {shapes[1]}, the network {shapes[0]}: it does not "
            f"compute what the network does. No file was left.{_NOT_DYNAMIC}"
        )
    each = [compared([x], [y]) for x, y in zip(wanted, found, strict=True) if x.numel()]
    if blind := [i for i, c in enumerate(each) if not c.compared and c.difference != math.inf]:
        raise ExportError(
            f"on a batch of {size} output {', '.join(map(str, blind))} of the network has no finite number: nobody "
            "could say whether the file computes the same. No file was left. Give inputs (and weights) on which "
            "all outputs are finite."
        )
    if not each:
        raise ExportError(
            f"on a batch of {size} the network returns no numbers that could be compared with the file's. No file "
            "was left. Give inputs on which its outputs are not empty."
        )
    return max(worst, *(c.difference for c in each)), max(scale, *(c.scale for c in each))


@contextmanager
def _step(kind: str, what: str, hint: str = "") -> Iterator[None]:
    """Runtimes raise errors of every class: say in which step, and keep what they said."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters about themselves; outputs are compared anyway
            yield
    except ChipNetError:
        raise
    except Exception as error:
        said = str(error).strip().split("\n")[0].rstrip(".")
        raise ExportError(
            f"{kind}: {what} failed: {type(error).__name__}: {said}.{hint or _OTHERS}"
        ) from error
