"""The loop behind `chipnet prune`: train, prune softly, harden, compact, fine-tune, evaluate, save.

It is a user of chipnet's public page and nothing more: whatever happens here can happen in a loop of your
own. It stands on Lightning Fabric for devices, processes and precision: every process runs all of it on its
part of every batch, and the first one writes.

A run has two halves. `prepare` reads and checks everything that was asked for, so that no mistake of the
user's shows up after an hour of training; `run` then trains.

The run folder holds, each file written all or nothing:

======================  ===========================================================================
`config.yaml`           every option, as resolved (`chipnet prune --config`)
`dense.safetensors`     weights of the trained dense network (`chipnet.lab.models.load_weights`)
`split.json`            which training images were held out for validation
`plan.json`             what was cut (`chipnet.Plan.load`)
`masks.json`            what was kept, for other networks of this architecture (`chipnet.Masks.load`)
`model.safetensors`     the compact network (`chipnet.load`); first as cut, then the best fine-tuned
`metrics.csv`           one row an epoch, where anything is trained
`metrics.jsonl`         one line every few steps
`checkpoint.pt`         the state, while the run is not finished (`chipnet prune --resume`)
`result.json`           the final numbers; written last, so it says that a run is complete
======================  ===========================================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from chipnet import ChipNetError
from chipnet._util.given import Wanted
from chipnet._util.lock import only_writer
from chipnet.lab import sanity
from chipnet.lab.config import EPOCHS
from chipnet.lab.further import start_row
from chipnet.lab.job import Job, Recipe, Request, example_images, prepare, recipe_for
from chipnet.lab.loop import Loop, State
from chipnet.lab.outcome import close_folder, facts, open_folder
from chipnet.lab.phases import phases_of
from chipnet.lab.shrinking import run_untrained
from chipnet.lab.steps import Objective, SpikeClip, evaluate, recalibrate, train_step
from chipnet.lab.watcher import Interrupted, Silent, Watcher
from chipnet.surgery.optimizer import cut_state, set_state

__all__ = [
    "Interrupted",
    "Job",
    "Objective",
    "Recipe",
    "Request",
    "Silent",
    "SpikeClip",
    "State",
    "Watcher",
    "cut_state",
    "evaluate",
    "example_images",
    "prepare",
    "recalibrate",
    "recipe_for",
    "run",
    "set_state",
    "train_step",
]


JOB = Wanted(Job, "a job that chipnet.lab.train.prepare made", "run(prepare(request)) carries a request out.")


def run(job: Job, watcher: Watcher | None = None, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Train what `prepare` has prepared, or cut and refit it without training; returns what result.json holds.

    Args:
        job: made by `prepare`; its network is trained in place.
        watcher: is told how it goes.
        stop: asked between steps; once it says True, the state is saved and the run stops.

    Returns:
        `model, data, method, seed, budget, dense, soft, hard, compact, verify, warnings, seconds`, and what it
        takes to do it again. Accuracies are in percent, on the test images (None of a network that was never
        trained); costs are counts for one image; times are in seconds.

    Raises:
        Interrupted: `stop` said so, or Ctrl-C. A run that continues from the state ends with the same bits.
        ConfigError: another process writes a run into the folder, or has finished one there.
        ChipNetError: a loss is not finite, the compact network is not what was planned, or a checkpoint can be
            neither written nor read.

    Example:
        >>> job = prepare(Request("resnet8", "digits", {"macs": 0.25}, "runs/example"))  # doctest: +SKIP
        >>> run(job)["compact"]["accuracy"]  # doctest: +SKIP
        97.2
    """
    JOB.check("job", job)
    if job.request.no_train:
        return run_untrained([job], watcher or Silent(), stop)[0]
    with only_writer(job.out) if job.fabric.is_global_zero else contextlib.nullcontext():
        return _run(job, watcher, stop)


def _run(job: Job, watcher: Watcher | None, stop: Callable[[], bool]) -> dict[str, Any]:
    if job.fabric.is_global_zero:
        open_folder(job)
    current = Loop(job, phases_of(job), watcher or Silent(), stop)
    try:
        current.advance()
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(current.came()) from None
    except (RuntimeError, ChipNetError) as error:  # a worker hidden from us may end by the signal we got
        if "DataLoader worker" in str(error) and current.stop():
            raise Interrupted(current.came()) from None
        raise
    finally:
        if current.metrics is not None:
            current.metrics.close()
    result = _result(current)
    current.warn(sanity.lost(result["dense"]["accuracy"], result["compact"]["accuracy"]))
    if job.fabric.is_global_zero:
        close_folder(job, result)
    return result


def _result(loop: Loop) -> dict[str, Any]:
    job, plan, known = loop.job, loop.plan, loop.state.known
    assert plan is not None
    if job.mask is not None and job.request.weights is None:
        # New weights, which nobody trained before the cut.
        known = {**known, "dense": None, "soft": None, "hard": None}
    seconds = {**loop.state.seconds, "total": sum(loop.state.seconds.values())}
    steps = {name: epochs * len(loop.train) for name, epochs in zip(EPOCHS, loop.recipe.epochs, strict=True)}
    masks, weights = job.mask is not None, job.request.weights is not None
    return {
        **facts(job),
        "dense": {"accuracy": known["dense"], **job.dense.to_json()},
        **({"start": start_row(job.start, known["start"], plan.dense.to_json())} if job.start else {}),
        "soft": {"accuracy": known["soft"], **known["soft_cost"]},
        "hard": {"accuracy": known["hard"], **plan.compact.to_json()},
        "compact": {"accuracy": known["compact"], **plan.compact.to_json()},
        "verify": {"max_abs_difference": known["verify"][0], "output_scale": known["verify"][1]},
        "steps": {**steps, "prune": 0} if masks else steps,
        "warnings": sanity.warnings_of(steps, known, weights, masks, job.data),
        "seconds": {k: round(v, 2) for k, v in seconds.items()},
        **({"latency": plan.latency} if plan.latency is not None else {}),
    }
