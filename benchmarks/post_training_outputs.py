"""Pruning without training where there are no classes: what becomes of the outputs of a regression network with two
inputs, and of a segmentation network (those of examples/).

    python -m benchmarks.post_training_outputs --seeds 20,21,22

Every method has 512 inputs without targets. *Output error*: squared distance from the dense network's outputs, over
the sum of their squares, on 2,000 fresh inputs. *Task error*: the part of the target's variance that is left
unexplained, or one minus the intersection over union. Methods: those of `benchmarks.post_training`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from datetime import date

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.post_training import IMAGES, METHODS, Inputs, UnreachableError, _text, called
from examples import regression, segmentation

STEPS, BATCH, FRESH = 600, 32, 2000


class Regression:
    """`examples/regression.py`."""

    build = regression.TwoInputs

    @staticmethod
    def samples(count: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        picture, numbers, target = regression.samples(count, generator)
        return {"picture": picture, "numbers": numbers}, target

    loss = staticmethod(F.mse_loss)

    @staticmethod
    def wrong(output: Tensor, target: Tensor) -> float:
        return float(F.mse_loss(output, target) / target.var())


class Segmentation:
    """`examples/segmentation.py`."""

    build = segmentation.UNet
    samples = staticmethod(segmentation.squares)
    loss = staticmethod(segmentation.loss_of)

    @staticmethod
    def wrong(output: Tensor, target: Tensor) -> float:
        found, wanted = output > 0, target > 0
        return 1 - float((found & wanted).sum() / (found | wanted).sum())


TASKS = {"regression": Regression, "segmentation": Segmentation}


def trained(task: type[Regression] | type[Segmentation], generator: torch.Generator) -> nn.Module:
    network = task.build()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    for _ in range(STEPS):
        inputs, target = task.samples(BATCH, generator)
        optimizer.zero_grad()
        task.loss(called(network, inputs), target).backward()
        optimizer.step()
        rates.step()
    return network.eval()


@torch.no_grad()
def judged(
    dense: nn.Module,
    small: nn.Module,
    inputs: Inputs,
    target: Tensor,
    wrong: Callable[[Tensor, Tensor], float],
) -> tuple[float, float]:
    """Output error, and what the task counts, in percent."""
    wanted, found = (called(network.eval(), inputs) for network in (dense, small))
    return 100 * float((found - wanted).square().sum() / wanted.square().sum()), 100 * wrong(found, target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--budgets", default="macs=0.5,macs=0.25,macs=0.125")
    parser.add_argument("--methods", default="error,random,magnitude,torch_pruning,onnxsim")
    parser.add_argument("--seeds", default="20,21,22")
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, torch {torch.__version__}, {platform.machine()}, 1 thread, seeds {a.seeds}")
    for name in a.tasks.split(","):
        task, cells = TASKS[name], {}
        for seed in map(int, a.seeds.split(",")):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            dense = trained(task, generator)
            inputs, _ = task.samples(IMAGES, generator)
            fresh, target = task.samples(FRESH, generator)
            cells.setdefault(("", "dense"), []).append(
                (*judged(dense, dense, fresh, target, task.wrong), 0.0)
            )
            for budget in a.budgets.split(","):
                for method in a.methods.split(","):
                    start = time.perf_counter()
                    try:
                        small = METHODS[method](dense, inputs, budget, seed)
                    except UnreachableError:
                        continue
                    seconds = time.perf_counter() - start
                    row = (*judged(dense, small, fresh, target, task.wrong), seconds)
                    cells.setdefault((budget, method), []).append(row)
        print(
            f"\n{name}\n\n| budget | method | output error, % | task error, % | seconds |\n|---|---|---|---|---|"
        )
        for (budget, method), rows in cells.items():
            error, wrong, took = (list(column) for column in zip(*rows, strict=True))
            count = f" ({len(rows)} seeds)" if len(rows) < len(a.seeds.split(",")) else ""
            cell = f"| {budget} | {method}{count} | {_text(error)} | {_text(wrong)} | {sum(took) / len(took):.1f} |"
            print(cell, flush=True)


if __name__ == "__main__":
    main()
