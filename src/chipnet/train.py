"""The loop behind `chipnet prune`: train, prune softly, harden, compact, fine-tune, evaluate, save.

It is a user of chipnet's public page and nothing more: whatever happens here can happen in a loop of your
own. It stands on Lightning Fabric for device and precision, and runs on one device.

A run has two halves. `prepare` reads and checks everything that was asked for, so that no mistake of the
user's shows up after an hour of training; `run` then trains. The run folder holds, each file written all or
nothing:

======================  ===========================================================================
`dense.safetensors`     weights of the trained dense network (`chipnet.models.load_weights`)
`plan.json`             what was cut (`chipnet.Plan.load`)
`model.safetensors`     the compact network (`chipnet.load`); first as cut, then the best fine-tuned
`metrics.csv`           one row an epoch
`result.json`           the final numbers; written last, so it says that a run is complete
======================  ===========================================================================
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import chipnet
from chipnet import ChipNetError, Plan, Pruner
from chipnet._budget import KINDS
from chipnet._io import save_weights, write_json
from chipnet._job import RESULT, Job, Recipe, Request, example_images, prepare, recipe_for, seed_everything
from chipnet.schedules import OneCycle, Schedule

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PLAN, MODEL, DENSE, METRICS = "plan.json", "model.safetensors", "dense.safetensors", "metrics.csv"


__all__ = [
    "Epoch",
    "Interrupted",
    "Job",
    "Recipe",
    "Request",
    "Silent",
    "Watcher",
    "evaluate",
    "example_images",
    "prepare",
    "recalibrate",
    "recipe_for",
    "run",
    "train_epoch",
]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a run; the text says how far it came and what is on disk."""


# -- one epoch --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch of training.

    Attributes:
        task: cross-entropy.
        pruning: the pruner's part of the loss.
        accuracy: on the training images as they were augmented, in percent.
        lr: of the last step.
    """

    task: float
    pruning: float
    accuracy: float
    lr: float


def train_epoch(
    fabric: Fabric,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    lr: Callable[[int], float],
    *,
    pruner: Pruner | None = None,
    label_smoothing: float = 0.0,
    tick: Callable[[float, float], None] | None = None,
) -> Epoch:
    """One pass over `batches`: forward, backward, step.

    Args:
        fabric: does the backward pass.
        model, optimizer: what `fabric.setup` returned.
        batches: (images, labels) on the model's device.
        lr: step of this epoch, from 0, to learning rate.
        pruner: of this model; its loss is added and it is stepped after every step of the optimiser.
        label_smoothing: of the cross-entropy.
        tick: called after every step with the task's and the pruner's latest losses.

    Raises:
        ChipNetError: a loss is not finite; names the step and the part. On a CPU before that step changed any
            weight; elsewhere, where every look at a loss stops the device, at most 25 steps later.
    """
    model.train()
    every = 1 if fabric.device.type == "cpu" else 25
    recent: list[Tensor] = []
    task_sum = pruning_sum = 0.0
    correct = torch.zeros((), dtype=torch.int64, device=fabric.device)
    seen = steps = 0
    rate = math.nan

    def look() -> None:
        nonlocal task_sum, pruning_sum
        if not recent:
            return
        values = torch.stack(recent).tolist()
        for i, (task, pruning) in enumerate(values):
            _check_finite(steps - len(values) + i, task, pruning)
            task_sum, pruning_sum = task_sum + task, pruning_sum + pruning
        recent.clear()
        if tick is not None:
            tick(values[-1][0], values[-1][1])

    for images, labels in batches:
        rate = lr(steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(images)
        task = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        pruning = pruner.loss() if pruner is not None else torch.zeros_like(task)
        recent.append(torch.stack([task.detach(), pruning.detach().to(task.dtype)]))
        steps += 1
        if len(recent) == every:
            look()
        fabric.backward(task + pruning)
        optimizer.step()
        if pruner is not None:
            pruner.step()
        optimizer.zero_grad(set_to_none=True)
        correct += (logits.detach().argmax(1) == labels).sum()
        seen += len(labels)
    look()
    return Epoch(
        task_sum / max(steps, 1), pruning_sum / max(steps, 1), 100 * int(correct) / max(seen, 1), rate
    )


def _check_finite(step: int, task: float, pruning: float) -> None:
    parts = {"task loss (cross-entropy)": task, "pruner's loss (crispness and budget)": pruning}
    for name, value in parts.items():
        if not math.isfinite(value):
            raise ChipNetError(
                f"the {name} is {value} at step {step} of the epoch. Lower the learning rate (--lr), or look "
                "for images or weights that are not finite."
            )


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Accuracy in percent, in eval mode; every image counts once. The mode is put back afterwards.

    Raises:
        ChipNetError: there are no images.

    Example:
        >>> class Same(nn.Module):
        ...     def forward(self, x):
        ...         return x
        >>> evaluate(Same(), [(torch.eye(3), torch.tensor([0, 1, 1])), (torch.eye(3)[:1], torch.tensor([0]))])
        75.0
    """
    was = model.training
    model.eval()
    correct: Tensor | int = 0
    seen = 0
    for images, labels in batches:
        correct = correct + (model(images).argmax(1) == labels).sum()
        seen += len(labels)
    model.train(was)
    if not seen:
        raise ChipNetError("there are no images to evaluate on")
    return 100 * int(correct) / seen


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Measure the batch norms' running statistics anew: their plain means over `batches`."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    was, momenta = model.training, [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    model.train()
    for images, _ in batches:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was)


# -- the run ----------------------------------------------------------------------------------------------


class Watcher(Protocol):
    """Who is told how a run goes: a progress bar, a log, or nobody (`Silent`)."""

    def start(self, phase: str, steps: int) -> None:
        """A phase of so many optimiser steps begins."""

    def tick(self, text: str) -> None:
        """One more look at the losses; `text` says how it stands."""

    def advance(self, steps: int) -> None:
        """So many steps are done since the last call."""

    def end(self, text: str) -> None:
        """The phase is over; `text` sums it up."""


class Silent:
    """A `Watcher` that tells nobody."""

    def start(self, phase: str, steps: int) -> None: ...
    def tick(self, text: str) -> None: ...
    def advance(self, steps: int) -> None: ...
    def end(self, text: str) -> None: ...


class _Metrics:
    """metrics.csv: one row an epoch, on disk as soon as it is known."""

    columns = (
        "phase", "epoch", "lr", "task_loss", "pruning_loss", "train_accuracy", "validation_accuracy",
        "hard_validation_accuracy", *(f"soft_{k}" for k in KINDS), *KINDS, "seconds", "gates",
    )  # fmt: skip

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "w", newline="") as file:
            csv.writer(file).writerow(self.columns)

    def add(self, **values: Any) -> None:
        unknown = set(values) - set(self.columns)
        assert not unknown, unknown
        row = [values.get(c, "") for c in self.columns]
        with open(self.path, "a", newline="") as file:
            csv.writer(file).writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])


class _Run:
    """What the phases of one run share: loaders, clock, metrics, and how far it came."""

    def __init__(self, job: Job, watcher: Watcher) -> None:
        self.job, self.recipe, self.fabric, self.watcher = job, job.recipe, job.fabric, watcher
        self.metrics = _Metrics(job.out / METRICS)
        self.seconds: dict[str, float] = {}
        self.phase, self.epoch, self.total, self.passes = "start", 0, 0, 0
        self.saved: dict[str, str] = {}
        size, seed, device = self.recipe.batch_size, job.request.seed, self.fabric.device
        # Images in memory move to the device here, once for all phases.
        self.train = job.data.loader("train", size, train=True, seed=seed, device=device)
        self.validation = job.data.loader("validation", size, device=device)
        self.test = job.data.loader("test", size, device=device)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def epochs(self, phase: str, count: int) -> Iterator[int]:
        """Epochs 1 to `count` of a phase."""
        self.phase, self.epoch, self.total = phase, 0, count
        self.watcher.start(phase, count * len(self.train))
        for epoch in range(1, count + 1):
            # Epochs are counted through all phases: pruning must not see the order that training saw.
            self.train.set_epoch(self.passes)
            yield epoch
            self.epoch, self.passes = epoch, self.passes + 1

    def one_epoch(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr: Callable[[int], float],
        pruner: Pruner | None = None,
    ) -> Epoch:
        """`train_epoch` with this run's data and progress bar."""
        epoch = self.epoch + 1
        every = 1 if self.fabric.device.type == "cpu" else 25
        told = 0

        def tick(task: float, pruning: float) -> None:
            nonlocal told
            extra = f", pruning {pruning:+.4f}" if pruner is not None else ""
            self.watcher.tick(f"epoch {epoch}/{self.total}, loss {task:.4f}{extra}")
            step = min(every, len(self.train) - told)
            told += step
            self.watcher.advance(step)

        return train_epoch(
            self.fabric,
            model,
            self.train,
            optimizer,
            lr,
            pruner=pruner,
            label_smoothing=self.recipe.label_smoothing,
            tick=tick,
        )

    def sgd(self, model: nn.Module, lr: float) -> torch.optim.SGD:
        r = self.recipe
        return torch.optim.SGD(
            model.parameters(), lr=lr, momentum=r.momentum, nesterov=r.nesterov, weight_decay=r.weight_decay
        )

    def rates(self, schedule: Schedule, first: int, total: int) -> Callable[[int], Callable[[int], float]]:
        """Epoch (from 1) to its learning rates, on a schedule of `total` steps entered at step `first`."""
        per_epoch = len(self.train)
        return lambda epoch: (
            lambda step: schedule(min((first + (epoch - 1) * per_epoch + step) / max(total, 1), 1.0))
        )

    def save(self, name: str, what: str, write: Callable[[Path], None]) -> None:
        path = self.job.out / name
        write(path)
        self.saved[name] = what

    def came(self) -> str:
        """How far the run came, and what is on disk."""
        disk = "; ".join(f"{name} ({what})" for name, what in self.saved.items()) or "nothing yet"
        return (
            f"stopped in phase {self.phase}, {self.epoch} of {self.total} epochs done. "
            f"In {self.job.out}: {disk}"
        )


def run(job: Job, watcher: Watcher | None = None) -> dict[str, Any]:
    """Train what `prepare` has prepared; returns what result.json holds.

    Args:
        job: made by `prepare`; its network is trained in place.
        watcher: is told how it goes.

    Returns:
        `model, data, method, seed, budget, dense, soft, hard, compact, verify, seconds`, and what it takes to
        do it again. Accuracies are in percent, on the test images; costs are counts for one image; times are
        in seconds.

    Raises:
        Interrupted: Ctrl-C. What had been finished is on disk.
        ChipNetError: a loss is not finite, or the compact network is not what was planned.

    Example:
        >>> job = prepare(Request("resnet8", "digits", {"macs": 0.25}, "runs/example"))  # doctest: +SKIP
        >>> run(job)["compact"]["accuracy"]  # doctest: +SKIP
        97.2
    """
    _clear(job.out)
    state = _Run(job, watcher or Silent())
    try:
        with state.timed("total"):
            result = _phases(state)
        result["seconds"] = {k: round(v, 2) for k, v in state.seconds.items()}
        write_json(job.out / RESULT, result)
        return result
    except KeyboardInterrupt:
        raise Interrupted(state.came()) from None


def _clear(out: Path) -> None:
    """Files of an earlier run must not be taken for this one's. Its dense weights stay until ours come."""
    for name in (RESULT, PLAN, MODEL, METRICS, "report.html"):
        (out / name).unlink(missing_ok=True)


def _phases(run: _Run) -> dict[str, Any]:
    job = run.job
    network = job.network
    seed_everything(job.request.seed)
    with run.timed("train"):
        _train(run, network)
    with run.timed("evaluate"):
        dense = evaluate(run.fabric.setup(network), run.test)
    with run.timed("prune"):
        soft, hard, soft_cost, plan, momenta = _prune(run, network)
    with run.timed("compact"):
        small, difference = _compact(run, network, plan)
    with run.timed("finetune"):
        _finetune(run, small, plan, momenta)
    with run.timed("evaluate"):
        final = evaluate(run.fabric.setup(small), run.test)
    _check_counts(small, job.example.to(run.fabric.device), plan)
    asked = job.request
    return {
        "model": asked.model,
        "data": asked.data,
        "input": job.data.to_json() | {"data_dir": asked.data_dir and os.path.abspath(asked.data_dir)},
        "method": asked.method,
        "seed": asked.seed,
        "budget": {k: v if isinstance(v, int) else float(v) for k, v in job.budget.targets},
        "limits": job.structure.limits(job.budget),
        "realisation": asked.realisation,
        "dense": {"accuracy": dense, **plan.dense.to_json()},
        "soft": {"accuracy": soft, **soft_cost},
        "hard": {"accuracy": hard, **plan.compact.to_json()},
        "compact": {"accuracy": final, **plan.compact.to_json()},
        **({"latency": plan.latency} if plan.latency is not None else {}),
        "verify": {"max_abs_difference": difference[0], "output_scale": difference[1]},
        "seconds": {},
        "images": {s: len(getattr(job.data, s)) for s in ("train", "validation", "test")},
        "recipe": dataclasses.asdict(job.recipe),
        "environment": _environment(run.fabric),
        "command": asked.command,
    }


def _train(run: _Run, network: nn.Module) -> None:
    """Dense training, or nothing where weights were given. Its last epoch is kept."""
    recipe, job = run.recipe, run.job
    if recipe.train:
        model, optimizer = _setup(run, network, run.sgd(network, recipe.train_lr))
        schedule = OneCycle(recipe.train_lr, warmup=recipe.warmup)
        rates = run.rates(schedule, 0, recipe.train * len(run.train))
        accuracy = math.nan
        for epoch in run.epochs("train", recipe.train):
            start = time.perf_counter()
            done = run.one_epoch(model, optimizer, rates(epoch))
            accuracy = evaluate(model, run.validation)
            _row(run, epoch, done, start, validation_accuracy=accuracy, **job.dense.to_json())
        run.watcher.end(f"{recipe.train} epochs, validation {accuracy:.2f} %")
    run.save(DENSE, "dense weights", lambda path: save_weights(network, path))


def _prune(run: _Run, network: nn.Module) -> tuple[float, float, dict[str, float], Plan, dict[str, Tensor]]:
    """Soft pruning and hardening: test accuracies with soft and hard masks, soft costs, plan, momenta."""
    recipe, job = run.recipe, run.job
    network.to(run.fabric.device)
    steps = recipe.prune * len(run.train)
    paper = job.request.method == "chipnet-paper"
    optimizer: torch.optim.Optimizer
    if paper:
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.adamw_lr, weight_decay=recipe.adamw_weight_decay
        )
        rates = run.rates(lambda progress: recipe.adamw_lr, 0, steps)
    else:
        optimizer = run.sgd(network, recipe.prune_lr)
        rates = run.rates(OneCycle(recipe.prune_lr, warmup=recipe.warmup), 0, _cycle(run))
    pruner = Pruner(
        network, job.structure, job.budget, steps=steps, method=job.request.method, seed=job.request.seed
    )
    try:
        model, optimizer = _setup(run, network, optimizer)
        best: tuple[float, Any] | None = None
        accuracy = math.nan
        for epoch in run.epochs("prune", recipe.prune):
            start = time.perf_counter()
            done = run.one_epoch(model, optimizer, rates(epoch), pruner)
            soft_accuracy = evaluate(model, run.validation)
            with pruner.hardened() as mask:
                accuracy = evaluate(model, run.validation)
            if paper and (best is None or accuracy >= best[0]):
                best = accuracy, copy.deepcopy((network.state_dict(), pruner.state_dict()))
            _row(
                run,
                epoch,
                done,
                start,
                validation_accuracy=soft_accuracy,
                hard_validation_accuracy=accuracy,
                **{f"soft_{k}": v for k, v in pruner.soft_cost().items()},
                **pruner.structure.cost.exact(mask).to_json(),
                gates=" ".join(map(str, pruner.histogram())),
            )
        if best is not None:
            accuracy = best[0]
            network.load_state_dict(best[1][0])
            pruner.load_state_dict(best[1][1])
        # Soft and hard on the same weights: their difference is what hardening alone costs.
        soft = evaluate(model, run.test)
        fractions = pruner.soft_cost()
        plan = pruner.harden()
        hard = evaluate(model, run.test)
    finally:
        pruner.detach()
    run.watcher.end(f"{recipe.prune} epochs, validation with hard masks {accuracy:.2f} %")
    soft_cost = {k: round(fractions[k] * plan.dense[k], 2) for k in KINDS}
    return soft, hard, soft_cost, plan, {} if paper else _momenta(network, optimizer)


def _compact(run: _Run, network: nn.Module, plan: Plan) -> tuple[nn.Module, tuple[float, float]]:
    run.phase, run.epoch, run.total = "compact", 0, 0
    small = chipnet.compact(network, plan)
    example = run.job.example.to(run.fabric.device)
    difference = chipnet.verify_compact(network, small, plan, (example,))
    run.save(PLAN, "the plan", plan.save)
    run.save(MODEL, "compact network, not fine-tuned", lambda path: chipnet.save(small, plan, path))
    if run.recipe.recalibrate:
        recalibrate(run.fabric.setup(small), run.train)
    return small, difference


def _finetune(run: _Run, small: nn.Module, plan: Plan, momenta: Mapping[str, Tensor]) -> None:
    """Fine-tune in place; ends with the weights of the epoch that is best on the validation images."""
    recipe = run.recipe
    if not recipe.finetune:
        return
    optimizer: torch.optim.Optimizer = run.sgd(small, recipe.prune_lr)
    schedule = OneCycle(recipe.prune_lr, warmup=recipe.warmup)
    if momenta:
        _carry(momenta, small, optimizer, plan)
        pruned = recipe.prune * len(run.train)
        rates = run.rates(schedule, pruned, _cycle(run))
    else:
        rates = run.rates(schedule, 0, recipe.finetune * len(run.train))
    model, optimizer = _setup(run, small, optimizer)
    best, state = evaluate(model, run.validation), copy.deepcopy(small.state_dict())
    for epoch in run.epochs("finetune", recipe.finetune):
        start = time.perf_counter()
        done = run.one_epoch(model, optimizer, rates(epoch))
        accuracy = evaluate(model, run.validation)
        _row(run, epoch, done, start, validation_accuracy=accuracy, **plan.compact.to_json())
        if accuracy >= best:  # of equals the later one, which a falling learning rate has settled more
            best, state = accuracy, copy.deepcopy(small.state_dict())
            run.save(
                MODEL,
                f"compact network, fine-tuned {epoch} epochs, validation {accuracy:.2f} %",
                lambda path: chipnet.save(small, plan, path),
            )
    small.load_state_dict(state)
    run.save(
        MODEL,
        f"compact network, best fine-tuned epoch, validation {best:.2f} %",
        lambda path: chipnet.save(small, plan, path),
    )
    run.watcher.end(f"{recipe.finetune} epochs, best validation {best:.2f} %")


def _setup(
    run: _Run, network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model, wrapped = run.fabric.setup(network, optimizer)
    return model, wrapped


def _cycle(run: _Run) -> int:
    """Steps of the one schedule that runs through pruning and fine-tuning."""
    return (run.recipe.prune + run.recipe.finetune) * len(run.train)


def _row(run: _Run, epoch: int, done: Epoch, start: float, **values: Any) -> None:
    run.metrics.add(
        phase=run.phase,
        epoch=epoch,
        lr=done.lr,
        task_loss=done.task,
        pruning_loss=done.pruning,
        train_accuracy=done.accuracy,
        seconds=time.perf_counter() - start,
        **values,
    )


def _momenta(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """SGD's momentum by parameter name."""
    buffers = {n: optimizer.state[p].get("momentum_buffer") for n, p in network.named_parameters()}
    return {n: b for n, b in buffers.items() if b is not None}


def _carry(
    momenta: Mapping[str, Tensor], small: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan
) -> None:
    """Momentum through the cut: the kept rows and columns of every buffer."""
    for name, parameter in small.named_parameters():
        buffer = momenta.get(name)
        if buffer is None:
            continue
        for axis, indices in plan.keep.get(name, {}).items():
            buffer = buffer.index_select(axis, torch.tensor(indices, device=buffer.device))
        if buffer.shape == parameter.shape:
            optimizer.state[parameter]["momentum_buffer"] = buffer.clone()


def _check_counts(small: nn.Module, example: Tensor, plan: Plan) -> None:
    """The plan's numbers against the network's own: parameters by `numel`, MACs by PyTorch's counter."""
    was = small.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small.eval()(example)
    small.train(was)
    counted = {"params": sum(p.numel() for p in small.parameters()), "macs": counter.get_total_flops() // 2}
    wrong = [
        f"{k}: planned {plan.compact[k]:,}, counted {n:,}" for k, n in counted.items() if n != plan.compact[k]
    ]
    if wrong:
        raise ChipNetError(
            f"the compact network does not cost what the plan says: {'; '.join(wrong)}. This is a bug of "
            "chipnet's; please report it with the network."
        )


def _environment(fabric: Fabric) -> dict[str, Any]:
    device = fabric.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "chipnet": chipnet.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": f"{device.type}: {name}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
