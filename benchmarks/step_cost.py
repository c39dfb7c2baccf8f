"""What soft pruning adds to a training step: time and peak memory beside the dense step, in one run.

    python -m benchmarks.step_cost --models resnet20,resnet56 --batch-size 64

Both kinds of step are taken in turns on the same network, blocks of a few steps each, so that a busy machine slows
both. Times are CPU seconds of the one thread that runs, on CUDA wall-clock seconds. Masks that are solved anew 60
times in the phase cost a solve each, which is measured apart and spread over the phase's steps: the ratio counts
both. Memory is the largest amount allocated in a step: on CUDA the allocator's, on the CPU PyTorch's profiler's.
Operators are those that PyTorch's profiler counts in a step (not compiled): a number without noise.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import chipnet
from chipnet.budget.ranking import best_mask
from chipnet.lab.models import get_model
from chipnet.methods import Gradual


class Steps:
    """One network, one optimiser; with or without a pruner."""

    def __init__(self, a: argparse.Namespace, model: str, method: str | None) -> None:
        torch.manual_seed(0)
        device = torch.device(a.device)
        self.network = get_model(model, 10, 3).to(device)
        x = torch.randn(a.batch_size, 3, a.size, a.size, device=device)
        self.x, self.y = x, torch.randint(10, (a.batch_size,), device=device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)
        self.pruner = None
        if method is not None:
            # So many steps that all of the benchmark's are in the part in which masks still change.
            self.pruner = chipnet.Pruner(self.network, x[:1], "macs=0.25", steps=a.steps, method=method)
        self.model: Any = torch.compile(self.network) if a.compile else self.network
        self.precision = torch.autocast(device.type, torch.bfloat16, enabled=a.bf16)

    def step(self) -> None:
        with self.precision:
            loss = F.cross_entropy(self.model(self.x), self.y)
        if self.pruner is not None:
            loss = loss + self.pruner.loss()
        loss.backward()
        self.optimizer.step()
        if self.pruner is not None:
            self.pruner.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, count: int, what: Callable[[], Any] | None = None) -> float:
        clock = time.perf_counter if self.x.is_cuda else time.process_time
        _wait(self.x)
        start = clock()
        for _ in range(count):
            (what or self.step)()
        _wait(self.x)
        return (clock() - start) / count

    def solving(self, steps: int) -> float:
        """Seconds a step for solving masks anew, spread over the phase."""
        method = self.pruner.method if self.pruner is not None else None
        if not isinstance(method, Gradual):
            return 0.0
        return method.refreshes * self.seconds(1, lambda: _solve(method)) / steps

    def peak(self) -> int:
        """Bytes: the largest sum of what was allocated and not yet freed, during one step."""
        if self.x.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            self.step()
        now = most = 0
        for event in trace.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                most = max(most, now)
        return most + sum(p.numel() * p.element_size() for p in _tensors(self))

    def operators(self) -> int:
        """How many operators of PyTorch a step calls, those inside of others included."""
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            self.step()
        return sum(event.name.startswith("aten::") for event in trace.events() or [])


def _solve(method: Gradual) -> None:
    best_mask(method.analysis, method._shrunk(0.3), method.ranking(), full=False)


def _tensors(steps: Steps) -> list[torch.Tensor]:
    state = [v for s in steps.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return [*steps.network.parameters(), *steps.network.buffers(), *state]


def _wait(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="resnet20,resnet56")
    parser.add_argument("--methods", default="chipnet,chipnet-paper")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--block", type=int, default=3, help="steps in a block")
    parser.add_argument("--steps", type=int, default=6000, help="of the whole phase")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| network | method | dense step | pruning step + solves | ratio | quartiles | peak memory | operators |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for model in a.models.split(","):
        for method in a.methods.split(","):
            dense, soft = Steps(a, model, None), Steps(a, model, method)
            for steps in (dense, soft):
                steps.seconds(2)
            pairs = [(dense.seconds(a.block), soft.seconds(a.block)) for _ in range(a.blocks)]
            one, two = (statistics.median(p[k] for p in pairs) for k in (0, 1))
            solving = soft.solving(a.steps)
            ratios = statistics.quantiles([(p[1] + solving) / p[0] for p in pairs], n=4)
            peaks = dense.peak(), soft.peak()
            print(
                f"| {model} | {method} | {1000 * one:.1f} ms | {1000 * two:.1f} ms + {1000 * solving:.2f} ms | "
                f"{(two + solving) / one:.3f} | {ratios[0]:.3f} to {ratios[2]:.3f} | "
                f"{peaks[1] / 2**20:.1f} of {peaks[0] / 2**20:.1f} MiB: {peaks[1] / peaks[0]:.3f} | "
                f"{dense.operators():,} + {soft.operators() - dense.operators():,} |",
                flush=True,
            )
            del dense, soft
    name = torch.cuda.get_device_name() if a.device == "cuda" else f"{platform.machine()}, 1 thread"
    options = f"{'compiled, ' if a.compile else ''}{'bf16, ' if a.bf16 else ''}batch {a.batch_size}"
    print(
        f"{name}, torch {torch.__version__}, {options}, {date.today().isoformat()}; {a.blocks} pairs of blocks"
    )


if __name__ == "__main__":
    main()
