"""Pruning without training: what is left of the accuracy of a trained network, method by method.

    python -m benchmarks.post_training --networks resnet20,chain --seeds 20,21,22

Dense networks are trained for 12 epochs on 6,000 images of `benchmarks.datasets:small_pairs` (100 classes, 14×14).
Every method then has 512 unlabelled training images, and no gradient step. Accuracy is that of all test images.

| method | what |
|---|---|
| `shrink` | `chipnet.shrink` with `distance="kl"` |
| `error` | `chipnet.shrink` as it is by default: squared error of the outputs |
| `random` | random gates at the same budget, then `chipnet.refit` |
| `magnitude` | L2 norms of weights, then statistics of batch norms measured anew |
| `torch_pruning` | Torch-Pruning's `BasePruner`, group norms, then the same statistics |
| `onnxsim` | onnxsim's calibrated channel pruning and its refit of matrix products; ``-``: budget not reached |
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import date

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipnet
from benchmarks import datasets, networks
from chipnet.lab.models import get_model
from chipnet.lab.steps import recalibrate
from chipnet.methods.schedules import OneCycle, Schedule
from chipnet.program.counting import counting

EPOCHS, BATCH, RATE, IMAGES = 12, 64, 0.1, 512


class UnreachableError(Exception):
    """A method cannot reach a budget."""


class Task:
    """Images and labels, normalised."""

    def __init__(self, folder: str, seed: int, data: str, limit: int | None = 6000) -> None:
        found = getattr(datasets, data)(folder, seed=seed, limit=limit)
        mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (found.mean, found.std))
        self.classes, self.channels = found.num_classes, found.in_channels
        self.train, self.test = (
            ((part.images / 255 - mean) / std, part.labels) for part in (found.train, found.test)
        )

    @torch.no_grad()
    def accuracy(self, network: nn.Module) -> float:
        """In percent, of the test images."""
        network.eval()
        right = [
            (network(x).argmax(1) == y).sum() for x, y in zip(*(t.split(500) for t in self.test), strict=True)
        ]
        return 100 * float(sum(right)) / len(self.test[1])


def sgd(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)


def batches(task: Task, epochs: int, seed: int, batch: int = BATCH) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Training batches, shuffled and shifted by at most a pixel: progress through all epochs, images, labels."""
    images, labels = task.train
    order, size, steps = torch.Generator().manual_seed(seed), images.shape[-1], len(images) // batch
    for step in range(epochs * steps):
        if step % steps == 0:
            shuffled = torch.randperm(len(images), generator=order)[: steps * batch].split(batch)
        some = shuffled[step % steps]
        top, left = torch.randint(0, 3, (2,), generator=order).tolist()
        shifted = F.pad(images[some], (1, 1, 1, 1))[..., top : top + size, left : left + size]
        yield step / (epochs * steps), shifted, labels[some]


def fit(
    network: nn.Module,
    task: Task,
    epochs: int,
    rate: Schedule,
    seed: int,
    pruner: chipnet.Pruner | None = None,
    batch: int = BATCH,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Train in place, by SGD or ``optimizer``. ``rate`` is a function of the progress through these epochs."""
    optimizer = optimizer or sgd(network)
    network.train()
    for progress, x, labels in batches(task, epochs, seed, batch):
        optimizer.param_groups[0]["lr"] = rate(progress)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), labels)
        if pruner is not None:
            loss = loss + pruner.loss()
        loss.backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
    network.eval()


def trained(name: str, task: Task, seed: int) -> nn.Module:
    """A dense network, trained."""
    torch.manual_seed(seed)
    build = getattr(networks, name, None) or (lambda **sizes: get_model(name, **sizes))
    network: nn.Module = build(num_classes=task.classes, in_channels=task.channels)
    fit(network, task, EPOCHS, OneCycle(RATE), seed)
    return network


Inputs = Tensor | dict[str, Tensor]
"""What a network takes: a batch of images, or batches by argument."""


def parts(inputs: Inputs, size: int) -> list[Inputs]:
    """Batches of at most ``size``."""
    if isinstance(inputs, Tensor):
        return list(inputs.split(size))
    split = {name: x.split(size) for name, x in inputs.items()}
    return [dict(zip(split, some, strict=True)) for some in zip(*split.values(), strict=True)]


def called(network: nn.Module, inputs: Inputs) -> Tensor:
    """The network's output."""
    found: Tensor = network(inputs) if isinstance(inputs, Tensor) else network(**inputs)
    return found


def _gates(network: nn.Module, inputs: Inputs, budget: str, method: str, seed: int) -> chipnet.Plan:
    """The plan of a method's scores on the trained network, as it is."""
    example = parts(inputs, 1)[0]
    pruner = chipnet.Pruner(copy.deepcopy(network), example, budget, steps=1, method=method, seed=seed)
    return pruner.harden(early=True)


class _Called(nn.Module):
    """A network that takes what `Inputs` are as one argument."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Inputs) -> Tensor:
        return called(self.network, inputs)


def _measured(network: nn.Module, inputs: Inputs) -> nn.Module:
    """The network with statistics of batch norms measured anew."""
    recalibrate(_Called(network), [(part, torch.zeros(0)) for part in parts(inputs, BATCH)])  # type: ignore[misc]
    return network.eval()


def _shrink(network: nn.Module, inputs: Inputs, budget: str, seed: int) -> nn.Module:
    return chipnet.shrink(network, parts(inputs, BATCH), budget, distance="kl").model


def _error(network: nn.Module, inputs: Inputs, budget: str, seed: int) -> nn.Module:
    return chipnet.shrink(network, parts(inputs, BATCH), budget).model


def _random(network: nn.Module, inputs: Inputs, budget: str, seed: int) -> nn.Module:
    plan = _gates(network, inputs, budget, "random", seed)
    small = chipnet.compact(network, plan)
    chipnet.refit(network, small, plan, parts(inputs, BATCH))
    return small


def _magnitude(network: nn.Module, inputs: Inputs, budget: str, seed: int) -> nn.Module:
    return _measured(chipnet.compact(network, _gates(network, inputs, budget, "magnitude", seed)), inputs)


def _torch_pruning(network: nn.Module, inputs: Inputs, budget: str, seed: int) -> nn.Module:
    from benchmarks._torch_pruning import pruned

    example = parts(inputs, 1)[0]
    given = (example,) if isinstance(example, Tensor) else tuple(example.values())

    def macs(model: nn.Module) -> int:
        with torch.no_grad(), counting() as counter:
            model.eval()(*given)
        return int(counter.get_total_flops()) // 2

    return _measured(pruned(network, given, float(budget.partition("=")[2]), macs), inputs)


def _onnxsim(network: nn.Module, inputs: Inputs, budget: str, seed: int) -> nn.Module:
    from benchmarks._onnxsim import pruned

    return pruned(network, inputs, float(budget.partition("=")[2]))


METHODS: dict[str, Callable[[nn.Module, Inputs, str, int], nn.Module]] = {
    "shrink": _shrink,
    "error": _error,
    "random": _random,
    "magnitude": _magnitude,
    "torch_pruning": _torch_pruning,
    "onnxsim": _onnxsim,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", default="small_pairs", help="a callable of benchmarks.datasets")
    parser.add_argument("--networks", default="resnet20")
    parser.add_argument("--budgets", default="macs=0.5,macs=0.25,macs=0.125")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="20,21,22")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="a file: one line of JSON for each cell")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(
        f"{date.today()}, torch {torch.__version__}, {platform.machine()}, {a.threads} thread(s), seeds {a.seeds}"
    )
    for name in a.networks.split(","):
        dense: list[float] = []
        cells: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for seed in map(int, a.seeds.split(",")):
            task = Task(a.data_dir, seed, a.data)
            network = trained(name, task, seed)
            dense.append(task.accuracy(network))
            images = task.train[0][:IMAGES]
            for budget in a.budgets.split(","):
                for method in a.methods.split(","):
                    start = time.perf_counter()
                    try:
                        small = METHODS[method](network, images, budget, seed)
                    except UnreachableError:
                        continue
                    seconds, found = time.perf_counter() - start, task.accuracy(small)
                    cells.setdefault((budget, method), []).append((found, seconds))
                    row = {
                        "network": name,
                        "seed": seed,
                        "budget": budget,
                        "method": method,
                        "dense": dense[-1],
                    }
                    if a.out:
                        with open(a.out, "a") as file:
                            file.write(json.dumps({**row, "accuracy": found, "seconds": seconds}) + "\n")
        _table(name, dense, cells)


def _table(name: str, dense: list[float], cells: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    print(f"\n{name}: dense {_text(dense)}\n")
    print("| budget | method | accuracy | of dense, % | seconds |\n|---|---|---|---|---|")
    for (budget, method), runs in cells.items():
        parts = [100 * found / was for (found, _), was in zip(runs, dense, strict=True)]
        found, took = _text([f for f, _ in runs]), statistics.mean(s for _, s in runs)
        print(f"| {budget} | {method} | {found} | {_text(parts)} | {took:.0f} |", flush=True)


def _text(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
