"""What the phases of a run do: train the dense network, prune it softly, fine-tune what is left.

A phase has an optimiser, a schedule and perhaps a pruner; it scores every epoch, and its end leaves files and
the network of the next phase. It is built from the run's state alone, fresh or read from a checkpoint; how it
is stepped and saved is `chipnet.lab.train`'s business.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

import chipnet
from chipnet import ChipNetError, Masks, Plan, Pruner
from chipnet._util.distributed import same_buffers
from chipnet.analysis.kinds import KINDS
from chipnet.lab import sanity
from chipnet.lab.config import Recipe
from chipnet.lab.steps import evaluate, recalibrate
from chipnet.methods import read_method
from chipnet.methods.schedules import Constant, Cosine, OneCycle, Schedule, Steps
from chipnet.program.counting import counting
from chipnet.surgery.optimizer import cut_state, set_state
from chipnet.surgery.storage import save_weights

if TYPE_CHECKING:
    from chipnet.lab.train import Run

from chipnet.lab.runs.record import DENSE, MASKS, MODEL, PLAN


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
    def __init__(self, run: Run) -> None:
        """From the run's network, plan and carried optimiser state."""

    def rate(self, step: int) -> float:
        """Learning rate of the phase's step `step`, from 0."""
        return self.schedule(min((self.first + step) / max(self.total, 1), 1.0))

    def begin(self, run: Run) -> None:  # noqa: B027 (most phases have nothing to do here)
        """Once, before the first step; not where a run continues."""

    @abstractmethod
    def score(self, run: Run) -> dict[str, Any]:
        """Columns of metrics.csv after an epoch."""

    @abstractmethod
    def finish(self, run: Run) -> str:
        """After the last epoch: leave files and the next network; the name of the next phase."""


def optimizer_of(network: nn.Module, lr: float, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser of the network's parameters."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        network.parameters(),
        lr=lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def schedule(recipe: Recipe, peak: float) -> Schedule:
    if recipe.schedule == "cosine":
        return Cosine(peak, 0.0)
    if recipe.schedule == "step":
        return Steps(peak)
    return OneCycle(peak, warmup=recipe.warmup)


class Train(Phase):
    """Dense training, or nothing where weights were given. Its last epoch is kept."""

    name = "train"

    def __init__(self, run: Run) -> None:
        recipe = run.recipe
        self.epochs, self.network = recipe.train, run.network
        self.optimizer = optimizer_of(run.network, recipe.train_lr, recipe)
        self.schedule = schedule(recipe, recipe.train_lr)
        self.total = recipe.train * len(run.train)

    def score(self, run: Run) -> dict[str, Any]:
        accuracy = evaluate(self.network, run.watched(run.validation), run.fabric)
        run.state.text = f"validation {accuracy:.2f} %"
        return {"validation_accuracy": accuracy, **run.job.dense.to_json()}

    def finish(self, run: Run) -> str:
        start, known = run.job.start, run.state.known
        whole = start.dense.to(run.fabric.device) if start else self.network
        run.save(DENSE, "dense weights", lambda path: save_weights(whole, path))
        run.charge("train")
        dense = known["dense"] = evaluate(whole, run.test, run.fabric)
        if start is not None:
            dense = known["start"] = evaluate(self.network, run.test, run.fabric)
            if start.run.result["dense"]["accuracy"] is None:  # it was never trained
                known["dense"] = None
        if start is not None or run.job.request.weights is not None:
            held = evaluate(self.network, run.validation, run.fabric)
            run.say(
                f"before pruning: {dense:.2f} % on the test images, {held:.2f} % on the validation images"
            )
            data = run.job.data
            run.warn(sanity.guessing(dense, data.num_classes, data.mean, data.std))
        run.charge("evaluate")
        return "prune"


class Prune(Phase):
    """Soft pruning, hardening, compaction."""

    name = "prune"

    def __init__(self, run: Run) -> None:
        recipe, job = run.recipe, run.job
        self.epochs, self.network = recipe.prune, run.network
        steps = recipe.prune * len(run.train)
        self.paper = paper(run)
        if self.paper:
            self.optimizer = torch.optim.AdamW(
                self.network.parameters(), lr=recipe.adamw_lr, weight_decay=recipe.adamw_weight_decay
            )
            self.schedule, self.total = Constant(recipe.adamw_lr), steps
        else:
            self.optimizer = optimizer_of(self.network, recipe.prune_lr, recipe)
            self.schedule, self.total = schedule(recipe, recipe.prune_lr), cycle(run)
        self.pruner = Pruner(
            self.network,
            job.structure,
            job.budget,
            steps=steps,
            method=job.request.method,
            seed=job.request.seed,
        )

    def score(self, run: Run) -> dict[str, Any]:
        assert self.pruner is not None
        soft = evaluate(self.network, run.watched(run.validation), run.fabric)
        with self.pruner.hardened() as mask:
            hard = evaluate(self.network, run.watched(run.validation), run.fabric)
        best = run.state.best
        if self.paper and (best is None or hard >= best["accuracy"]):
            both = {"network": self.network.state_dict(), "pruner": self.pruner.state_dict()}
            best = run.state.best = {"accuracy": hard, **copy.deepcopy(both)}
        run.state.text = f"validation with hard masks {best['accuracy'] if best else hard:.2f} %"
        return {
            "validation_accuracy": soft,
            "hard_validation_accuracy": hard,
            **{f"soft_{k}": v for k, v in run.job.parts(self.pruner.soft_cost()).items()},
            **self.pruner.structure.cost.exact(mask).to_json(),
            "gates": " ".join(map(str, self.pruner.histogram())),
        }

    def finish(self, run: Run) -> str:
        assert self.pruner is not None
        if run.state.best is not None:
            self.network.load_state_dict(run.state.best["network"])
            self.pruner.load_state_dict(run.state.best["pruner"])
        known = run.state.known
        # Soft and hard on the same weights: their difference is what hardening alone costs.
        known["soft"] = evaluate(self.network, run.test, run.fabric)
        fractions = self.pruner.soft_cost()
        plan = self.pruner.harden(early=True)  # the best epoch of the paper's need not be the last
        known["hard"] = evaluate(self.network, run.test, run.fabric)
        known["soft_cost"] = {k: round(fractions[k] * plan.dense[k], 2) for k in KINDS}
        self.pruner.detach()
        run.charge("prune")
        if not self.paper:
            run.carried = cut_state(self.optimizer, self.network, plan)
        return compacted(run, self.network, plan)


class Transfer(Phase):
    """Stands for pruning where masks were learnt elsewhere: nothing has been trained under them yet."""

    name = "prune"

    def __init__(self, run: Run) -> None:
        self.epochs, self.network, self.total = 0, run.network, 0
        self.optimizer = optimizer_of(run.network, run.recipe.prune_lr, run.recipe)  # nobody steps it

    def score(self, run: Run) -> dict[str, Any]:
        raise AssertionError("masks that are given are not learnt")

    def finish(self, run: Run) -> str:
        job, known = run.job, run.state.known
        assert job.mask is not None
        plan = job.structure.plan(job.mask, job.budget)
        hard = evaluate(chipnet.compact(self.network, plan), run.test, run.fabric)
        known |= {"soft": hard, "hard": hard, "soft_cost": {k: float(plan.compact[k]) for k in KINDS}}
        run.charge("prune")
        return compacted(run, self.network, plan)


def compacted(run: Run, network: nn.Module, plan: Plan) -> str:
    """Cut the network, prove it, write down what is left; the next phase has it."""
    small = chipnet.compact(network, plan)
    example = run.job.example.to(run.fabric.device)
    run.state.known["verify"] = list(chipnet.verify_compact(network, small, plan, (example,)))
    whole = run.job.start.whole if run.job.start else run.job.structure
    shipped = run.job.shipped(plan)
    run.save(PLAN, "the plan", shipped.save)
    masks = Masks.of(whole, torch.tensor(shipped.mask), shipped.budget)
    run.save(MASKS, "the masks", masks.save)
    run.save(MODEL, "compact network, not fine-tuned", lambda path: chipnet.save(small, shipped, path))
    if run.recipe.recalibrate:
        run.train.set_epoch(run.state.passes)
        recalibrate(small, run.train)
        same_buffers(small)
    run.network, run.plan = small, plan
    run.charge("compact")
    return "finetune"


class Finetune(Phase):
    """Fine-tune the compact network; ends with the weights of the epoch that is best on the validation images."""

    name = "finetune"

    def __init__(self, run: Run) -> None:
        recipe = run.recipe
        self.epochs, self.network = recipe.finetune, run.network
        self.optimizer = optimizer_of(self.network, recipe.prune_lr, recipe)
        self.schedule = schedule(recipe, recipe.prune_lr)
        if paper(run) or run.job.mask is not None:
            self.total = recipe.finetune * len(run.train)
        else:
            self.first, self.total = recipe.prune * len(run.train), cycle(run)
        set_state(self.optimizer, self.network, run.carried)

    def begin(self, run: Run) -> None:
        if self.epochs:
            accuracy = evaluate(self.network, run.validation, run.fabric)
            self._keep(run, accuracy)
            assert run.plan is not None
            if run.metrics is not None:
                costs = run.plan.compact.to_json()
                run.metrics.epoch(phase=self.name, epoch=0, validation_accuracy=accuracy, **costs)

    def score(self, run: Run) -> dict[str, Any]:
        accuracy = evaluate(self.network, run.watched(run.validation), run.fabric)
        best = run.state.best
        assert best is not None and run.plan is not None
        if accuracy >= best["accuracy"]:  # of equals the later one, which a falling rate has settled more
            best = self._keep(run, accuracy)
            epochs = f"fine-tuned {run.state.epoch + 1} epochs, validation {accuracy:.2f} %"
            self._save(run, f"compact network, {epochs}")
        run.state.text = f"best validation {best['accuracy']:.2f} %"
        return {"validation_accuracy": accuracy, **run.plan.compact.to_json()}

    def finish(self, run: Run) -> str:
        assert run.plan is not None
        if best := run.state.best:
            self.network.load_state_dict(best["network"])
            self._save(run, f"compact network, best fine-tuned epoch, {run.state.text}")
        run.charge("finetune")
        run.state.known["compact"] = evaluate(self.network, run.test, run.fabric)
        run.charge("evaluate")
        check_counts(self.network, run.job.example.to(run.fabric.device), run.plan)
        return "done"

    def _keep(self, run: Run, accuracy: float) -> dict[str, Any]:
        run.state.best = {"accuracy": accuracy, "network": copy.deepcopy(self.network.state_dict())}
        return run.state.best

    def _save(self, run: Run, what: str) -> None:
        assert run.plan is not None
        shipped = run.job.shipped(run.plan)
        run.save(MODEL, what, lambda path: chipnet.save(self.network, shipped, path))


def paper(run: Run) -> bool:
    """Do the paper's optimisers and schedules train it? Masks that are given are trained as all others' are."""
    return run.job.mask is None and read_method(run.job.request.method)[0].name == "chipnet-paper"


PHASES: dict[str, type[Phase]] = {phase.name: phase for phase in (Train, Prune, Finetune)}


def cycle(run: Run) -> int:
    """Steps of the one schedule that runs through pruning and fine-tuning."""
    return (run.recipe.prune + run.recipe.finetune) * len(run.train)


def check_counts(small: nn.Module, example: Tensor, plan: Plan) -> None:
    """The plan's numbers against the network's own: parameters by `numel`, MACs by PyTorch's counter."""
    was = small.training
    with torch.no_grad(), counting() as counter:
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
