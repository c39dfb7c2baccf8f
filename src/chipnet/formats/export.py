"""Networks in the formats of other runtimes: written, loaded there, compared, and only then given their name.

One `Format` per runtime: how it is written and how the file is run. Everything else is shared. This file knows
nothing of pruning; a network is any module.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.files import replacing
from chipnet._util.imports import optional_import
from chipnet._util.torch_private import ConvNd, ConvTransposeNd, calls_around, tree_leaves, tree_map
from chipnet.errors import ChipNetError, ConfigError, ExportError
from chipnet.program.inputs import Inputs
from chipnet.program.names import canonical_names
from chipnet.program.outputs import tensors
from chipnet.program.ready import copied
from chipnet.surgery.verify import compared

META = "chipnet"
"""Under this name the metadata (JSON) are in every file."""

_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONV_OPS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")

Runner = Callable[[Inputs], list[Tensor]]


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
            f"{self.path}: {self.size:,} bytes, {self.folded} batch norms folded; loaded again, "
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
        ConfigError: an unknown format, or a runtime that is not installed.

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
    path = Path(path)
    kind = _kind(path, format)
    if opset is not None and kind != "onnx":
        raise ConfigError(f"opset belongs to ONNX; {kind} has none. Leave it out.")
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigError(f"cannot write {path}: give the name of a file in a folder that exists.")
    try:
        meta = json.dumps(metadata or {})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metadata must be JSON values: {error}.") from error
    given = Inputs.of(inputs).to(torch.device("cpu"))
    with _step(kind, "copying the network to the CPU", _RUNS):
        network = copied(model).cpu().eval()
    double = any(p.dtype == torch.float64 for p in network.parameters())
    size = _batch(given)
    traced = _resized(given, 2) if dynamic_batch else given
    with _step(kind, "capturing the network", _RUNS + (_NOT_DYNAMIC if dynamic_batch else "")):
        program = _program(network, traced, dynamic_batch)
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
            some = _resized(given, n)
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


def fold_norms(model: nn.Module, program: torch.export.ExportedProgram) -> tuple[nn.Module, int]:
    """A copy of ``model`` with batch norms in the weights of the convolutions before them, and how many there were.

    The graph says which: a batch norm in eval mode whose input is a convolution's output that nothing else reads,
    both with weights of their own that nothing else uses. Modules carry it out, so class and forward stay.
    """
    first = canonical_names(model)
    named = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    uses: dict[str, int] = {}
    for node in program.graph.nodes:
        for source in node.all_input_nodes:
            if source.name in named:
                name = first.get(named[source.name], named[source.name])
                uses[name] = uses.get(name, 0) + 1

    def owner(argument: Any) -> str | None:
        """The module whose weight this is, if it is used once."""
        name = named.get(getattr(argument, "name", ""), "")
        name = first.get(name, name)
        return name.rpartition(".")[0] if name and uses[name] == 1 else None

    small = copied(model)
    modules = dict(small.named_modules())
    tensors = {**dict(small.named_parameters()), **dict(small.named_buffers())}

    def own(arguments: Sequence[Any], module: nn.Module, *names: str) -> bool:
        """Are these the module's tensors as they are, and nothing computed from them?"""
        found = [tensors.get(first.get(named.get(getattr(a, "name", ""), ""), "")) for a in arguments]
        return all(
            (a is None) == (held is None) and t is held
            for a, t, held in zip(arguments, found, [getattr(module, n) for n in names], strict=True)
        )

    count = 0
    for node in program.graph.nodes:
        if node.op != "call_function" or not str(node.target).startswith("aten.batch_norm."):
            continue
        before = node.args[0]
        if str(before.target).split(".")[-2:-1] not in [[op] for op in _CONV_OPS]:
            continue
        if len(before.users) != 1 or node.args[5]:  # another reads it too; statistics of the batch
            continue
        conv, norm = modules.get(owner(before.args[1]) or ""), modules.get(owner(node.args[3]) or "")
        if (
            isinstance(conv, ConvNd)
            and _only_a_norm(norm)
            and (_called(before, modules), _called(node, modules)) == (conv, norm)
            and own((*before.args, None)[1:3], conv, "weight", "bias")
            and own(node.args[1:5], norm, "weight", "bias", "running_mean", "running_var")  # type: ignore[arg-type]
        ):
            _fold(conv, norm)
            count += 1
    return small, count


def _called(node: torch.fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The innermost module whose forward made the node."""
    stack = list(calls_around(node).values())
    return modules.get(stack[-1].split("@")[0]) if stack else None


@torch.no_grad()
def _fold(conv: ConvNd, norm: Any) -> None:
    """Rows of the weight are multiplied by what the norm multiplies their channel by. A transposed convolution's
    weight has its rows on the second axis, by groups: ``[in, out / groups, ...]``."""
    scale = torch.rsqrt(norm.running_var + norm.eps) * (1 if norm.weight is None else norm.weight)
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias
    weight, ones = conv.weight, [1] * len(conv.kernel_size)
    if isinstance(conv, ConvTransposeNd):
        grouped = weight.unflatten(0, (conv.groups, -1)) * scale.reshape(conv.groups, 1, -1, *ones)
        folded = grouped.flatten(0, 1)
    else:
        folded = weight * scale.reshape(-1, 1, *ones)
    conv.weight, conv.bias = nn.Parameter(folded.to(weight.dtype)), nn.Parameter(shift.to(weight.dtype))
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(norm, name, None)
    # What is left: the modules in it, if any, and its hooks, which the indexed realisation needs.
    norm.__class__ = nn.Sequential


def _only_a_norm(module: nn.Module | None) -> bool:
    """A batch norm and what it calls on its output: nothing, or timm's drop and activation."""
    if type(module) in _PLAIN_NORMS:
        return True
    names = (
        [type(module).__name__, *(name for name, _ in module.named_children())] if module is not None else []
    )
    return names == ["BatchNormAct2d", "drop", "act"]


# -- formats ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """How a network is written for a runtime, and run by it."""

    suffix: str
    write: Callable[[nn.Module, Inputs, bool, int | None, str, Path], None]
    load: Callable[[Path], Runner]


def _write_onnx(
    model: nn.Module, inputs: Inputs, dynamic: bool, opset: int | None, meta: str, path: Path
) -> None:
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
        dynamic_shapes=_shapes(model, inputs) if dynamic else None,
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


def _load_onnx(path: Path) -> Runner:
    runtime = optional_import("onnxruntime", needed_for="Checking an ONNX file", install="chipnet[onnx]")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> list[Tensor]:
        values = [x for x in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(x, Tensor)]
        feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), values, strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, feeds)]

    return run


def _write_export(
    model: nn.Module, inputs: Inputs, dynamic: bool, opset: int | None, meta: str, path: Path
) -> None:
    torch.export.save(_program(model, inputs, dynamic), path, extra_files={META: meta})


def _load_export(path: Path) -> Runner:
    network = torch.export.load(path).module()
    return lambda inputs: list(tensors(network(*inputs.args, **inputs.kwargs)))


def _write_script(
    model: nn.Module, inputs: Inputs, dynamic: bool, opset: int | None, meta: str, path: Path
) -> None:
    # A trace: control flow is fixed as it is in eval mode, and forward hooks are followed.
    given = {"example_kwarg_inputs": inputs.kwargs} if inputs.kwargs else {"example_inputs": inputs.args}
    traced = torch.jit.trace(model, **given, strict=False)
    torch.jit.save(traced, str(path), _extra_files={META: meta.encode()})


def _load_script(path: Path) -> Runner:
    network = torch.jit.load(str(path))
    return lambda inputs: list(tensors(network(*inputs.args, **inputs.kwargs)))


def _write_executorch(
    model: nn.Module, inputs: Inputs, dynamic: bool, opset: int | None, meta: str, path: Path
) -> None:
    exir = _executorch("executorch.exir")
    xnnpack = _executorch("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    if dynamic:  # what it plans for is the batch that it sees, whatever range the axis has
        inputs = _resized(inputs, _EXECUTORCH_BATCH)
    edge = exir.to_edge_transform_and_lower(
        _program(model, inputs, dynamic, largest=_EXECUTORCH_BATCH),
        partitioner=[xnnpack.XnnpackPartitioner()],
        constant_methods={META: meta},
    )
    path.write_bytes(edge.to_executorch().buffer)


def _load_executorch(path: Path) -> Runner:
    program = _executorch("executorch.runtime").Runtime.get().load_program(path)
    method = program.load_method("forward")

    def run(inputs: Inputs) -> list[Tensor]:
        values = [x for x in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(x, Tensor)]
        return [x.clone() for x in method.execute(values)]

    return run


def _executorch(module: str) -> Any:
    return optional_import(module, needed_for="ExecuTorch export", install="chipnet[executorch]")


_EXECUTORCH_BATCH = 64
"""ExecuTorch plans its memory ahead: a file with a dynamic batch takes up to so many."""

FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _load_onnx),
    "torch-export": Format(".pt2", _write_export, _load_export),
    "torchscript": Format(".ts", _write_script, _load_script),
    "executorch": Format(".pte", _write_executorch, _load_executorch),
}

_OTHERS = " The network itself runs: try fold=False, another opset or another format."
_RUNS = " Check first that the network runs on these inputs in eval mode on the CPU."
_NOT_DYNAMIC = (
    " If the forward fixes the batch size, export it for one: dynamic_batch=False (--static-batch)."
)


def _kind(path: Path, format: str | None) -> str:
    known = ", ".join(f"{name} ({f.suffix})" for name, f in FORMATS.items())
    if format is None:
        found = [name for name, f in FORMATS.items() if path.suffix == f.suffix]
        if not found:
            raise ConfigError(f"the suffix of {path} names no format: {known}. Give format=.")
        return found[0]
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; known: {known}")
    return format


# -- shared by all formats --------------------------------------------------------------------------------


def _batch(inputs: Inputs) -> int:
    first = next(
        (x for x in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(x, Tensor) and x.dim()), None
    )
    if first is None or not len(first):
        raise ConfigError("inputs hold no tensor with a batch of at least one.")
    return len(first)


def _resized(inputs: Inputs, size: int) -> Inputs:
    """The same inputs as a batch of another size: the first ones, and again from the start where they run out."""
    batch = _batch(inputs)
    index = torch.arange(size) % batch

    def one(x: Any) -> Any:
        return x[index] if isinstance(x, Tensor) and x.dim() and len(x) == batch else x

    return Inputs(*tree_map(one, (inputs.args, inputs.kwargs)))


def _shapes(model: nn.Module, inputs: Inputs, largest: int | None = None) -> Any:
    batch = _batch(inputs)
    axis = torch.export.Dim("batch", max=largest) if largest else torch.export.Dim("batch")
    shapes = torch.export.ShapesCollection()
    for x in tree_leaves((inputs.args, inputs.kwargs)):
        if isinstance(x, Tensor) and x.dim() and len(x) == batch:
            shapes[x] = {0: axis}
    return shapes.dynamic_shapes(model, inputs.args, inputs.kwargs)


def _program(
    model: nn.Module, inputs: Inputs, dynamic: bool, largest: int | None = None
) -> torch.export.ExportedProgram:
    shapes = _shapes(model, inputs, largest) if dynamic else None
    return torch.export.export(model, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False)


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
