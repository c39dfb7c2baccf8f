"""How long do two networks take, side by side, and why not less?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.device import device_of
from chipnet._util.given import NETWORK
from chipnet._util.imports import optional_import
from chipnet._util.text import type_text
from chipnet._util.torch_private import tree_leaves
from chipnet.errors import ChipNetError, ConfigError
from chipnet.formats.export import export
from chipnet.program.inputs import Inputs
from chipnet.program.ready import check_runs, copied
from chipnet.timing.clock import Machine, Timing, device_name, interleaved, sync_of, threads_set_to
from chipnet.timing.layers import Part, parts, peak_memory

ALIGN = 8
"""Widths that are a multiple of this fill the vector registers of most machines."""

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

WHY = {
    "call": "calls that cost what any call costs, whatever they compute",
    "memory": "few or no MACs per byte moved: memory-bound",
    "width": "widths that are not a multiple of 8",
    "small": "smaller layers use the machine less well",
}
"""Why a layer keeps more of its time than of its multiply-accumulates; the first that holds is the reason."""


@dataclass(frozen=True)
class Row:
    """One module in both networks, and why its time did not fall with the multiply-accumulates (MACs).

    Attributes:
        name: of the module.
        first, second: the module in each network, where it is there.
        excess: the second time in seconds, less the first time multiplied by the fraction of MACs that is left (of
            the module, or of the network where the module has none).
        why: a key of `WHY`; empty where the excess is not above zero.
        widths: those that are no multiple of 8, where these are the reason.
    """

    name: str
    first: Part | None
    second: Part | None
    excess: float
    why: str
    widths: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.why, ", ".join(map(str, self.widths))]).strip()


def reason(machine: Machine, part: Part) -> tuple[str, tuple[int, ...]]:
    """What holds a layer back: a key of `WHY`, and the widths where they are it."""
    if part.seconds < 3 * machine.call:
        return "call", ()
    if part.macs / part.bytes < machine.macs / machine.bytes:
        return "memory", ()
    odd = tuple(dict.fromkeys(n for n in (part.reads, part.writes) if n % ALIGN))
    return ("width", odd) if odd else ("small", ())


def _rows(
    first: Mapping[str, Part], second: Mapping[str, Part], overall: float, machine: Machine
) -> tuple[Row, ...]:
    """Every module of both networks; ``overall``: the fraction of the network's MACs that is left."""
    rows = []
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name), second.get(name)
        left = b.macs / a.macs if a is not None and b is not None and a.macs else overall
        excess = (b.seconds if b is not None else 0.0) - (a.seconds * left if a is not None else 0.0)
        why, widths = reason(machine, b) if b is not None and excess > 0 else ("", ())
        rows.append(Row(name, a, b, excess, why, widths))
    return tuple(sorted(rows, key=lambda row: -row.excess))


# -- side by side -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two networks on one machine.

    Attributes:
        names: of the two networks; the second is compared with the first.
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
                out[row.why] = out.get(row.why, 0.0) + row.excess
        return dict(sorted(out.items(), key=lambda item: -item[1]))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; times in seconds, memory in bytes."""
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
        rounds: how many there are at least.

    Raises:
        ConfigError: not two networks, or an unknown runtime.
        CaptureError: one of them is no network, or does not run on the inputs.

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
    _check(networks, runtimes)
    given = Inputs.of(inputs)
    copies = {n: copied(m).eval() for n, m in networks.items()}
    for network in copies.values():
        check_runs(network, given)
    first, second = copies
    device = device_of(copies[first])
    with threads_set_to(threads) as used:
        timings, ratios, skipped = _in_runtimes(copies, given, used, runtimes, seconds, rounds)
        found = {n: parts(m, given) for n, m in copies.items()}
        machine = Machine.measured(device)
    macs = {n: sum(p.macs for p in f.values()) for n, f in found.items()}
    leaves = [x for x in tree_leaves((given.args, given.kwargs)) if isinstance(x, Tensor)]
    return Comparison(
        names=(first, second),
        batch=leaves[0].shape[0] if leaves and leaves[0].dim() else 1,
        threads=used,
        device=device_name(device),
        dtype=str(next((p.dtype for p in copies[first].parameters()), torch.float32)).removeprefix("torch."),
        versions=_versions(timings),
        timings=timings,
        skipped=skipped,
        ratios=ratios,
        memory={n: peak_memory(m, given, device) for n, m in copies.items()},
        weights={n: sum(t.nbytes for t in [*m.parameters(), *m.buffers()]) for n, m in copies.items()},
        macs=macs,
        rows=_rows(found[first], found[second], macs[second] / max(macs[first], 1), machine),
    )


def _check(networks: Mapping[str, nn.Module], runtimes: Sequence[str]) -> None:
    if not isinstance(networks, Mapping) or len(networks) != 2:
        got = len(networks) if isinstance(networks, Mapping) else type_text(networks)
        raise ConfigError(f"compare takes two networks, got {got}: give {{'dense': dense, 'compact': small}}")
    for name, network in networks.items():
        NETWORK.check(str(name), network)
    if unknown := [r for r in runtimes if r not in RUNTIMES]:
        raise ConfigError(f"unknown runtime {', '.join(unknown)}; known: {', '.join(RUNTIMES)}")


def _in_runtimes(
    networks: Mapping[str, nn.Module],
    inputs: Inputs,
    threads: int,
    runtimes: Sequence[str],
    seconds: float,
    rounds: int,
) -> tuple[dict[str, dict[str, Timing]], dict[str, tuple[float, float, float]], dict[str, str]]:
    """``timings``, ``ratios`` and ``skipped`` of a `Comparison`."""
    timings: dict[str, dict[str, Timing]] = {}
    ratios, skipped = {}, {}
    first, second = networks
    sync = sync_of(device_of(networks[first]))
    for runtime in runtimes:
        try:
            calls = {n: RUNTIMES[runtime](m, inputs, threads) for n, m in networks.items()}
            samples = interleaved(calls, seconds=seconds, rounds=rounds, sync=sync)
        except Exception as error:  # compilers and runtimes fail in their own ways: say which, go on
            skipped[runtime] = _failure(runtime, error)
            continue
        timings[runtime] = {n: Timing.of(t) for n, t in samples.items()}
        ratio = Timing.ratio(samples[first], samples[second])
        ratios[runtime] = (ratio.median, ratio.low, ratio.high)
    return timings, ratios, skipped


def _versions(runtimes: Iterable[str]) -> dict[str, str]:
    """The versions of PyTorch, and of onnxruntime where it was used."""
    found = {"torch": str(torch.__version__)}
    if "onnxruntime" in runtimes:
        found["onnxruntime"] = optional_import("onnxruntime", needed_for="", install="").__version__
    return found


def _failure(runtime: str, error: Exception) -> str:
    """Why a runtime could not be measured."""
    text = " ".join(str(error).split())
    if runtime == "compile" and not isinstance(error, ChipNetError):
        hint = "torch.compile needs a C++ compiler (g++ or clang) and Python's headers on a CPU, Triton on a GPU. "
        return f"{hint}{type(error).__name__}: {text[:200]}"
    return text[:300]
