"""What every run does with its folder, whether it trains or not: opened at its start, its result written last."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import torch

import chipnet
from chipnet import Budget, Masks, Plan
from chipnet._util.files import write_atomically, write_json
from chipnet._util.text import amount
from chipnet.lab import checkpoint
from chipnet.lab.config import CONFIG, READING
from chipnet.lab.config_file import write_config
from chipnet.lab.job import Job, check_unused
from chipnet.lab.runs.record import (
    CSV,
    JSONL,
    MASKS,
    MODEL,
    PLAN,
    REPORT,
    RESULT,
    SHRINK,
    SPLIT,
    file_sums,
)

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def open_folder(job: Job) -> None:
    """Write how the run was asked for. Files of an earlier run go, but for its dense weights: those stay until ours
    come."""
    check_unused(job.out, job.request.overwrite, job.resume)  # another run may have ended here since
    if job.resume:
        return
    for name in (RESULT, PLAN, MASKS, SPLIT, MODEL, REPORT, CSV, JSONL):
        (job.out / name).unlink(missing_ok=True)
    checkpoint.remove(job.out)
    write_config(job.out / CONFIG, job.request)
    write_atomically(job.out / SPLIT, json.dumps(job.data.split()).encode())


def close_folder(job: Job, result: dict[str, Any]) -> None:
    """Write the result: the run is complete."""
    result["files"] = file_sums(job.out)
    write_json(job.out / RESULT, result)
    checkpoint.remove(job.out)


def masks_of(job: Job, shipped: Plan) -> Masks:
    """What a plan for the dense network keeps of it."""
    structure = job.start.dense_structure if job.start else job.structure
    return Masks.of(structure, torch.tensor(shipped.mask), shipped.budget)


def facts(job: Job) -> dict[str, Any]:
    """What result.json says of a run whatever came out of it."""
    request = job.request
    recipe = dataclasses.asdict(job.recipe)
    return {
        "model": job.start.run.result["model"] if job.start else request.model,
        "data": request.data,
        "input": job.data.to_json() | {"data_dir": request.data_dir and os.path.abspath(request.data_dir)},
        "method": SHRINK if request.no_train else request.method,
        "seed": request.seed,
        "budget": {k: v if isinstance(v, int) else float(v) for k, v in Budget.parse(request.budget).targets},
        "limits": job.structure.limits(job.budget),
        "realisation": request.realisation,
        "images": job.data.counts(),
        "recipe": {name: recipe[name] for name in READING} if request.no_train else recipe,
        "environment": _environment(job.fabric),
        "command": request.command,
        **({"masks": request.masks} if request.masks is not None else {}),
    }


def _environment(fabric: Fabric) -> dict[str, Any]:
    device = fabric.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "chipnet": chipnet.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}, {amount(os.cpu_count() or 1, 'core')}",
        "device": f"{device.type}: {name}",
        "processes": fabric.world_size,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
