"""Other people's pruners in a grid of `chipnet bench`: `benchmarks.rivals:torch_pruning` as an entry of `methods`.

A rival prunes the dense network of its run in its own way and is trained on as its users do, within the same
epochs: one one-cycle schedule of SGD over the epochs of pruning and fine-tuning together, images in the same order,
best epoch on validation. It costs what is counted on the network itself.
"""

from __future__ import annotations

import copy
import csv
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from chipnet._util.files import write_json
from chipnet.lab.job import Job
from chipnet.lab.train import evaluate
from chipnet.methods.schedules import OneCycle


def torch_pruning(job: Job, watcher: object = None) -> dict[str, Any]:
    """Torch-Pruning's `BasePruner` with `GroupMagnitudeImportance(p=2)`, local ratios, cut at once in small steps.

    Needs `pip install torch-pruning`. Budgets of one kind. Its steps are coarse: what it reaches is reported.
    """
    from benchmarks._torch_pruning import pruned

    limits = job.structure.limits(job.budget)
    if len(limits) != 1:
        raise ValueError(f"Torch-Pruning is given one kind of budget, not {', '.join(limits)}")
    ((kind, limit),) = limits.items()

    def cost(model: nn.Module) -> int:
        return costs(model, job.example)[kind]

    start = time.perf_counter()
    small = pruned(job.network, (job.example,), limit / job.dense[kind], cost)
    return trained(job, small, time.perf_counter() - start)


def trained(job: Job, small: nn.Module, seconds: float) -> dict[str, Any]:
    """Fine-tune a pruned network with this run's data and recipe; writes metrics.csv and result.json."""
    start, recipe, device = time.perf_counter(), job.recipe, job.fabric.device
    loaders = {s: job.data.loader(s, recipe.batch_size, device=device) for s in ("validation", "test")}  # type: ignore[arg-type]
    train = job.data.loader("train", recipe.batch_size, train=True, seed=job.request.seed, device=device)
    dense = evaluate(job.network.to(device), loaders["test"])
    small = small.to(device)
    hard = evaluate(small, loaders["test"])
    optimizer = torch.optim.SGD(
        small.parameters(), lr=recipe.prune_lr, momentum=recipe.momentum, nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )  # fmt: skip
    epochs = recipe.prune + recipe.finetune
    schedule, total = OneCycle(recipe.prune_lr, warmup=recipe.warmup), epochs * len(train)
    best, state = evaluate(small, loaders["validation"]), copy.deepcopy(small.state_dict())
    rows = [("finetune", 0, best, "")]
    for epoch in range(1, epochs + 1):
        train.set_epoch(epoch - 1)
        small.train()
        for i, (images, labels) in enumerate(train):
            for group in optimizer.param_groups:
                group["lr"] = schedule(((epoch - 1) * len(train) + i) / total)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(small(images), labels, label_smoothing=recipe.label_smoothing)
            loss.backward()
            optimizer.step()
        accuracy = evaluate(small, loaders["validation"])
        rows.append(("finetune", epoch, accuracy, ""))
        if accuracy >= best:
            best, state = accuracy, copy.deepcopy(small.state_dict())
    small.load_state_dict(state)
    with open(job.out / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerows([("phase", "epoch", "validation_accuracy", "gates"), *rows])
    now = costs(small, job.example.to(device))
    result = {
        "dense": {"accuracy": dense, **job.dense.to_json()},
        "soft": {"accuracy": hard, **now},
        "hard": {"accuracy": hard, **now},
        "compact": {"accuracy": evaluate(small, loaders["test"]), **now},
        "seconds": {"total": round(seconds + time.perf_counter() - start, 2)},
        "command": job.request.command,
    }
    write_json(job.out / "result.json", result)
    return result


@torch.no_grad()
def costs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """What docs/budgets.md counts, on any network of convolutions and linear layers: by running it."""
    channels: dict[nn.Module, int] = {}
    volume = 0

    def count(module: nn.Module, args: object, output: Tensor) -> None:
        nonlocal volume
        channels[module] = module.weight.shape[0]  # type: ignore[union-attr, index]
        volume += output.numel()

    layers = [m for m in model.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))]
    handles = [m.register_forward_hook(count) for m in layers]
    was = model.training
    try:
        with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
            warnings.simplefilter("ignore")
            model.eval()(example)
    finally:
        model.train(was)
        for handle in handles:
            handle.remove()
    return {
        "channels": sum(channels.values()),
        "volume": volume,
        "params": sum(p.numel() for p in model.parameters()),
        "macs": counter.get_total_flops() // 2,
    }
