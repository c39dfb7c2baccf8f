"""The loop that takes a run from step to step, and what a phase of it is.

A run is a `State` that is advanced a step at a time. Saving is writing the state down, continuing is starting
from it: a run that was killed ends with the same bits as one that was not. The phases themselves are
`chipnet.lab.phases`.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from chipnet import ChipNetError, Plan, Pruner, compact, detach
from chipnet._util.distributed import gathered, same_buffers, sums
from chipnet._util.random import generators, seed_everything, set_generators, stream_seed
from chipnet._util.text import amount, shell_command
from chipnet.analysis.kinds import KINDS
from chipnet.lab import checkpoint, sanity
from chipnet.lab.job import Job
from chipnet.lab.metrics import LOSSES, Metrics
from chipnet.lab.models import load_weights
from chipnet.lab.runs.record import DENSE
from chipnet.lab.steps import Batch, Objective, SpikeClip, part_of, train_step
from chipnet.lab.watcher import Interrupted, Watcher
from chipnet.methods import read_method
from chipnet.methods.schedules import Schedule

LOG_EVERY = 25
"""Steps between two lines of metrics.jsonl, and between two looks at the losses where a look stops the device."""


@dataclass
class State:
    """The state of a run between two steps. With the network, the optimiser, the pruner and the random
    generators, which `Loop.save_state` writes beside it, this is all that has to be known to go on.

    Attributes:
        phase: "train", "prune", "finetune" or "done".
        epoch: finished epochs of the phase.
        step: finished steps of the epoch.
        passes: finished epochs of all phases: with the seed, they decide the order of images.
        totals: sums over the steps of the epoch so far.
        best: the best epoch so far: its accuracy, and the states to return to.
        known: numbers of the result that are known already.
        seconds: spent so far, by part.
        saved: file -> what it holds.
        text: how the last epoch went.
    """

    phase: str = "train"
    epoch: int = 0
    step: int = 0
    passes: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    known: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)
    text: str = ""


class Phase(ABC):
    """One phase of a run.

    Attributes:
        name: of the phase, and of the time that it takes.
        epochs: how many.
        network: what is trained.
        optimizer: of the network's parameters.
        pruner: of the network, while there is one.
    """

    name: ClassVar[str]
    epochs: int
    network: nn.Module
    optimizer: torch.optim.Optimizer
    pruner: Pruner | None = None
    schedule: Schedule
    first: int = 0
    """Steps of the schedule that an earlier phase has taken."""
    total: int
    """Steps of the whole schedule."""

    @abstractmethod
    def __init__(self, loop: Loop) -> None:
        """Begin with the run's network, plan and carried optimiser state."""

    def rate(self, step: int) -> float:
        """Learning rate of the phase's step `step`, from 0."""
        return self.schedule(min((self.first + step) / max(self.total, 1), 1.0))

    def begin(self, loop: Loop) -> None:  # noqa: B027 (most phases have nothing to do here)
        """Do what comes once, before the first step; not where a run continues."""

    @abstractmethod
    def score(self, loop: Loop) -> dict[str, Any]:
        """Columns of metrics.csv after an epoch."""

    @abstractmethod
    def finish(self, loop: Loop) -> str:
        """Leave files and the next network after the last epoch, and give the name of the next phase."""


class Loop:
    """A state, and what it is advanced with: network, data, devices, metrics and who watches."""

    phase: Phase
    model: Any
    optimizer: Any
    objective: Objective

    def __init__(
        self, job: Job, phases: Mapping[str, type[Phase]], watcher: Watcher, stop: Callable[[], bool]
    ) -> None:
        self.job, self.recipe, self.fabric = job, job.recipe, job.fabric
        if job.mask is not None:  # nothing is pruned: all epochs train what the masks leave
            rate = job.recipe.prune_lr if job.request.weights else job.recipe.train_lr
            epochs = sum(job.recipe.epochs)
            self.recipe = dataclasses.replace(job.recipe, train=0, finetune=epochs, prune_lr=rate)
        self.phases, self.watcher, self.stop = phases, watcher, stop
        size, seed, device = self.recipe.batch_size, job.request.seed, self.fabric.device
        part = self.fabric.global_rank, self.fabric.world_size
        # Images in memory move to the device here, once for all phases.
        options: dict[str, Any] = {"device": device, "part": part, "workers": job.request.workers}
        self.train = job.data.loader("train", size, train=True, seed=seed, **options)
        self.validation = job.data.loader("validation", size, **options)
        self.test = job.data.loader("test", size, **options)
        self.look_every = 1 if device.type == "cpu" else LOG_EVERY
        self.unseen: list[tuple[Tensor, int]] = []
        self.clock = self.last_save = time.perf_counter()
        self.since_save = 0

        factor = self.recipe.clip_spikes
        self.spikes = SpikeClip(factor) if factor and not job.paper else None
        self.state, self.network = State(), job.network
        self.plan: Plan | None = None
        self.carried: dict[str, dict[str, Any]] = {}
        self.checkpoint = checkpoint.read(job.out) if job.resume else None
        position = self.checkpoint["metrics"] if self.checkpoint else None
        board = job.request.tensorboard
        self.metrics = Metrics(job.out, position, board) if self.fabric.is_global_zero else None
        self.shown: dict[str, float] = {}
        """Costs as the progress bar shows them: soft ones of the last line of metrics, exact of the last epoch."""
        self.accuracy: float | None = None
        """Accuracy on the validation images after the last epoch; in soft pruning, with hard masks."""
        self.pace = (0, 0.0)
        """Steps since this process began, and the seconds that they and their evaluations took."""

    # -- the run --------------------------------------------------------------------------------------
    def advance(self) -> None:
        """Go from where the state stands to the end."""
        if not self.job.resume and self.job.mask is None:
            self.warn(sanity.short(self.recipe.prune * len(self.train)))
        while self.state.phase != "done":
            self.enter()
            while self.state.epoch < self.phase.epochs:
                self.epoch()
            next_phase = self.phase.finish(self)
            if self.phase.epochs:
                self.watcher.end(f"{amount(self.phase.epochs, 'epoch')}, {self.state.text}")
            self.state = dataclasses.replace(
                self.state, phase=next_phase, epoch=0, step=0, totals={}, best=None, text=""
            )

    def warn(self, text: str) -> None:
        """Say a warning, once for all processes; an empty one is none."""
        if text and self.fabric.is_global_zero:
            sanity.log.warning("%s", text)

    def say(self, text: str) -> None:
        """Say a fact, once for all processes."""
        if self.fabric.is_global_zero:
            sanity.log.info("%s", text)

    def enter(self) -> None:
        """Begin the state's phase, or continue it where a checkpoint was read."""
        saved, self.checkpoint = self.checkpoint, None
        if saved is not None:
            self.state = State(**saved["state"])
            if saved["plan"] is not None:
                self.plan = Plan.from_json(saved["plan"])
                self.network = compact(self.network, self.plan, verify=False)
            self.network.load_state_dict(saved["network"])
        self.network.to(self.fabric.device)
        if self.job.request.channels_last:
            self.network.to(memory_format=torch.channels_last)
        names = list(self.phases)
        # Every phase and process has random numbers of its own, whatever came before.
        parts = names.index(self.state.phase), self.fabric.global_rank
        seed_everything(stream_seed(self.job.request.seed, *parts))
        self.phase = phase = self.phases[self.state.phase](self)
        if saved is not None:
            phase.optimizer.load_state_dict(saved["optimizer"])
            if phase.pruner is not None:
                phase.pruner.load_state_dict(saved["pruner"])
            if self.spikes is not None and saved["spikes"] is not None:
                self.spikes.load_state_dict(saved["spikes"])
        self._setup(phase)
        self.objective = self._objective()
        if saved is not None:
            scaler = getattr(self.fabric.strategy.precision, "scaler", None)
            if scaler is not None:
                scaler.load_state_dict(saved["scaler"])
            if len(saved["processes"]) == self.fabric.world_size:
                mine = saved["processes"][self.fabric.global_rank]
                set_generators(mine["generators"])
                self.state.totals = mine["totals"]
        else:
            phase.begin(self)
        self.clock = time.perf_counter()
        if phase.epochs:
            self.watcher.start(phase.name, phase.epochs * len(self.train))
            self.watcher.advance(self.state.epoch * len(self.train) + self.state.step)
        if saved is None:
            self.save_state()

    def _setup(self, phase: Phase) -> None:
        # What wrapped the last phase's network has hooks on its parameters: it must be gone, not just unused.
        self.model = self.optimizer = None
        gc.collect()
        network: Any = phase.network
        if self.job.request.compile:
            torch.compiler.reset()  # gates come and go between phases
            network = torch.compile(network)
        self.model, self.optimizer = self.fabric.setup(network, phase.optimizer)

    def _objective(self) -> Objective:
        recipe, job, dense = self.recipe, self.job, self.job.out / DENSE
        plain = Objective(recipe.label_smoothing, recipe.mixup)
        weight, temperature = recipe.distill, recipe.temperature
        if not weight and job.mask is None:
            temperature, weight = read_method(job.request.method)[0].distills or (temperature, 0.0)
        if not weight or self.state.phase == "train":
            return plain
        teacher = copy.deepcopy(job.start.dense if job.start else job.network)
        detach(teacher)
        self.fabric.barrier()  # the first process has written the file by now
        load_weights(teacher, dense)
        teacher.to(self.fabric.device).eval()

        def taught(images: Tensor) -> Tensor:
            with self.fabric.autocast():
                return teacher(images)

        return dataclasses.replace(plain, teacher=taught, weight=weight, temperature=temperature)

    def epoch(self) -> None:
        """The rest of the state's epoch, and its score."""
        state = self.state
        self.train.set_epoch(state.passes, state.step)
        self.model.train()
        batches = iter(self.train)
        while state.step < len(self.train):
            before = time.perf_counter()
            images, labels = next(batches)
            waited = time.perf_counter() - before
            self.step(images, labels)
            state.step += 1
            self._took(time.perf_counter() - before, 1)
            self._add({"data_seconds": waited})
            self.look()
            if state.step == len(self.train):  # before a checkpoint, which holds the first process's
                same_buffers(self.network)
            self.pause()
        before = time.perf_counter()
        scores = self.phase.score(self)
        self._took(time.perf_counter() - before, 0)
        self._row(scores)
        self.accuracy = scores.get("hard_validation_accuracy", scores["validation_accuracy"])
        pruner = self.phase.pruner
        if pruner is not None:
            dense = self.job.dense
            self.shown |= {f"exact_{k}": scores[k] / max(dense[k], 1) for k in KINDS}
            if self.metrics is not None:
                gates = pruner.method.relaxed(pruner.progress).detach()
                self.metrics.histogram("prune/gates", gates, (state.epoch + 1) * len(self.train))
        loss = state.totals.get("task", 0.0) / max(state.totals.get("images", 0.0), 1.0)
        state.epoch, state.passes, state.step, state.totals = state.epoch + 1, state.passes + 1, 0, {}
        if tell := getattr(self.watcher, "epoch", None):
            told = [*self._soon(), f"loss {loss:.4f}", *self._costs()]
            tell(f"{state.epoch}/{self.phase.epochs}: {', '.join(told)}")
        self.pause()

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One optimiser step."""
        done = self.state.epoch * len(self.train) + self.state.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.rate(done)

        def check(row: Tensor) -> None:
            self.unseen.append((row, len(labels)))
            if self.look_every == 1:
                self._check_finite(row.tolist(), self.state.step)

        if self.job.request.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        train_step(
            self.fabric,
            self.model,
            self.optimizer,
            images,
            labels,
            self.objective,
            pruner=self.phase.pruner,
            weight=part_of(images, self.train.size(self.state.step)),
            accumulate=self.recipe.accumulate,
            clip=self.recipe.clip,
            spikes=self.spikes,
            check=check,
        )
        self.since_save += 1

    def look(self) -> None:
        """Read the losses of the steps since the last look, if it is time."""
        state, steps = self.state, len(self.train)
        if state.step % self.look_every and state.step < steps:
            return
        rows = torch.stack([row for row, _ in self.unseen]).tolist()
        for i, (values, (_, count)) in enumerate(zip(rows, self.unseen, strict=True)):
            at = state.step - len(rows) + i
            self._check_finite(values, at)
            losses = {name: value * count for name, value in zip(LOSSES, values[:-1], strict=True)}
            self._add({**losses, "right": values[-1], "images": count})
        self.unseen = []
        losses = dict(zip(LOSSES, rows[-1][:-1], strict=True))
        done = state.epoch * steps + state.step
        if self.metrics is not None and (done % LOG_EVERY == 0 or state.step == steps):
            pruner = self.phase.pruner
            soft = self.job.parts(pruner.soft_cost()) if pruner is not None else {}
            self.shown |= {f"soft_{k}": v for k, v in soft.items()}
            values = {name: value for name, value in losses.items() if value}
            values |= {"lr": self.phase.rate(done - 1), **{f"soft_{k}": v for k, v in soft.items()}}
            self.metrics.step(self.phase.name, done, values)
        self.watcher.tick(self._text(losses))
        self.watcher.advance(len(rows))

    def _text(self, losses: dict[str, float]) -> str:
        """How it stands, in one line: what matters most first, since a terminal may end."""
        state, phase = self.state, self.phase
        parts = [*self._soon(), f"epoch {state.epoch + 1}/{phase.epochs}", f"loss {losses['task']:.4f}"]
        parts += [f"{n} {losses[n]:+.4f}" for n in ("distillation", "budget", "crispness") if losses[n]]
        parts += self._costs()
        waited, seconds = (state.totals.get(name, 0.0) for name in ("data_seconds", "seconds"))
        if seconds and waited > 0.1 * seconds:
            parts.append(f"{waited / seconds:.0%} of the time waiting for data")
        return ", ".join(parts)

    def _soon(self) -> list[str]:
        """The accuracy and the time that is left in all, as far as they are known."""
        state, phase, (steps, spent) = self.state, self.phase, self.pace
        right, images = (state.totals.get(name, 0.0) for name in ("right", "images"))
        parts = [f"training {100 * right / images:.2f} %"] if images else []
        if self.accuracy is not None:
            parts = [f"validation {self.accuracy:.2f} %"]
        if steps:
            names = list(self.phases)
            later = sum(getattr(self.recipe, n) for n in names[names.index(state.phase) + 1 :])
            left = (phase.epochs + later - state.epoch) * len(self.train) - state.step
            parts.append(f"{timedelta(seconds=round(left * spent / steps))} left")
        return parts

    def _costs(self) -> list[str]:
        """The costs that the budget limits, in soft pruning, as parts of the dense ones."""
        parts = []
        for kind in self.job.budget.kinds if self.phase.pruner is not None else ():
            costs = [f"{self.shown[f'{how}_{kind}']:.1%} {how}" for how in ("soft", "exact")
                     if f"{how}_{kind}" in self.shown]  # fmt: skip
            parts += [f"{kind} {', '.join(costs)}"] if costs else []
        return parts

    def pause(self) -> None:
        """Save between two steps where it is time, and stop where that was asked for."""
        if self.unseen:  # not before their losses are known to be finite
            return
        request = self.job.request
        steps = request.checkpoint_steps
        due = self.since_save >= steps if steps else False
        due = due or time.perf_counter() - self.last_save >= request.checkpoint_seconds
        stop, due = (n > 0 for n in sums([self.stop(), due], self.fabric.device))
        if due or stop:
            self.save_state()
        if stop:
            raise Interrupted(self.came())

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """`batches` of an evaluation, which changes nothing: a run may stop in the middle of it."""
        for batch in batches:
            if self.stop() and self.fabric.world_size == 1:
                self.pause()
            yield batch

    # -- what is written ------------------------------------------------------------------------------
    def save_state(self) -> None:
        """Write down where the run stands."""
        self.charge(self.phase.name)
        everyones = gathered({"generators": generators(), "totals": self.state.totals})
        if self.metrics is not None:  # the first process writes
            pruner, plan, spikes = self.phase.pruner, self.plan, self.spikes
            scaler = getattr(self.fabric.strategy.precision, "scaler", None)
            checkpoint.write(
                self.job.out,
                {
                    "state": vars(self.state),
                    "network": self.phase.network.state_dict(),
                    "optimizer": self.phase.optimizer.state_dict(),
                    "pruner": pruner.state_dict() if pruner is not None else None,
                    "spikes": spikes.state_dict() if spikes is not None else None,
                    "plan": plan.to_json() if plan is not None else None,
                    "scaler": scaler.state_dict() if scaler is not None else None,
                    "processes": everyones,
                    "metrics": self.metrics.position,
                },
            )
        self.last_save, self.since_save = time.perf_counter(), 0

    def save(self, name: str, what: str, write: Callable[[Path], None]) -> None:
        """Write a file of the result."""
        if self.metrics is not None:
            write(self.job.out / name)
        self.state.saved[name] = what

    def charge(self, part: str) -> None:
        """Book the time since the last call as spent on `part`."""
        now = time.perf_counter()
        self.state.seconds[part] = self.state.seconds.get(part, 0.0) + now - self.clock
        self.clock = now

    def came(self) -> str:
        """How far the run came, what is on disk, and how to go on."""
        state, out = self.state, self.job.out
        disk = "; ".join(f"{name} ({what})" for name, what in state.saved.items()) or "no results yet"
        return (
            f"stopped in phase {state.phase}, {state.epoch} of {amount(self.phase.epochs, 'epoch')} done. "
            f"In {out}: {disk}. Continue with: {shell_command('prune', '--resume', out)}"
        )

    def _took(self, seconds: float, steps: int) -> None:
        self._add({"seconds": seconds})
        self.pace = (self.pace[0] + steps, self.pace[1] + seconds)

    def _add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.state.totals[name] = self.state.totals.get(name, 0.0) + value

    def _row(self, scores: dict[str, Any]) -> None:
        names = (*LOSSES, "right", "images")
        totals = sums([self.state.totals.get(name, 0.0) for name in names], self.fabric.device)
        by_name = dict(zip(names, totals, strict=True))
        images = max(by_name["images"], 1)
        if self.metrics is None:
            return
        self.metrics.epoch(
            phase=self.phase.name,
            epoch=self.state.epoch + 1,
            lr=self.phase.rate((self.state.epoch + 1) * len(self.train) - 1),
            train_accuracy=100 * by_name["right"] / images,
            seconds=self.state.totals["seconds"],
            data_seconds=self.state.totals.get("data_seconds", 0.0),
            **{f"{name}_loss": by_name[name] / images for name in LOSSES},
            **scores,
        )

    def _check_finite(self, values: list[float], step: int) -> None:
        for name, value in zip(LOSSES, values, strict=False):
            if not math.isfinite(value):
                what = "task loss (cross-entropy)" if name == "task" else f"{name} loss"
                raise ChipNetError(
                    f"the {what} is {value} in phase {self.phase.name}, epoch {self.state.epoch + 1}, step "
                    f"{step}. Lower the learning rate (--lr), or look for images or weights that are not finite. "
                    f"The last good state is in {self.job.out / checkpoint.CHECKPOINT}."
                )
