"""What does each layer of a network compute, move and take? And how much memory do activations take?"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.device import device_of
from chipnet._util.given import NETWORK
from chipnet._util.torch_private import ConvTransposeNd, TorchDispatchMode, tree_leaves
from chipnet.program.inputs import Inputs
from chipnet.program.outputs import tensors
from chipnet.program.ready import check_runs
from chipnet.timing.clock import sync_of


@dataclass(frozen=True)
class Part:
    """One module without submodules: what it computes, moves and takes.

    Attributes:
        kind: its class.
        reads, writes: channels (axis 1; the last one of linear layers).
        macs: multiply-accumulates, of convolutions and linear layers.
        bytes: of input, output and parameters.
        seconds: median time that its calls take in one forward, in eager mode.
    """

    kind: str
    reads: int
    writes: int
    macs: int
    bytes: int
    seconds: float


def parts(network: nn.Module, example_inputs: Any, passes: int = 15) -> dict[str, Part]:
    """Every module without submodules, by name.

    Args:
        network: as it is called, in its mode.
        example_inputs: a tensor, or a tuple or a mapping of arguments.
        passes: forwards that are timed, after those that are not.

    Raises:
        CaptureError: it is no network, or does not run on the inputs.

    Example:
        >>> part = parts(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.ones(1, 3))["0"]
        >>> part.kind, part.reads, part.writes, part.macs
        ('Linear', 3, 4, 12)
    """
    NETWORK.check("network", network)
    inputs, sync = Inputs.of(example_inputs), sync_of(device_of(network))
    check_runs(network, inputs)
    leaves = {n: m for n, m in network.named_modules() if not next(m.children(), None) and n}
    took: dict[str, list[float]] = {n: [] for n in leaves}
    facts: dict[str, tuple[int, int, int, int]] = {}
    began = 0.0

    def before(module: nn.Module, args: Any) -> None:
        nonlocal began
        sync()
        began = time.perf_counter()

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            sync()
            took[name][-1] += time.perf_counter() - began
            if name not in facts:
                facts[name] = _facts(module, args, out)

        return hook

    handles = [m.register_forward_pre_hook(before) for m in leaves.values()]
    handles += [m.register_forward_hook(after(n)) for n, m in leaves.items()]
    try:
        for _ in range(passes + 2):
            for samples in took.values():
                samples.append(0.0)
            network(*inputs.args, **inputs.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {
        n: Part(type(leaves[n]).__name__, *facts[n], statistics.median(samples[2:]))
        for n, samples in took.items()
        if n in facts
    }


def _facts(module: nn.Module, args: Any, out: Any) -> tuple[int, int, int, int]:
    ins, outs = [x for x in args if isinstance(x, Tensor)], list(tensors(out))
    weight = getattr(module, "weight", None)
    macs = 0
    if isinstance(weight, Tensor) and weight.dim() > 1 and ins and outs and weight.numel():
        transposed = isinstance(module, ConvTransposeNd)
        macs = (ins if transposed else outs)[0].numel() * weight[0].numel()
    moved = sum(x.nbytes for x in [*ins, *outs, *module.parameters()])
    axis = -1 if isinstance(module, nn.Linear) else 1
    channels = [xs[0].shape[axis] if xs and xs[0].dim() > 1 else 0 for xs in (ins, outs)]
    return channels[0], channels[1], macs, moved


def peak_memory(network: nn.Module, inputs: Inputs, device: torch.device) -> int:
    """Largest number of bytes of activations alive at once in one forward; weights and inputs are not counted.

    On a CPU: of tensors, without the scratch space of its kernels.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        network(*inputs.args, **inputs.kwargs)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Peak() as peak:
        network(*inputs.args, **inputs.kwargs)
    return peak.most


class _Peak(TorchDispatchMode):
    """Counts the bytes of storages that operators make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if storage.data_ptr() not in given and storage not in self.known:
                    self.known.add(storage)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._freed, storage.nbytes())
        return out

    def _freed(self, size: int) -> None:
        self.now -= size
