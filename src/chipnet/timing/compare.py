"""How long networks take, side by side: timed in turns, so that what else the machine does hits all of them.

Times are wall-clock per call. What is compared are medians and quartiles over rounds; in a round every network
runs once, in an order that rotates. This file prunes nothing; the latency budget (`_latency.py`) asks it.
"""

from __future__ import annotations

import math
import platform
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chipnet._util.imports import optional_import
from chipnet._util.sizes import check_size
from chipnet.errors import ChipNetError, ConfigError
from chipnet.formats.export import export
from chipnet.program.inputs import Inputs, device_of
from chipnet.program.outputs import tensors
from chipnet.program.ready import copied

SAMPLE = 0.002
"""Seconds that one sample takes at least: fast calls are repeated, so that the clock does not decide."""

ALIGN = 8
"""Widths that are a multiple of this fill the vector registers of most machines."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one network in one runtime: median, quartiles and shortest over rounds."""

    median: float
    low: float
    high: float
    best: float
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """
        >>> Timing.of([3.0, 1.0, 2.0, 5.0, 4.0])
        Timing(median=3.0, low=2.0, high=4.0, best=1.0, rounds=5)
        """
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, min(samples), len(samples))

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, as a part of the median."""
        return (self.high - self.low) / 2 / self.median


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 3.0,
    rounds: int = 9,
    sync: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time calls in turns: in every round each is timed once, and the order rotates.

    Args:
        calls: what to time, by name.
        seconds: rounds go on until these have passed.
        rounds: at least so many.
        sync: waits until the device has done what was asked of it.

    Returns:
        Per name the seconds per call of every round; sample ``i`` of all names is of the same round.

    Example:
        >>> times = interleaved({"a": lambda: sum(range(9)), "b": lambda: sum(range(9999))}, seconds=0.1)
        >>> len(times["a"]) == len(times["b"]) >= 9 and min(times["b"]) > min(times["a"])
        True
    """
    repeats = {}
    for name, call in calls.items():  # this is the warm-up, too
        sync()
        until, count = time.perf_counter() + min(seconds / 10, 0.3), 0
        begin = time.perf_counter()
        while count < 3 or time.perf_counter() < until:
            call()
            count += 1
        sync()
        repeats[name] = max(1, math.ceil(SAMPLE * count / (time.perf_counter() - begin)))
    samples: dict[str, list[float]]
    names, done, samples = list(calls), 0, {name: [] for name in calls}
    until = time.perf_counter() + seconds
    while done < rounds or (time.perf_counter() < until and done < 1000):
        turn = done % len(names)
        for name in names[turn:] + names[:turn]:
            call, count = calls[name], repeats[name]
            sync()
            begin = time.perf_counter()
            for _ in range(count):
                call()
            sync()
            samples[name].append((time.perf_counter() - begin) / count)
        done += 1
    return samples


# -- runtimes ---------------------------------------------------------------------------------------------


def _eager(network: nn.Module, inputs: Inputs, threads: int) -> Callable[[], Any]:
    return lambda: network(*inputs.args, **inputs.kwargs)


def _compile(network: nn.Module, inputs: Inputs, threads: int) -> Callable[[], Any]:
    compiled = torch.compile(network)
    compiled(*inputs.args, **inputs.kwargs)
    return lambda: compiled(*inputs.args, **inputs.kwargs)


def _onnxruntime(network: nn.Module, inputs: Inputs, threads: int) -> Callable[[], Any]:
    runtime = optional_import("onnxruntime", needed_for="The onnxruntime column", install="chipnet[onnx]")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    on_gpu = any(p.is_cuda for p in network.parameters())
    wanted = ["CUDAExecutionProvider"] if on_gpu else ["CPUExecutionProvider"]
    if wanted[0] not in runtime.get_available_providers():
        raise ConfigError(f"this onnxruntime has no {wanted[0]}: install onnxruntime-gpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export(network, path, inputs, dynamic_batch=False)
        session = runtime.InferenceSession(path.read_bytes(), options, providers=wanted)
    values = [x.cpu() for x in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(x, Tensor)]
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), values, strict=True)}
    return lambda: session.run(None, feeds)


RUNTIMES: dict[str, Callable[[nn.Module, Inputs, int], Callable[[], Any]]] = {
    "eager": _eager,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
}


# -- layer by layer ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One module that has no modules in it, in one network: what it computes, moves and takes.

    Attributes:
        kind: its class.
        reads, writes: channels (axis 1; the last one of linear layers).
        macs: multiply-accumulates, of convolutions and linear layers.
        bytes: of input, output and parameters.
        seconds: median time of its calls in one forward, in eager mode.
    """

    kind: str
    reads: int
    writes: int
    macs: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """One module in both networks, and why its time did not fall with the multiply-accumulates.

    ``excess`` is the time that is left beyond ``first.seconds`` times the part of the multiply-accumulates that is
    left (of the module; of the whole network where the module has none).
    """

    name: str
    first: Part | None
    second: Part | None
    excess: float
    why: str


@dataclass(frozen=True)
class Machine:
    """What limits a layer here, measured: multiply-accumulates and bytes a second, seconds a call."""

    macs: float
    bytes: float
    call: float

    @classmethod
    def measured(cls, device: torch.device, sync: Callable[[], None]) -> Machine:
        square = torch.randn(384, 384, device=device)
        many = torch.randn(1 << 23, device=device)
        into = torch.empty_like(many)
        tiny, one = nn.Conv2d(1, 1, 1).to(device), torch.zeros(1, 1, 1, 1, device=device)
        calls = {
            "macs": lambda: square @ square,
            "bytes": lambda: into.copy_(many),
            "call": lambda: tiny(one),
        }
        took = {
            n: statistics.median(t) for n, t in interleaved(calls, seconds=0.3, rounds=5, sync=sync).items()
        }
        return cls(384**3 / took["macs"], 2 * many.nbytes / took["bytes"], took["call"])

    def reason(self, part: Part) -> str:
        """What holds a layer back: a key of `WHY`, and for widths which."""
        if part.seconds < 3 * self.call:
            return "call"
        if part.macs / part.bytes < self.macs / self.bytes:
            return "memory"
        odd = [n for n in (part.reads, part.writes) if n % ALIGN]
        return f"width {', '.join(map(str, dict.fromkeys(odd)))}" if odd else "small"


WHY = {
    "call": "calls that cost what any call costs, whatever they compute",
    "memory": "few or no MACs per byte moved: memory-bound",
    "width": "widths that are not a multiple of 8",
    "small": "smaller layers use the machine less well",
}
"""Why a layer takes more of its time than it has of its multiply-accumulates, in the order of the questions."""


def parts(network: nn.Module, inputs: Inputs, sync: Callable[[], None], passes: int = 15) -> dict[str, Part]:
    """What every module that has no modules in it computes, moves and takes, by name."""
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
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        macs = (ins if transposed else outs)[0].numel() * weight[0].numel()
    moved = sum(x.nbytes for x in [*ins, *outs, *module.parameters()])
    axis = -1 if isinstance(module, nn.Linear) else 1
    channels = [xs[0].shape[axis] if xs and xs[0].dim() > 1 else 0 for xs in (ins, outs)]
    return channels[0], channels[1], macs, moved


# -- side by side -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two networks on one machine.

    Attributes:
        names: of the two networks; the first is what the second is measured against.
        batch, threads, device, dtype, versions: under what conditions.
        timings: runtime -> name -> `Timing`.
        skipped: runtime -> why it could not be measured.
        ratios: runtime -> (median, low, high) of the second network's time as a part of the first's, by rounds.
        memory: name -> largest number of bytes of activations alive at once, in eager mode.
        weights: name -> bytes of parameters and buffers.
        macs: name -> multiply-accumulates of convolutions and linear layers.
        rows: module by module, in eager mode, the largest excess first.
    """

    names: tuple[str, str]
    batch: int
    threads: int
    device: str
    dtype: str
    versions: Mapping[str, str]
    timings: Mapping[str, Mapping[str, Timing]]
    skipped: Mapping[str, str]
    ratios: Mapping[str, tuple[float, float, float]]
    memory: Mapping[str, int]
    weights: Mapping[str, int]
    macs: Mapping[str, int]
    rows: tuple[Row, ...]

    @property
    def macs_left(self) -> float:
        """Multiply-accumulates of the second network as a part of the first's."""
        return self.macs[self.names[1]] / max(self.macs[self.names[0]], 1)

    def verdict(self) -> list[str]:
        """One line a runtime: did fewer multiply-accumulates give speed, and if not, where did the time go?"""
        lines = []
        for runtime, (ratio, low, high) in self.ratios.items():
            left = f"for {self.macs_left:.0%} of the MACs"
            said = f"{runtime}: {ratio:.0%} of the time ({low:.0%} to {high:.0%}) {left}"
            if high < 1:
                said += f", {1 / ratio:.2f} times as fast"
            elif low <= 1:
                said += ", no difference that this measurement can see"
            else:
                said += ", slower"
            lines.append(said)
        short = [r for r, (ratio, *_) in self.ratios.items() if ratio > self.macs_left + 0.1]
        if short and (causes := self.causes()):
            total = sum(causes.values())
            listed = "; ".join(f"{seconds / total:.0%} {WHY[why]} ({why})" for why, seconds in causes.items())
            lines.append(
                f"The time fell less than the MACs in {', '.join(short)}. "
                f"What took the rest, in eager mode: {listed}."
            )
        return lines

    def causes(self) -> dict[str, float]:
        """Excess seconds by reason (of `WHY`), the largest first."""
        out: dict[str, float] = {}
        for row in self.rows:
            if row.excess > 0:
                why = row.why.split()[0]
                out[why] = out.get(why, 0.0) + row.excess
        return dict(sorted(out.items(), key=lambda item: -item[1]))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; times in seconds, memory in bytes."""
        from dataclasses import asdict

        return {**asdict(self), "macs_left": self.macs_left, "verdict": self.verdict()}


@torch.no_grad()
def compare(
    networks: Mapping[str, nn.Module],
    inputs: Any,
    *,
    runtimes: Sequence[str] = tuple(RUNTIMES),
    threads: int | None = None,
    seconds: float = 3.0,
    rounds: int = 9,
) -> Comparison:
    """Measure two networks side by side, in every runtime, interleaved.

    Args:
        networks: two, by name; the second is compared with the first. Eval mode is set on copies.
        inputs: on the networks' device, as `chipnet.export` takes them. Their batch size is what is measured.
        runtimes: of `RUNTIMES`: `eager`, `compile` (`torch.compile`), `onnxruntime`. One that cannot run here is
            skipped, and the reason is kept.
        threads: of the CPU; None: PyTorch's.
        seconds: of measurement per runtime.
        rounds: at least so many.

    Raises:
        ConfigError: not two networks, or an unknown runtime.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> def net(width):
        ...     return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 9))
        >>> done = compare(
        ...     {"wide": net(4096), "narrow": net(16)}, torch.randn(8, 64), runtimes=["eager"], seconds=0.2
        ... )
        >>> done.ratios["eager"][0] < 1 and done.memory["narrow"] < done.memory["wide"]
        True
    """
    if len(networks) != 2:
        raise ConfigError(f"compare takes two networks, got {len(networks)}")
    unknown = [r for r in runtimes if r not in RUNTIMES]
    if unknown:
        raise ConfigError(f"unknown runtime {', '.join(unknown)}; known: {', '.join(RUNTIMES)}")
    given = Inputs.of(inputs)
    copies = {n: copied(m).eval() for n, m in networks.items()}
    first, second = copies
    device = device_of(copies[first])
    sync = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    timings: dict[str, dict[str, Timing]] = {}
    ratios, skipped = {}, {}
    with _threads(threads) as used:
        for runtime in runtimes:
            try:
                calls = {n: RUNTIMES[runtime](m, given, used) for n, m in copies.items()}
                samples = interleaved(calls, seconds=seconds, rounds=rounds, sync=sync)
            except Exception as error:  # compilers and runtimes fail in their own ways: say which, go on
                skipped[runtime] = _said(runtime, error)
                continue
            timings[runtime] = {n: Timing.of(t) for n, t in samples.items()}
            both = Timing.of([b / a for a, b in zip(samples[first], samples[second], strict=True)])
            ratios[runtime] = (both.median, both.low, both.high)
        found = {n: parts(m, given, sync) for n, m in copies.items()}
        machine = Machine.measured(device, sync)
    macs = {n: sum(p.macs for p in f.values()) for n, f in found.items()}
    rows = _rows(found[first], found[second], macs[second] / max(macs[first], 1), machine)
    leaves = [x for x in tree_leaves((given.args, given.kwargs)) if isinstance(x, Tensor)]
    versions = {"torch": torch.__version__}
    if "onnxruntime" in timings:
        versions["onnxruntime"] = optional_import("onnxruntime", needed_for="", install="").__version__
    return Comparison(
        names=(first, second),
        batch=leaves[0].shape[0] if leaves and leaves[0].dim() else 1,
        threads=used,
        device=device_name(device),
        dtype=str(next((p.dtype for p in copies[first].parameters()), torch.float32)).removeprefix("torch."),
        versions=versions,
        timings=timings,
        skipped=skipped,
        ratios=ratios,
        memory={n: peak_memory(m, given, device) for n, m in copies.items()},
        weights={n: sum(t.nbytes for t in [*m.parameters(), *m.buffers()]) for n, m in copies.items()},
        macs=macs,
        rows=rows,
    )


def device_name(device: torch.device) -> str:
    """What the device is called: a GPU's name, or a CPU's as the system gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return f"{device.type} {platform.machine()} {model}".strip()


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


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    was = torch.get_num_threads()
    if count is not None:
        check_size("threads", count)
    torch.set_num_threads(count or was)
    try:
        yield count or was
    finally:
        torch.set_num_threads(was)


def _rows(
    first: Mapping[str, Part], second: Mapping[str, Part], overall: float, machine: Machine
) -> tuple[Row, ...]:
    rows = []
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name), second.get(name)
        left = b.macs / a.macs if a is not None and b is not None and a.macs else overall
        excess = (b.seconds if b is not None else 0.0) - (a.seconds * left if a is not None else 0.0)
        why = machine.reason(b) if b is not None and excess > 0 else ""
        rows.append(Row(name, a, b, excess, why))
    return tuple(sorted(rows, key=lambda row: -row.excess))


def _said(runtime: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if runtime == "compile" and not isinstance(error, ChipNetError):
        hint = "torch.compile needs a C++ compiler (g++ or clang) and Python's headers on a CPU, Triton on a GPU. "
        return f"{hint}{type(error).__name__}: {text[:200]}"
    return text[:300]
