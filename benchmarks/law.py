"""Does Fisher information grow as the default method assumes, while sites thin out?

    python -m benchmarks.law --seeds 12

The default takes the Fisher information of a site's gates to grow like ``k^-(1 + law)``, where k is the part of
them that the site keeps. Here it prunes the networks of the development set, and every measurement is written down:
of each site k, and f, the mean Fisher information of those gates that are open at the end. Then
``log f = site + time + slope log k`` is fitted by least squares, with a number for each site and one for each time.
So what all sites have in common (a loss that rises, a learning rate) is no part of the slope. ``-slope - 1`` is the
law that was measured.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

import chipnet
from benchmarks.development import (
    BUDGETS,
    DATA,
    FAMILIES,
    FINETUNE,
    PRUNE,
    Cell,
    cells,
    task,
    trained,
)
from benchmarks.post_training import BATCH, RATE, Task, fit
from chipnet.methods import ChipNet
from chipnet.methods.schedules import OneCycle

TOGETHER = 4
"""So many measurements are one point of the fit."""


class _Recorded(ChipNet):
    """The default, which writes down what it measures."""

    name = "recorded"

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.record: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def learn(self, sample: Tensor) -> None:
        self.record.append((self.current.cpu().double(), sample.cpu().double()))
        super().learn(sample)


def recorded(cell: Cell, dense: torch.nn.Module, task: Task) -> tuple[Tensor, Tensor]:
    """Parts kept and Fisher information, ``[times, sites]``."""
    network, schedule = copy.deepcopy(dense), OneCycle(RATE, 0.15)
    steps, example = PRUNE * (len(task.train[0]) // BATCH), task.train[0][:1]
    pruner = chipnet.Pruner(network, example, cell.budget, steps=steps, method=_Recorded, seed=cell.seed)
    part = PRUNE / (PRUNE + FINETUNE)
    fit(network, task, PRUNE, lambda p: schedule(p * part), cell.seed + 1, pruner)
    method = pruner.method
    assert isinstance(method, _Recorded)
    rows = [row for row in method.record if bool(torch.isfinite(row[1]).all())]
    rows = rows[: len(rows) // TOGETHER * TOGETHER]
    now, f = (torch.stack(column).unflatten(0, (-1, TOGETHER)).mean(1) for column in zip(*rows, strict=True))
    last = method.current.cpu()
    sites = [g for g in method.analysis.site_gates if len(g) > 1 and bool(last[g].any())]
    kept = torch.stack([now[:, g].mean(1) for g in sites], 1)
    return kept, torch.stack([f[:, g[last[g]]].mean(1) for g in sites], 1)


def slope(k: Tensor, f: Tensor) -> tuple[float, float, float]:
    """Of ``log f`` on ``log k`` with a number for each row and each column: the slope, its standard error, and the
    part of what is left of the variance that it explains.

    >>> k = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.9, 0.7], [0.2, 0.8, 0.3]])
    >>> f = torch.tensor([[1.0], [3.0], [7.0]]) * torch.tensor([[2.0, 5.0, 1.0]]) * k**-1.5
    >>> found, error, explained = slope(k, f)
    >>> round(found, 6), error < 1e-6, round(explained, 6)
    (-1.5, True, 1.0)
    """
    there = (k > 0) & (f > 0)
    there = there & (there.sum(0) > 2)
    rows, columns = torch.nonzero(there, as_tuple=True)
    design = torch.cat(
        [torch.nn.functional.one_hot(rows, len(k)), torch.nn.functional.one_hot(columns, k.shape[1])], 1
    ).double()
    x, y = (values[there].double().log()[:, None] for values in (k, f))
    # What site and time explain goes; ranks are not full, so by the pseudo-inverse.
    left = torch.eye(len(x), dtype=torch.float64) - design @ torch.linalg.pinv(design)
    x, y = (left @ x).flatten(), (left @ y).flatten()
    found = float((x * y).sum() / x.square().sum())
    rest = (y - found * x).square().sum()
    free = max(len(x) - int(torch.linalg.matrix_rank(design)) - 1, 1)
    error = float((rest / free / x.square().sum()).sqrt())
    return found, error, 1 - float(rest / y.square().sum())


def measured(seeds: list[int], asked: dict[str, list[str]], folder: str, cache: Path) -> Iterator[str]:
    found: dict[str, list[float]] = {}
    for seed in seeds:
        for cell in cells(seed):
            if all(getattr(cell, k) in names for k, names in asked.items()):
                images = task(folder, cell.data, cell.seed)
                s, error, explained = slope(*recorded(cell, trained(cell, images, cache), images))
                found.setdefault(cell.family, []).append(-s - 1)
                row = (cell.family, cell.data, cell.budget, f"{-s - 1:.2f} ± {error:.2f}", f"{explained:.2f}")
                yield f"| {' | '.join(row)} |"
    yield ""
    for family, laws in found.items():
        yield f"{family}: median {statistics.median(laws):.2f} of {len(laws)}"
    every = sorted(law for laws in found.values() for law in laws)
    quartiles = statistics.quantiles(every, n=4) if len(every) > 1 else every * 3
    yield f"all {len(every)}: median {quartiles[1]:.2f}, quartiles {quartiles[0]:.2f} and {quartiles[2]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--seeds", default="12")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--budgets", default=",".join(BUDGETS))
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--cache", type=Path, default=Path("development"), help="folder of dense weights")
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, torch {torch.__version__}, {platform.machine()}, 1 thread, seeds {a.seeds}\n")
    print("| network | data | budget | law measured | R² |\n|---|---|---|---|---|")
    asked = {"family": a.families.split(","), "budget": a.budgets.split(","), "data": a.data.split(",")}
    for line in measured([int(s) for s in a.seeds.split(",")], asked, a.data_dir, a.cache):
        print(line, flush=True)


if __name__ == "__main__":
    main()
