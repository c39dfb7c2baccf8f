"""The paper's method at the paper's own effort: do soft and hard masks agree, and where do they part?

    python -m benchmarks.paper_effort --out paper.jsonl

A ResNet-20 (100 classes, 14×14, 54,000 images) is trained for 12 epochs. It is pruned for 17 epochs of batches of
32, the published 28,700 steps, and fine-tuned for 4, under one one-cycle schedule. After every epoch of pruning the
accuracy is measured with soft masks and with hard ones. After the last one, each site gets its hard mask alone,
while all others stay soft, and its gates are counted by their values.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import platform
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import chipnet
from benchmarks.post_training import RATE, Task, fit
from chipnet.lab.models import get_model
from chipnet.methods import ChipNetPaper
from chipnet.methods.projections import sharpen
from chipnet.methods.schedules import OneCycle

DENSE, PRUNE, FINETUNE, SMALL_BATCH = 12, 17, 4, 32
BUDGETS = ("macs=0.25", "macs=0.0625", "channels=0.5", "channels=0.25")
BINS = (0.1, 0.2, 0.5, 0.6, 0.9)


class Sharpened(ChipNetPaper):
    """The paper's method with one change: channels are multiplied by z^, which the budget counts, and not by z."""

    name = "sharpened"

    def values(self, progress: float) -> Tensor:
        return sharpen(super().values(progress), self.continuation(progress).s)


METHODS: dict[str, Any] = {"chipnet-paper": "chipnet-paper", "sharpened": Sharpened, "chipnet": "chipnet"}


def trained(task: Task, seed: int, file: Path) -> nn.Module:
    """The dense network; its weights are kept in ``file``."""
    torch.manual_seed(seed)
    network: nn.Module = get_model("resnet20", num_classes=task.classes, in_channels=task.channels)
    network = network.to(memory_format=torch.channels_last).eval()
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        fit(network, task, DENSE, OneCycle(RATE), seed)
        torch.save(network.state_dict(), file)
    return network


def run(dense: nn.Module, task: Task, budget: str, method: str, seed: int) -> dict[str, Any]:
    start, network = time.perf_counter(), copy.deepcopy(dense)
    schedule, whole = OneCycle(RATE, 0.15), PRUNE + FINETUNE
    epoch = len(task.train[0]) // SMALL_BATCH
    torch.manual_seed(seed)
    pruner = chipnet.Pruner(
        network, task.train[0][:1], budget, steps=PRUNE * epoch, method=METHODS[method], seed=seed
    )
    soft, hard = [], []
    for done in range(PRUNE):
        rate = lambda p, done=done: schedule((done + p) / whole)  # noqa: E731
        fit(network, task, 1, rate, seed * 1000 + done, pruner, SMALL_BATCH)
        soft.append(task.accuracy(network))
        with pruner.hardened():
            hard.append(task.accuracy(network))
        print(f"{budget} {method} epoch {done + 1}: soft {soft[-1]:.1f}, hard {hard[-1]:.1f}", flush=True)
    sites = _sites(pruner, network, task)
    plan = pruner.harden()
    pruner.detach()
    small = chipnet.compact(network, plan).to(memory_format=torch.channels_last)
    cut = task.accuracy(small)
    fit(
        small, task, FINETUNE, lambda p: schedule((PRUNE + p * FINETUNE) / whole), seed + 7, batch=SMALL_BATCH
    )
    return {
        "budget": budget,
        "method": method,
        "seed": seed,
        "dense": task.accuracy(dense),
        "soft": soft,
        "hard": hard,
        "cut": cut,
        "accuracy": task.accuracy(small),
        "sites": sites,
        "seconds": time.perf_counter() - start,
    }


def _sites(pruner: chipnet.Pruner, network: nn.Module, task: Task) -> list[dict[str, Any]]:
    """Of every site: how many gates have values up to each of `BINS`, how many hard masks keep, and the accuracy if
    this site alone has its hard mask, on the first 2,000 images."""
    analysis, found = pruner.structure.analysis, []
    with torch.no_grad():
        values = pruner.method.values(1.0).detach().float().cpu()
    mask, some = pruner.mask, copy.copy(task)
    some.test = tuple(part[:2000] for part in task.test)
    for site, gates in zip(analysis.sites, analysis.site_gates, strict=True):
        if not len(gates):
            continue
        mixed = values.clone()
        mixed[gates] = mask[gates].float()
        with _computing(pruner, mixed):
            accuracy = some.accuracy(network)
        edges = torch.tensor(BINS)
        counts = torch.bincount(torch.bucketize(values[gates], edges), minlength=len(BINS) + 1)
        found.append(
            {
                "site": site.name,
                "gates": len(gates),
                "kept": int(mask[gates].sum()),
                "counts": counts.tolist(),
                "alone": accuracy,
            }
        )
    with _computing(pruner, values):
        found.append({"site": "all soft", "alone": some.accuracy(network)})
    return found


@contextlib.contextmanager
def _computing(pruner: chipnet.Pruner, values: Tensor) -> Iterator[None]:
    """Inside, the network computes with these values ``[gates]``."""
    gates = pruner._values
    soft, gates._soft = gates._soft, lambda: values
    try:
        gates.fix(gates._channels())
    finally:
        gates._soft = soft
    yield
    gates.forget()
    gates.publish()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--budgets", default=";".join(BUDGETS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cache", type=Path, default=Path("paper-dense.pt"), help="file of the dense weights"
    )
    parser.add_argument("--out", type=Path, default=Path("paper.jsonl"), help="a line of JSON for each run")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in a.out.read_text().splitlines()] if a.out.exists() else []
    done = {(r["budget"], r["method"], r["seed"]) for r in rows}
    task = Task(a.data_dir, a.seed, "small_pairs", limit=None)
    dense = trained(task, a.seed, a.cache)
    for budget in a.budgets.split(";"):
        for method in a.methods.split(","):
            if (budget, method, a.seed) not in done:
                row = run(dense, task, budget, method, a.seed)
                with open(a.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
                rows.append(row)
    print(f"{date.today()}, torch {torch.__version__}, {platform.machine()}, 1 thread\n")
    print("| budget | method | soft, last epoch | hard, last epoch | as cut | fine-tuned | dense |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        numbers = r["soft"][-1], r["hard"][-1], r["cut"], r["accuracy"], r["dense"]
        print(f"| {r['budget']} | {r['method']} | " + " | ".join(f"{n:.1f}" for n in numbers) + " |")


if __name__ == "__main__":
    main()
