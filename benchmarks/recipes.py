"""Methods under one schedule at small effort: a ResNet-8 on Fashion-MNIST, pooled to 14 x 14, 6,000 images.

    python -m benchmarks.recipes --data-dir DIR --methods chipnet,uniform,random,magnitude --budgets 0.25,0.0625 \
        --seeds 0,1

Every method gets the same dense network (10 epochs), the same 4 + 4 epochs of one one-cycle schedule (SGD,
Nesterov 0.9, peak 0.1, weight decay 5e-4) through pruning and fine-tuning, and the same exact hardening.
`chipnet-paper` prunes with AdamW at 1e-3, as published, and fine-tunes with a one-cycle of its own.

Selection: none; the last epoch is reported, on 5,000 test images.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

import chipnet
from chipnet.lab.data import load_data
from chipnet.lab.models import get_model
from chipnet.methods.schedules import OneCycle, Schedule

BATCH, DENSE, PRUNE, FINETUNE = 64, 10, 4, 4


def small(images: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(images, 2)


def fit(
    model: nn.Module,
    loader: object,
    epochs: int,
    lr: Schedule,
    pruner: chipnet.Pruner | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    optimizer = optimizer or torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    for epoch in range(epochs):
        model.train()
        for i, (images, labels) in enumerate(loader):  # type: ignore[arg-type, var-annotated]
            for group in optimizer.param_groups:
                group["lr"] = lr((epoch + i / len(loader)) / epochs)  # type: ignore[arg-type]
            loss = F.cross_entropy(model(small(images)), labels)
            if pruner is not None:
                loss = loss + pruner.loss()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if pruner is not None:
                pruner.step()


@torch.no_grad()
def accuracy(model: nn.Module, loader: object) -> float:
    model.eval()
    correct = total = 0
    for images, labels in loader:  # type: ignore[attr-defined]
        correct += int((model(small(images)).argmax(1) == labels).sum())
        total += len(labels)
    return 100 * correct / total


def one(
    dense: nn.Module, data: object, method: str, budget: float, seed: int
) -> tuple[float, float, float, float]:
    torch.manual_seed(seed + 100)
    model, schedule = copy.deepcopy(dense), OneCycle(0.1, 0.15)
    train = data.loader("train", BATCH, train=True, seed=seed + 1)  # type: ignore[attr-defined]
    test = data.loader("test", 500)  # type: ignore[attr-defined]
    pruner = chipnet.Pruner(
        model, torch.randn(1, 1, 14, 14), {"macs": budget}, steps=PRUNE * len(train), method=method, seed=seed
    )
    whole = PRUNE + FINETUNE
    if method == "chipnet-paper":
        adam = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-3)
        fit(model, train, PRUNE, lambda p: 1e-3, pruner, adam)
    else:
        fit(model, train, PRUNE, lambda p: schedule(p * PRUNE / whole), pruner)
    soft = accuracy(model, test)
    plan = pruner.harden()
    hard = accuracy(model, test)
    pruner.detach()
    compact = chipnet.compact(model, plan)
    if method == "chipnet-paper":
        fit(compact, train, FINETUNE, schedule)
    else:
        fit(compact, train, FINETUNE, lambda p: schedule((PRUNE + p * FINETUNE) / whole))
    return soft, hard, accuracy(compact, test), 100 * plan.compact.macs / plan.dense.macs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--methods", default="chipnet,uniform,random,magnitude")
    parser.add_argument("--budgets", default="0.25,0.0625")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--model", default="resnet8")
    a = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist", a.data_dir, seed=0, limit=6000, limit_test=5000)
    rows: dict[tuple[float, str], list[tuple[float, ...]]] = {}
    for seed in map(int, a.seeds.split(",")):
        torch.manual_seed(seed)
        dense = get_model(a.model, 10, 1)
        fit(dense, data.loader("train", BATCH, train=True, seed=seed), DENSE, OneCycle(0.1))
        print(f"seed {seed}: dense {accuracy(dense, data.loader('test', 500)):.2f} %", flush=True)
        for budget in map(float, a.budgets.split(",")):
            for method in a.methods.split(","):
                start = time.perf_counter()
                row = one(dense, data, method, budget, seed)
                rows.setdefault((budget, method), []).append(row)
                numbers = "soft {:.2f} hard {:.2f} final {:.2f} macs {:.2f} %".format(*row)
                print(
                    f"seed {seed} {budget} {method}: {numbers} ({time.perf_counter() - start:.0f} s)",
                    flush=True,
                )
    print(f"\n{platform.machine()}, torch {torch.__version__}, 1 thread; seeds {a.seeds}; {a.model}")
    print("| budget | method | soft | hard | final | spread of final | MACs |\n|---|---|---|---|---|---|---|")
    for (budget, method), runs in rows.items():
        soft, hard, final, macs = (statistics.mean(r[k] for r in runs) for k in range(4))
        spread = max(r[2] for r in runs) - min(r[2] for r in runs)
        print(
            f"| {budget} | {method} | {soft:.1f} | {hard:.1f} | {final:.1f} | {spread:.1f} | {macs:.2f} % |"
        )


if __name__ == "__main__":
    main()
