"""The development set: networks, data and budgets by which methods are chosen. They stand for those of users.

    python -m benchmarks.development --methods chipnet,fisher,uniform --seeds 10,11,12 --out development.jsonl
    python -m benchmarks.development --read development.jsonl

It has seven families of small networks, three data sets (100 classes, 10, an easy one of 5) and six budgets. With
each seed, every family has every budget once, on one data set. The next seed has the next data set there, so three
seeds hold all combinations. Two more families, a ViT and a ConvNeXt, run where ``--families`` names them.

No table of results has these seeds or test images: the images are those of the
validation split that the tables leave unused.

A dense network is trained for 10 epochs on 3,200 images of 14×14. Every method then has the same weights, 4 epochs
with its gates and 4 without, under one one-cycle schedule. The accuracy is that of the last epoch. The method
``shrink`` is `chipnet.shrink` on 512 images, and then 8 epochs.

*Regret* is how many points of accuracy a method is behind the best of all methods of the table, in one cell.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import nn

import chipnet
from benchmarks import networks, post_training
from benchmarks.post_training import BATCH, RATE, Task, fit
from chipnet.lab.models.preresnet import PreResNet
from chipnet.lab.models.resnet import ResNet
from chipnet.methods.schedules import OneCycle

IMAGES = 3200
DENSE, PRUNE, FINETUNE = 10, 4, 4

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "residual": partial(ResNet, (2, 2, 2), (16, 32, 64)),
    "bottleneck": partial(ResNet, (1, 1, 1), (12, 24, 48), bottleneck=True),
    "preactivation": partial(PreResNet, 2),
    "inverted": partial(networks.inverted, blocks=((16, 1), (24, 2), (24, 1), (40, 2), (40, 1))),
    "dense": partial(networks.dense_concatenation, depth=2),
    "chain": networks.chain,
    "branches": partial(networks.branches, blocks=((8, 1), (16, 2), (16, 1), (24, 2))),
}
TRANSFORMERS: dict[str, Callable[..., nn.Module]] = {"vit": networks.vit, "convnext": networks.convnext}
"""Families that run only where they are named. AdamW trains them, at a rate of their own."""
ADAMW_RATE = 2e-3
DATA = ("small_pairs_development", "small_development", "small_second_half_development")
# Channels count the 100 classes too: a fifth of all channels would be next to nothing, or less than that.
BUDGETS = ("macs=0.25", "macs=0.0625", "macs=0.02", "params=0.0625", "volume=0.2", "channels=0.5")


@dataclass(frozen=True)
class Cell:
    """One budget of one network on one data set."""

    family: str
    data: str
    budget: str
    seed: int


def cells(seed: int, only: Iterable[str] = tuple(FAMILIES)) -> Iterator[Cell]:
    """All cells of a seed of these families, those of one dense network together."""
    families = [*FAMILIES, *TRANSFORMERS]
    found = [
        Cell(family, DATA[(f + b + seed) % len(DATA)], budget, seed)
        for f, family in enumerate(families)
        for b, budget in enumerate(BUDGETS)
        if family in only
    ]
    return iter(sorted(found, key=lambda c: (c.data, families.index(c.family))))


@lru_cache(maxsize=3)
def task(folder: str, data: str, seed: int) -> Task:
    return Task(folder, seed, data, limit=IMAGES)


def trained(cell: Cell, task: Task, cache: Path) -> nn.Module:
    """The dense network of a cell; its weights are kept in ``cache``."""
    torch.manual_seed(cell.seed)
    build = (FAMILIES | TRANSFORMERS)[cell.family]
    network = build(num_classes=task.classes, in_channels=task.channels)
    network = network.to(memory_format=torch.channels_last).eval()
    file = cache / f"{cell.family}-{cell.data}-{cell.seed}.pt"
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        fit(network, task, DENSE, OneCycle(rate_for(network)), cell.seed, optimizer=optimizer_for(network))
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), part := file.with_suffix(f".{os.getpid()}"))
        part.replace(file)
    return network


def _is_transformer(network: nn.Module) -> bool:
    return any(isinstance(m, nn.LayerNorm) for m in network.modules())


def rate_for(network: nn.Module) -> float:
    """The peak rate of a network's optimiser."""
    return ADAMW_RATE if _is_transformer(network) else RATE


def optimizer_for(network: nn.Module) -> torch.optim.Optimizer | None:
    """AdamW for networks with layer norms; None stands for the SGD of others."""
    if not _is_transformer(network):
        return None
    return torch.optim.AdamW(network.parameters(), ADAMW_RATE, weight_decay=0.05)


def run(cell: Cell, method: str, dense: nn.Module, task: Task) -> dict[str, object]:
    """Prune and fine-tune a copy of ``dense``."""
    start = time.perf_counter()
    small, cut = pruned(dense, task, cell.budget, method, cell.seed)
    return {
        **vars(cell),
        "method": method,
        "dense": task.accuracy(dense),
        "cut": cut,
        "accuracy": task.accuracy(small),
        "seconds": time.perf_counter() - start,
    }


def pruned(
    dense: nn.Module,
    task: Task,
    budget: str | dict[str, float],
    method: str,
    seed: int,
    epochs: tuple[int, int] = (PRUNE, FINETUNE),
) -> tuple[nn.Module, float]:
    """A network within a budget, fine-tuned, and its accuracy as cut. ``epochs``: with gates and without.

    The method ``shrink`` cuts first (`chipnet.shrink`), and has all epochs without gates."""
    network, (soft, hard) = copy.deepcopy(dense), epochs
    torch.manual_seed(seed + 100)
    schedule, whole = OneCycle(rate_for(dense), 0.15), soft + hard
    if method == "shrink":
        small = chipnet.shrink(network, task.train[0][: post_training.IMAGES], budget, distance="kl").model
        small, cut = small.to(memory_format=torch.channels_last), task.accuracy(small)
        fit(small, task, whole, schedule, seed + 1, optimizer=optimizer_for(small))
        return small, cut
    steps = soft * (len(task.train[0]) // BATCH)
    pruner = chipnet.Pruner(network, task.train[0][:1], budget, steps=steps, method=method, seed=seed)
    rising = partial(_part_of, schedule, 0, soft / whole)
    fit(network, task, soft, rising, seed + 1, pruner, optimizer=optimizer_for(network))
    plan = pruner.harden()
    pruner.detach()
    small = chipnet.compact(network, plan).to(memory_format=torch.channels_last)
    cut = task.accuracy(small)
    falling = partial(_part_of, schedule, soft / whole, 1)
    fit(small, task, hard, falling, seed + 2, optimizer=optimizer_for(small))
    return small, cut


def _part_of(schedule: OneCycle, start: float, end: float, progress: float) -> float:
    return schedule(start + progress * (end - start))


# -- what came out ----------------------------------------------------------------------------------------
def table(rows: Iterable[dict[str, object]], by: str = "family") -> str:
    """Regret and rank of every method that has all cells, in Markdown; and its mean regret by one column."""
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        key = tuple(str(row[k]) for k in ("family", "data", "budget", "seed"))
        found[key][str(row["method"])] = float(row["accuracy"])  # type: ignore[arg-type]
    methods = list(dict.fromkeys(m for cell in found.values() for m in cell))
    found = {key: cell for key, cell in found.items() if len(cell) == len(methods)}
    regrets = {m: {key: max(cell.values()) - cell[m] for key, cell in found.items()} for m in methods}
    place = ("family", "data", "budget", "seed").index(by)
    groups = sorted({key[place] for key in found})
    head = ["method", "regret", "worst of a family and budget", "first or level", "rank", *groups]
    lines = [f"{len(found)} cells", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for m in sorted(methods, key=lambda m: statistics.mean(regrets[m].values())):
        ranks = [1 + sum(v > cell[m] for v in cell.values()) for cell in found.values()]
        means, level = _by_place(regrets[m])
        shown = [statistics.mean(regrets[m].values()), max(means), 100 * level, statistics.mean(ranks)]
        shown += [statistics.mean(r for key, r in regrets[m].items() if key[place] == g) for g in groups]
        lines.append(f"| {m} | " + " | ".join(f"{v:.2f}" for v in shown) + " |")
    return "\n".join(lines)


def _by_place(regrets: dict[tuple[str, ...], float]) -> tuple[list[float], float]:
    """Mean regrets over seeds, family by family and budget by budget; and in which part of them the method was
    first, or behind by no more than the standard error of its regret (half a point where there is one seed)."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (family, _, budget, _), regret in regrets.items():
        groups[family, budget].append(regret)
    means = [statistics.mean(group) for group in groups.values()]
    errors = [statistics.stdev(g) / len(g) ** 0.5 if len(g) > 1 else 0.5 for g in groups.values()]
    return means, statistics.mean(m <= e for m, e in zip(means, errors, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument(
        "--methods",
        default="chipnet,fisher,taylor:floor=0.05,uniform,random",
        help="names, with commas between them; with semicolons where one has several settings",
    )
    parser.add_argument("--seeds", default="10,11,12")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--budgets", default=",".join(BUDGETS))
    parser.add_argument("--data", default=",".join(DATA), help="only cells with these data sets")
    parser.add_argument("--cache", type=Path, default=Path("development"), help="folder of dense weights")
    parser.add_argument(
        "--out", type=Path, help="a file: a line of JSON for each cell; what it has is not run"
    )
    parser.add_argument("--read", type=Path, nargs="*", help="only show what these files have")
    parser.add_argument("--by", default="family", help="means by family, data, budget or seed")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for file in a.read or ([a.out] if a.out and a.out.exists() else []):
        rows += [json.loads(line) for line in file.read_text().splitlines()]
    asked = {"family": a.families.split(","), "data": a.data.split(","), "budget": a.budgets.split(",")}
    rows = [r for r in rows if all(r[k] in names for k, names in asked.items())]
    done = {(r["family"], r["data"], r["budget"], r["seed"], r["method"]) for r in rows}
    methods = a.methods.split(";") if ";" in a.methods else a.methods.split(",")
    for seed in [] if a.read else map(int, a.seeds.split(",")):
        for cell in cells(seed, asked["family"]):
            if any(getattr(cell, k) not in names for k, names in asked.items()):
                continue
            for method in methods:
                if (cell.family, cell.data, cell.budget, cell.seed, method) in done:
                    continue
                images = task(a.data_dir, cell.data, cell.seed)
                rows.append(run(cell, method, trained(cell, images, a.cache), images))
                if a.out:
                    with open(a.out, "a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(f"{date.today()}, torch {torch.__version__}, {platform.machine()}, 1 thread\n")
    print(table(rows, a.by))


if __name__ == "__main__":
    main()
