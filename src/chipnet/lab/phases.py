"""What the phases of a run do: train the dense network, prune it softly, fine-tune what is left.

A phase has an optimiser, a schedule and perhaps a pruner; it scores every epoch, and its end leaves files and
the network of the next phase. It is built from the run's state alone, fresh or read from a checkpoint; how it
is stepped and saved is `chipnet.lab.loop`'s business.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import chipnet
from chipnet import ChipNetError, Plan, Pruner
from chipnet._util.distributed import same_buffers
from chipnet._util.text import amount
from chipnet.analysis.kinds import KINDS
from chipnet.lab import sanity
from chipnet.lab.config import Recipe
from chipnet.lab.job import Job
from chipnet.lab.loop import Loop, Phase
from chipnet.lab.outcome import masks_of
from chipnet.lab.runs.record import DENSE, MASKS, MODEL, PLAN
from chipnet.lab.steps import evaluate, recalibrate
from chipnet.methods.schedules import Constant, Cosine, OneCycle, Schedule, Steps
from chipnet.program.counting import counting
from chipnet.surgery.optimizer import cut_state, set_state
from chipnet.surgery.storage import save_weights


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

    def __init__(self, loop: Loop) -> None:
        recipe = loop.recipe
        self.epochs, self.network = recipe.train, loop.network
        self.optimizer = optimizer_of(loop.network, recipe.train_lr, recipe)
        self.schedule = schedule(recipe, recipe.train_lr)
        self.total = recipe.train * len(loop.train)

    def score(self, loop: Loop) -> dict[str, Any]:
        accuracy = evaluate(self.network, loop.watched(loop.validation), loop.fabric)
        loop.state.text = f"validation {accuracy:.2f} %"
        return {"validation_accuracy": accuracy, **loop.job.dense.to_json()}

    def finish(self, loop: Loop) -> str:
        start, known = loop.job.start, loop.state.known
        unpruned = start.dense.to(loop.fabric.device) if start else self.network
        loop.save(DENSE, "dense weights", lambda path: save_weights(unpruned, path))
        loop.charge("train")
        dense = known["dense"] = evaluate(unpruned, loop.test, loop.fabric)
        if start is not None:
            dense = known["start"] = evaluate(self.network, loop.test, loop.fabric)
            if start.run.result["dense"]["accuracy"] is None:  # it was never trained
                known["dense"] = None
        if start is not None or loop.job.request.weights is not None:
            held = evaluate(self.network, loop.validation, loop.fabric)
            loop.say(
                f"before pruning: {dense:.2f} % on the test images, {held:.2f} % on the validation images"
            )
            data = loop.job.data
            loop.warn(sanity.guessing(dense, data.num_classes, data.mean, data.std))
        loop.charge("evaluate")
        return "prune"


class Prune(Phase):
    """Soft pruning, hardening, compaction."""

    name = "prune"

    def __init__(self, loop: Loop) -> None:
        recipe, job = loop.recipe, loop.job
        self.epochs, self.network = recipe.prune, loop.network
        steps = recipe.prune * len(loop.train)
        self.paper = loop.job.paper
        if self.paper:
            self.optimizer = torch.optim.AdamW(
                self.network.parameters(), lr=recipe.adamw_lr, weight_decay=recipe.adamw_weight_decay
            )
            self.schedule, self.total = Constant(recipe.adamw_lr), steps
        else:
            self.optimizer = optimizer_of(self.network, recipe.prune_lr, recipe)
            self.schedule, self.total = schedule(recipe, recipe.prune_lr), cycle(loop)
        self.pruner = Pruner(
            self.network,
            job.structure,
            job.budget,
            steps=steps,
            method=job.request.method,
            seed=job.request.seed,
        )

    def score(self, loop: Loop) -> dict[str, Any]:
        assert self.pruner is not None
        soft = evaluate(self.network, loop.watched(loop.validation), loop.fabric)
        with self.pruner.hardened() as mask:
            hard = evaluate(self.network, loop.watched(loop.validation), loop.fabric)
        best = loop.state.best
        if self.paper and (best is None or hard >= best["accuracy"]):
            both = {"network": self.network.state_dict(), "pruner": self.pruner.state_dict()}
            best = loop.state.best = {"accuracy": hard, **copy.deepcopy(both)}
        loop.state.text = f"validation with hard masks {best['accuracy'] if best else hard:.2f} %"
        return {
            "validation_accuracy": soft,
            "hard_validation_accuracy": hard,
            **{f"soft_{k}": v for k, v in loop.job.parts(self.pruner.soft_cost()).items()},
            **self.pruner.structure.cost.exact(mask).to_json(),
            "gates": " ".join(map(str, self.pruner.histogram())),
        }

    def finish(self, loop: Loop) -> str:
        assert self.pruner is not None
        if loop.state.best is not None:
            self.network.load_state_dict(loop.state.best["network"])
            self.pruner.load_state_dict(loop.state.best["pruner"])
        known = loop.state.known
        # Soft and hard on the same weights: their difference is what hardening alone costs.
        known["soft"] = evaluate(self.network, loop.test, loop.fabric)
        fractions = self.pruner.soft_cost()
        plan = self.pruner.harden(early=True)  # the best epoch of the paper's need not be the last
        known["hard"] = evaluate(self.network, loop.test, loop.fabric)
        known["soft_cost"] = {k: round(fractions[k] * plan.dense[k], 2) for k in KINDS}
        self.pruner.detach()
        loop.charge("prune")
        if not self.paper:
            loop.carried = cut_state(self.optimizer, self.network, plan)
        return compacted(loop, self.network, plan)


class Transfer(Phase):
    """Stands for pruning where masks were learnt elsewhere: nothing has been trained under them yet."""

    name = "prune"

    def __init__(self, loop: Loop) -> None:
        self.epochs, self.network, self.total = 0, loop.network, 0
        self.optimizer = optimizer_of(loop.network, loop.recipe.prune_lr, loop.recipe)  # nobody steps it

    def score(self, loop: Loop) -> dict[str, Any]:
        raise AssertionError("masks that are given are not learnt")

    def finish(self, loop: Loop) -> str:
        job, known = loop.job, loop.state.known
        assert job.mask is not None
        plan = job.structure.plan(job.mask, job.budget)
        hard = evaluate(chipnet.compact(self.network, plan), loop.test, loop.fabric)
        known |= {"soft": hard, "hard": hard, "soft_cost": {k: float(plan.compact[k]) for k in KINDS}}
        loop.charge("prune")
        return compacted(loop, self.network, plan)


def compacted(loop: Loop, network: nn.Module, plan: Plan) -> str:
    """Cut the network, prove it, write down what is left; the next phase has it."""
    small = chipnet.compact(network, plan)
    example = loop.job.example.to(loop.fabric.device)
    loop.state.known["verify"] = list(chipnet.verify_compact(network, small, plan, (example,)))
    shipped = loop.job.shipped(plan)
    loop.save(PLAN, "the plan", shipped.save)
    loop.save(MASKS, "the masks", masks_of(loop.job, shipped).save)
    loop.save(MODEL, "compact network, not fine-tuned", lambda path: chipnet.save(small, shipped, path))
    if loop.recipe.recalibrate:
        loop.train.set_epoch(loop.state.passes)
        recalibrate(small, loop.train)
        same_buffers(small)
    loop.network, loop.plan = small, plan
    loop.charge("compact")
    return "finetune"


class Finetune(Phase):
    """Fine-tune the compact network; ends with the weights of the epoch that is best on the validation images."""

    name = "finetune"

    def __init__(self, loop: Loop) -> None:
        recipe = loop.recipe
        self.epochs, self.network = recipe.finetune, loop.network
        self.optimizer = optimizer_of(self.network, recipe.prune_lr, recipe)
        self.schedule = schedule(recipe, recipe.prune_lr)
        if loop.job.paper or loop.job.mask is not None:
            self.total = recipe.finetune * len(loop.train)
        else:
            self.first, self.total = recipe.prune * len(loop.train), cycle(loop)
        set_state(self.optimizer, self.network, loop.carried)

    def begin(self, loop: Loop) -> None:
        if self.epochs:
            accuracy = evaluate(self.network, loop.validation, loop.fabric)
            self._keep(loop, accuracy)
            assert loop.plan is not None
            if loop.metrics is not None:
                costs = loop.plan.compact.to_json()
                loop.metrics.epoch(phase=self.name, epoch=0, validation_accuracy=accuracy, **costs)

    def score(self, loop: Loop) -> dict[str, Any]:
        accuracy = evaluate(self.network, loop.watched(loop.validation), loop.fabric)
        best = loop.state.best
        assert best is not None and loop.plan is not None
        if accuracy >= best["accuracy"]:  # of equals the later one, which a falling rate has settled more
            best = self._keep(loop, accuracy)
            epochs = f"fine-tuned {amount(loop.state.epoch + 1, 'epoch')}, validation {accuracy:.2f} %"
            self._save(loop, f"compact network, {epochs}")
        loop.state.text = f"best validation {best['accuracy']:.2f} %"
        return {"validation_accuracy": accuracy, **loop.plan.compact.to_json()}

    def finish(self, loop: Loop) -> str:
        assert loop.plan is not None
        if best := loop.state.best:
            self.network.load_state_dict(best["network"])
            self._save(loop, f"compact network, best fine-tuned epoch, {loop.state.text}")
        loop.charge("finetune")
        loop.state.known["compact"] = evaluate(self.network, loop.test, loop.fabric)
        loop.charge("evaluate")
        check_counts(self.network, loop.job.example.to(loop.fabric.device), loop.plan)
        return "done"

    def _keep(self, loop: Loop, accuracy: float) -> dict[str, Any]:
        loop.state.best = {"accuracy": accuracy, "network": copy.deepcopy(self.network.state_dict())}
        return loop.state.best

    def _save(self, loop: Loop, what: str) -> None:
        assert loop.plan is not None
        shipped = loop.job.shipped(loop.plan)
        loop.save(MODEL, what, lambda path: chipnet.save(self.network, shipped, path))


PHASES: dict[str, type[Phase]] = {phase.name: phase for phase in (Train, Prune, Finetune)}
"""The phases by their names, in their order."""


def phases_of(job: Job) -> dict[str, type[Phase]]:
    """The phases of a run; masks that are given take the place of pruning."""
    return PHASES if job.mask is None else PHASES | {Transfer.name: Transfer}


def cycle(loop: Loop) -> int:
    """Steps of the one schedule that runs through pruning and fine-tuning."""
    return (loop.recipe.prune + loop.recipe.finetune) * len(loop.train)


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
