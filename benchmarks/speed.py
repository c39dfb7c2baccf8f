"""What fewer MACs give in time, and what a latency budget gives: untrained networks, on this machine.

    python -m benchmarks.speed --model resnet18 --size 224 --threads 1 --json speed.json

Channels are chosen by weight magnitude; weights are random, which changes no time. First a quarter of the MACs,
with widths as they come and as multiples of 8, measured in every runtime beside the dense network; then half of the
time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import chipnet
from chipnet.budget.landing import Landing
from chipnet.lab.models import get_model
from chipnet.timing import compare


def pruned(model: nn.Module, x: torch.Tensor, budget: str, round_to: int) -> tuple[nn.Module, chipnet.Plan]:
    pruner = chipnet.Pruner(model, x, budget, steps=1, method="magnitude", round_to=round_to)
    try:
        plan = pruner.harden()
    finally:
        pruner.detach()
    return chipnet.compact(model, plan).eval(), plan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of measurement per runtime")
    parser.add_argument("--runtimes", default="eager,compile,onnxruntime")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    model = get_model(asked.model, 1000, 3).eval()
    x = torch.randn(asked.batch, 3, asked.size, asked.size)
    out: dict[str, Any] = {}
    for budget, round_to in (("macs=0.25", 1), ("macs=0.25", 8), ("latency=0.5", 1)):
        small, plan = pruned(model, x, budget, round_to)
        print(f"\n{asked.model}, {budget}, widths in multiples of {round_to}")
        if plan.latency is not None:
            print(Landing(**plan.latency))
        done = compare(
            {"dense": model, "compact": small}, x, runtimes=asked.runtimes.split(","), seconds=asked.seconds
        )
        print(f"{done.device}, {done.threads} thread(s), batch {done.batch}, torch {torch.__version__}")
        for runtime, t in done.timings.items():
            print(
                f"  {runtime}: "
                + ", ".join(f"{n} {1e3 * v.median:.2f} ms ({1e3 * v.best:.2f} at best)" for n, v in t.items())
            )
        print(*(f"  {line}" for line in done.verdict()), sep="\n")
        for runtime, why in done.skipped.items():
            print(f"  {runtime}: not measured. {why}")
        out[f"{budget}, {round_to}"] = {**done.to_json(), "landing": plan.latency}
    if asked.json:
        asked.json.write_text(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
