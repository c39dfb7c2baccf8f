"""A family of networks for several budgets: one run for each, or one network after the other?

    python -m benchmarks.family --seeds 10,11,12 --out family.jsonl

The networks, data and epochs are those of `benchmarks.development`. The budgets are a half, a quarter, an eighth
and a sixteenth of the MACs.

* ``separate``: four runs, each from the dense network.
* ``nested``: each from the fine-tuned network before it. The first has all epochs, the others have half of them.
* ``nested-full``: the same, and all have all epochs.
* ``sandwich``: masks of `chipnet.shrink_family`. Then all members share their weights, and every step trains the
  largest, the smallest and one other (Yu and Huang 2019, arXiv 1903.05134). Each has norms' statistics of its own.

Time is that of pruning and fine-tuning, without the dense training.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipnet
from benchmarks.development import DATA, FAMILIES, FINETUNE, PRUNE, Cell, pruned, task, trained
from benchmarks.post_training import IMAGES, RATE, Task, batches, sgd
from chipnet.methods.schedules import OneCycle

BUDGETS = ("macs=0.5", "macs=0.25", "macs=0.125", "macs=0.0625")


def separate(dense: nn.Module, task: Task, seed: int) -> list[nn.Module]:
    return [pruned(dense, task, budget, "chipnet", seed)[0] for budget in BUDGETS]


def nested(
    dense: nn.Module, task: Task, seed: int, later: tuple[int, int] = (PRUNE // 2, FINETUNE // 2)
) -> list[nn.Module]:
    structure = chipnet.Structure(dense, task.train[0][:1])
    found: list[nn.Module] = []
    for budget in BUDGETS:
        limits: dict[str, float] = dict(structure.limits(budget))
        start, epochs = (found[-1], later) if found else (dense, (PRUNE, FINETUNE))
        found.append(pruned(start, task, limits, "chipnet", seed, epochs)[0])
    return found


def nested_full(dense: nn.Module, task: Task, seed: int) -> list[nn.Module]:
    return nested(dense, task, seed, (PRUNE, FINETUNE))


def sandwich(dense: nn.Module, task: Task, seed: int, epochs: int = PRUNE + FINETUNE) -> list[nn.Module]:
    family = chipnet.shrink_family(dense, task.train[0][:IMAGES], BUDGETS, distance="kl")
    shared = copy.deepcopy(dense).train()
    members = [_Member(shared, found.plan) for found in family]
    draw, optimizer, schedule = random.Random(seed), sgd(shared), OneCycle(RATE, 0.15)
    for progress, x, labels in batches(task, epochs, seed):
        optimizer.param_groups[0]["lr"] = schedule(progress)
        for p in shared.parameters():
            p.grad = torch.zeros(p.shape)
        for member in (members[0], draw.choice(members[1:-1]), members[-1]):
            member.step(shared, x, labels)
        optimizer.step()
    for member in members:
        member.read(shared)
    return [member.network.eval() for member in members]


class _Member:
    """A compact network whose parameters are parts of a shared one's."""

    def __init__(self, shared: nn.Module, plan: chipnet.Plan) -> None:
        numbered = copy.deepcopy(shared).double()
        for p in numbered.parameters():
            p.data = torch.arange(p.numel(), dtype=torch.float64).view(p.shape)
        places = chipnet.compact(numbered, plan, verify=False)
        self.places = {n: p.detach().long().flatten() for n, p in places.named_parameters()}
        self.network = chipnet.compact(shared, plan).to(memory_format=torch.channels_last).train()

    @torch.no_grad()
    def read(self, shared: nn.Module) -> None:
        whole = dict(shared.named_parameters())
        for name, p in self.network.named_parameters():
            p.copy_(whole[name].flatten()[self.places[name]].view(p.shape))

    def step(self, shared: nn.Module, x: Tensor, labels: Tensor) -> None:
        """Add the member's gradient to the shared network's."""
        self.read(shared)
        self.network.zero_grad()
        F.cross_entropy(self.network(x), labels).backward()
        whole = dict(shared.named_parameters())
        for name, p in self.network.named_parameters():
            assert p.grad is not None and whole[name].grad is not None
            whole[name].grad.view(-1).index_add_(0, self.places[name], p.grad.reshape(-1))  # type: ignore[union-attr]


WAYS: dict[str, Callable[[nn.Module, Task, int], list[nn.Module]]] = {
    "separate": separate,
    "nested": nested,
    "nested-full": nested_full,
    "sandwich": sandwich,
}


def table(rows: list[dict[str, object]]) -> str:
    """Of every way its accuracies less those of separate runs, and its time as a part of theirs."""
    cells: dict[tuple[object, ...], dict[str, dict[str, object]]] = {}
    for row in rows:
        cells.setdefault((row["family"], row["data"], row["seed"]), {})[str(row["way"])] = row
    cells = {k: c for k, c in cells.items() if "separate" in c}
    lines = ["| way | networks | " + " | ".join(BUDGETS) + " | worst family | time |", "|---" * 8 + "|"]
    for way in WAYS:
        mine = [(key, c[way], c["separate"]) for key, c in cells.items() if way in c]
        if mine:
            gains = [[a - b for a, b in zip(m["accuracy"], s["accuracy"], strict=True)] for _, m, s in mine]  # type: ignore[call-overload]
            by: dict[object, list[float]] = {}
            for (key, *_), gain in zip(mine, gains, strict=True):
                by.setdefault(key[0], []).append(statistics.mean(gain))
            worst = min(statistics.mean(v) for v in by.values())
            shown = [f"{statistics.mean(column):+.2f}" for column in zip(*gains, strict=True)]
            time_ = sum(m["seconds"] for _, m, _ in mine) / sum(s["seconds"] for _, _, s in mine)  # type: ignore[misc]
            lines.append(f"| {way} | {len(mine)} | {' | '.join(shown)} | {worst:+.2f} | {time_:.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--seeds", default="10,11,12")
    parser.add_argument("--cache", type=Path, default=Path("development"), help="folder of dense weights")
    parser.add_argument("--out", type=Path, help="a file: a line of JSON for each family of networks")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in a.out.read_text().splitlines()] if a.out and a.out.exists() else []
    done = {(r["family"], r["seed"], r["way"]) for r in rows}
    for seed in map(int, a.seeds.split(",")):
        for number, family in enumerate(FAMILIES):
            if family not in a.families.split(","):
                continue
            cell = Cell(family, DATA[(number + seed) % len(DATA)], "", seed)
            images = task(a.data_dir, cell.data, seed)
            dense = trained(cell, images, a.cache)
            for way in a.ways.split(","):
                if (family, seed, way) in done:
                    continue
                start = time.perf_counter()
                found = WAYS[way](dense, images, seed)
                rows.append(
                    {
                        "family": family,
                        "data": cell.data,
                        "seed": seed,
                        "way": way,
                        "accuracy": [images.accuracy(member) for member in found],
                        "seconds": time.perf_counter() - start,
                    }
                )
                print(rows[-1], flush=True)
                if a.out:
                    with open(a.out, "a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(f"\n{date.today()}, torch {torch.__version__}, {platform.machine()}, 1 thread, seeds {a.seeds}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
