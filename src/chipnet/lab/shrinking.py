"""A run without training: widths that are measured, an exact cut, and layers refitted to the trained network.

The library's `chipnet.shrink` does it; here are what a run adds: training images in, accuracies and a run folder
out. Labels are read for accuracies alone. Several budgets are one family: one measurement, and each network within
the one before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import chipnet
from chipnet import Budget, Structure
from chipnet._util.lock import only_writer
from chipnet._util.random import stream_seed
from chipnet._util.text import amount
from chipnet.lab import sanity
from chipnet.lab.config import Request
from chipnet.lab.data import LoaderImages
from chipnet.lab.further import start_row
from chipnet.lab.job import Job, check_unused, make_folder
from chipnet.lab.outcome import close_folder, facts, masks_of, open_folder
from chipnet.lab.phases import check_counts
from chipnet.lab.runs.record import DENSE, MASKS, MODEL, PLAN, SHRINK
from chipnet.lab.val import measure
from chipnet.lab.watcher import Interrupted, Watcher
from chipnet.surgery.storage import save_weights
from chipnet.widths.shrink import Shrunk

AT_ONCE = 64
"""Training images in a forward."""


def family(job: Job, requests: Sequence[Request]) -> list[Job]:
    """Jobs for several budgets of one network, from the largest to the smallest; makes their folders.

    Raises:
        ConfigError: a folder holds a run, or cannot be written to.
    """
    jobs = []
    for request in requests:
        out, budget = Path(request.out), Budget.parse(request.budget)
        check_unused(out, request.overwrite)
        request = dataclasses.replace(request, budget=str(budget))
        if job.start:
            budget = job.start.budget(budget, job.structure)
        jobs.append(dataclasses.replace(job, request=request, budget=budget, out=out, resume=False))
    for one in jobs:
        make_folder(one.out)
    return sorted(jobs, key=lambda one: -size_of(one.structure, one.budget))


def size_of(structure: Structure, budget: Budget) -> int:
    """A number by which budgets of a family have an order: they differ in one kind."""
    return sum(structure.limits(budget).values())


def run_untrained(jobs: Sequence[Job], watcher: Watcher, stop: Callable[[], bool]) -> list[dict[str, Any]]:
    """Cut and refit the network of all ``jobs``, each within the one before it; returns what result.json of each
    holds.

    Raises:
        Interrupted: ``stop`` said so; no result is written.
        ConfigError: another process writes a run into a folder, or has finished one there.
    """
    first = jobs[0]
    with contextlib.ExitStack() as held:
        for job in jobs:
            held.enter_context(only_writer(job.out))
            open_folder(job)
        told = _Told(watcher, stop)
        trained = _Trained(first)
        known = trained.dense()
        told.charge("evaluate")
        told.begin("curves", sum(len(gates) > 0 for gates in first.structure.analysis.site_gates))
        images = training_images(first)
        found = chipnet.shrink_family(
            trained.network,
            images,
            [job.budget for job in jobs],
            images=first.request.images,
            distance="kl",
            example_inputs=first.structure,
            progress=told,
        )
        results = []
        for job, shrunk in zip(jobs, found, strict=True):
            result = trained.result(job, shrunk, known, sum(map(len, images)))
            told.charge("evaluate")
            seconds = {**told.seconds, "total": sum(told.seconds.values())}
            result["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
            close_folder(job, result)
            results.append(result)
    return results


def training_images(job: Job) -> list[Tensor]:
    """Training images, not augmented, the first of an order that only the seed decides: files are sorted by class.
    Of a loader of the user's own: its first batches, as they come."""
    data, request = job.data, job.request
    if not isinstance(data.train, LoaderImages):
        generator = torch.Generator().manual_seed(stream_seed(request.seed))
        order = torch.randperm(len(data.train), generator=generator)[: request.images]
        data = dataclasses.replace(data, train=data.train.subset(order))
    device, workers = job.fabric.device, request.workers
    found: list[Tensor] = []
    left = request.images
    for images, _ in data.loader("train", AT_ONCE, seed=request.seed, device=device, workers=workers):
        found.append(images[:left])
        left -= len(images)
        if left <= 0:
            break
    return found


class _Told:
    """Tells a watcher how far it is, stops where that is asked for, and counts seconds by part."""

    def __init__(self, watcher: Watcher, stop: Callable[[], bool]) -> None:
        self.watcher, self.stop = watcher, stop
        self.seconds: dict[str, float] = {}
        self.clock = time.perf_counter()
        self.part = ""

    def __call__(self, part: str, done: int, of: int) -> None:
        if self.stop():
            raise Interrupted(
                f"stopped in {part}, {done} of {of} done; there is no result, and the same command starts again"
            )
        if not self.part:
            self.begin(part, of)
        spent = time.perf_counter() - self.clock
        self.watcher.tick(f"{timedelta(seconds=round(spent / done * (of - done)))} left")
        self.watcher.advance(1)
        if done == of:
            self.watcher.end(f"{amount(of, 'site' if part == 'curves' else 'layer')}, {spent:.0f} s")
            self.charge(part)

    def begin(self, part: str, of: int) -> None:
        self.part = part
        self.watcher.start(part, of)

    def charge(self, part: str) -> None:
        """Book the time since the last call as spent on ``part``, which is over."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.clock
        self.clock, self.part = now, ""


class _Trained:
    """The trained network of some jobs, on their device, and the images that it is measured on."""

    def __init__(self, job: Job) -> None:
        self.job, self.device, self.doubt = job, job.fabric.device, ""
        self.network = job.network.to(self.device).eval()
        self.trained = job.start.dense.to(self.device) if job.start else self.network
        workers = job.request.workers
        self.test = job.data.loader("test", job.recipe.batch_size, device=self.device, workers=workers)

    def dense(self) -> dict[str, dict[str, Any]]:
        """How good the dense network is, and the one that a run before left."""
        job, data = self.job, self.job.data
        known = {"dense": self.measured(self.trained)}
        trained = known["dense"]["accuracy"]
        if job.start is not None:
            known["start"] = self.measured(self.network)
            trained = known["start"]["accuracy"]
            if job.start.run.result["dense"]["accuracy"] is None:  # it was never trained
                known["dense"] = {"accuracy": None, "loss": None}
        sanity.log.info("before the cut: %.2f %% on the test images", trained)
        self.doubt = sanity.guessing(trained, data.num_classes, data.mean, data.std)
        if self.doubt:
            sanity.log.warning("%s", self.doubt)
        return known

    def measured(self, network: nn.Module) -> dict[str, Any]:
        found = measure(network, self.test)
        return {"accuracy": found["accuracy"], "loss": _finite(found["loss"])}

    def result(
        self, job: Job, shrunk: Shrunk, known: Mapping[str, dict[str, Any]], images: int
    ) -> dict[str, Any]:
        """Write one network and what goes with it; what its result.json holds."""
        plan, example = shrunk.plan, job.example.to(self.device)
        cut = chipnet.compact(self.network, plan, verify=False)
        difference, scale = chipnet.verify_compact(self.network, cut, plan, (example,))
        hard, compact = self.measured(cut), self.measured(shrunk.model)
        check_counts(shrunk.model, example, plan)
        shipped, costs = job.shipped(plan), plan.compact.to_json()
        shipped.save(job.out / PLAN)
        masks_of(job, shipped).save(job.out / MASKS)
        save_weights(self.trained, job.out / DENSE)
        chipnet.save(shrunk.model, shipped, job.out / MODEL)
        rows = {"dense": {**known["dense"], **job.dense.to_json()}}
        if job.start is not None:
            row = start_row(job.start, known["start"]["accuracy"], plan.dense.to_json())
            rows["start"] = {**row, "loss": known["start"]["loss"]}
        lost = sanity.lost(known["dense"]["accuracy"], compact["accuracy"], trained=False)
        if lost:
            sanity.log.warning("%s", lost)
        layers = [
            {"layer": one.layer, "before": _finite(one.before), "after": _finite(one.after)}
            for one in shrunk.layers
        ]
        errors = {"cut": _finite(shrunk.cut), "refitted": _finite(shrunk.refitted)}
        return {
            **facts(job),
            **rows,
            "hard": {**hard, **costs},
            "compact": {**compact, **costs},
            "verify": {"max_abs_difference": difference, "output_scale": scale},
            SHRINK: {"images": images, **errors, "layers": layers},
            "warnings": [doubt for doubt in (self.doubt, lost) if doubt],
            **({"latency": plan.latency} if plan.latency is not None else {}),
        }


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
