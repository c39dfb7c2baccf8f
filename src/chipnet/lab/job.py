"""One run of the loop in `chipnet.lab.train`: what was asked for, read and checked here, trained there."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chipnet import Budget, ConfigError, Cost, Masks, Plan, Structure
from chipnet._util.files import write_atomically
from chipnet._util.given import Wanted
from chipnet._util.imports import optional_import
from chipnet._util.lock import RUN, only_writer
from chipnet._util.random import seed_everything
from chipnet._util.text import amount, shell_command
from chipnet.errors import Problems
from chipnet.lab import checkpoint
from chipnet.lab.config import (
    CONFIG,
    EPOCH_STEPS,
    EPOCHS,
    MIN_BATCH,
    Recipe,
    Request,
    check_no_train,
    check_said,
    recipe_for,
)
from chipnet.lab.config_file import started_by
from chipnet.lab.data import Data, LoaderImages, load_data
from chipnet.lab.data.images import count_batches
from chipnet.lab.devices import check_device, launched, torchruns, use_threads
from chipnet.lab.further import Start, run_named
from chipnet.lab.layers import data_options, typed
from chipnet.lab.models import get_model, load_weights
from chipnet.lab.models.weights import find_weights
from chipnet.lab.runs.folder import Run
from chipnet.lab.runs.record import RESULT
from chipnet.lab.sanity import log
from chipnet.methods import read_method

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Job:
    """A request whose every part has been read and found usable. Made by `prepare`, used up by `run`."""

    request: Request
    recipe: Recipe
    budget: Budget
    data: Data
    network: nn.Module
    example: Tensor
    structure: Structure
    fabric: Fabric
    out: Path
    resume: bool = False
    mask: Tensor | None = None
    """The masks of `Request.masks`, as gates."""
    start: Start | None = None
    """The earlier run whose compact network is pruned further, if one is; `budget` is then in counts."""

    @property
    def dense(self) -> Cost:
        """Cost of the dense network, which budgets are counted from: where there was an earlier run, of its."""
        return (self.start.dense_structure if self.start else self.structure).cost.dense

    @property
    def paper(self) -> bool:
        """Do the paper's optimisers and schedules train it? Masks that are given are trained as all others' are."""
        return self.mask is None and read_method(self.request.method)[0].name == "chipnet-paper"

    def parts(self, costs: Mapping[str, float]) -> dict[str, float]:
        """Costs as parts of the network that is pruned, as parts of the dense one."""
        now, dense = self.structure.cost.dense, self.dense
        return {kind: part * now[kind] / max(dense[kind], 1) for kind, part in costs.items()}

    def shipped(self, plan: Plan) -> Plan:
        """A plan for the network that is pruned, as one for the dense network."""
        if self.start is None:
            return plan
        both = self.start.plan(self.structure, plan.mask, Budget.parse(self.request.budget))
        return dataclasses.replace(both, latency=plan.latency)


REQUEST = Wanted(
    Request, "a chipnet.lab.train.Request", "Request(model, data, budget, out) says what a run is."
)


def prepare(request: Request, resume: bool = False, problems: Problems | None = None) -> Job:
    """Read and check all that a run needs: data, network, weights, budget, device, folder. Trains nothing.

    The folder is made last: what is refused leaves none.

    Args:
        request: what was asked for.
        resume: `run` will continue the run that was stopped or killed in the request's folder.
        problems: what is known to be wrong with it already; told together with what is found.

    Raises:
        ChipNetError: what cannot be used, with what to do about it. A `BudgetError` for the budget, a
            `CaptureError` for the network, a `ConfigError` for the rest, or for several options at once.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prepare(Request("resnet8", "digits", "macs=1.5", folder))
        Traceback (most recent call last):
        ...
        chipnet.errors.BudgetError: cannot use the budget 'macs=1.5':
          - macs=1.5: above 1; a fraction is what remains, 0.25 keeps a quarter; for an absolute count ...
    """
    REQUEST.check("request", request)
    if resume and request.out:
        check_unused(_run_folder(os.fspath(request.out)), request.overwrite, resume)
    job = read_job(request, resume, problems)
    make_folder(job.out)
    return job


def read_job(request: Request, resume: bool = False, problems: Problems | None = None) -> Job:
    """As `prepare`, but for the folder, which is not made."""
    problems = problems or Problems()
    with problems.collected():
        check_said(request)
    request = typed(request, problems)
    recipe = request.recipe or recipe_for(request.data)
    with problems.collected():
        recipe = check_request(request)
    if request.out:
        with problems.collected("out"):
            out = _free_folder(request, resume)
    if problems.found:  # what else is wrong, on this process alone
        _parts(request, recipe, problems)
    problems.tell()
    request = dataclasses.replace(request, threads=use_threads(request.threads))
    fabric = launched(request)
    out = fabric.broadcast(out)  # where the first process found a name that was free
    processes = fabric.world_size
    if recipe.batch_size < 2 * processes:
        raise ConfigError(
            f"a batch of {recipe.batch_size} is too small for {amount(processes, 'process')}. Give --batch-size "
            f"{2 * processes} or more."
        )
    data, network, run = _parts(request, recipe, problems, fabric.global_rank, processes)
    problems.tell()
    assert data is not None and network is not None
    if request.weights is not None:
        load_weights(network, request.weights)
    if request.sync_batch_norm:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    example = example_images(data)
    structure = structure_for(request, network, example)
    if "latency" in Budget.parse(request.budget).kinds:
        if processes > 1:
            raise ConfigError(
                "a latency budget is measured, and no two processes measure the same: prune on one device "
                "(--devices 1), or by macs."
            )
        structure.time(network)
    start = Start.of(run, example) if run else None
    budget, mask = _goal(request, structure, network, start)
    _check_logits(network, example, request.model, data.num_classes)
    unfitted, recipe = recipe, _fitted(recipe, request, data, processes)
    _tell(data, recipe if request.no_train else unfitted, recipe)
    job = Job(request, recipe, budget, data, network, example, structure, fabric, out, resume, mask, start)
    return dataclasses.replace(job, request=_written_out(job))


def _parts(
    request: Request, recipe: Recipe, problems: Problems, rank: int = 0, processes: int = 1
) -> tuple[Data | None, nn.Module | None, Run | None]:
    """Data, network and the run that it is of, as far as they can be had."""
    data = network = run = None
    seed = request.seed if 0 <= request.seed < 2**63 else 0
    folder = run_named(request.model)
    if folder:
        with problems.collected("model"):
            run = Run.open(folder, request.trust)
    if request.data:
        with problems.collected("data"):
            data = load_data(
                request.data,
                request.data_dir,
                seed=seed,
                limit=recipe.limit,
                limit_test=recipe.limit_test,
                **data_options(request),
                batch_size=recipe.batch_size // processes,
                part=(rank, processes),
            )
            if not request.skip_broken:
                data.check_files()
            if run and request.mean is request.std is None:
                data = run.seen(data)
            _check_batch(data, _fitted(recipe, request, data, processes).batch_size, processes)
    seed_everything(seed)
    with problems.collected("model"):
        if run:
            if data is not None:
                run.check_images(data)
            network = run.compact().train()
        elif request.model and not folder:
            network = get_model(
                request.model, *((data.num_classes, data.in_channels) if data is not None else ())
            )
    return data, network, run


def structure_for(request: Request, network: nn.Module, example: Tensor) -> Structure:
    """The structure of a network with the options of a request."""
    return Structure(
        network,
        example,
        realisation=request.realisation,
        heads=request.heads,
        ignore=request.ignore,
        only=request.only,
        outputs=request.outputs,
        min_channels=request.min_channels,
        round_to=request.round_to,
    )


def _goal(
    request: Request, structure: Structure, network: nn.Module, start: Start | None
) -> tuple[Budget, Tensor | None]:
    """The budget, which can be met, and the masks that are given in its place."""
    budget = Budget.parse(request.budget)
    if request.masks is not None:
        return budget, Masks.load(request.masks).transfer(structure)
    if start:
        budget = start.budget(budget, structure)
    structure.check(budget)
    if start:
        start.check(structure, network, budget)
    return budget, None


def _tell(data: Data, unfitted: Recipe, recipe: Recipe) -> None:
    """What has been decided for the user."""
    for note in (*data.notes, data.normalisation()):
        log.info("%s", note)
    if recipe != unfitted:
        log.info(
            "recipe for these images: batches of %d, epochs %s, peak rates %.3g in training and %.3g in pruning; "
            "what is given (--epochs, --batch-size, --lr) stays as it is",
            recipe.batch_size,
            ", ".join(f"{n} {e}" for n, e in zip(EPOCHS, recipe.epochs, strict=True)),
            recipe.train_lr,
            recipe.prune_lr,
        )


def _written_out(job: Job) -> Request:
    """A job's request with what was left to this machine, so that config.yaml repeats the run on another one."""
    request, fabric = job.request, job.fabric
    devices = getattr(fabric.strategy, "num_processes", 1)
    values: dict[str, Any] = {
        "recipe": job.recipe,
        "out": job.out,
        "accelerator": fabric.device.type,
        "devices": devices,
        "num_nodes": fabric.world_size // devices,
        "budget": str(Budget.parse(request.budget)),
    }
    if request.precision == "32":
        values["precision"] = "32-true"
    if job.start is not None:
        values["model"] = str(job.start.run.folder)  # from wherever it goes on
    if job.resume and (command := started_by(job.out)) is not None:
        values["command"] = command
    return dataclasses.replace(request, **values)


def check_request(request: Request) -> Recipe:
    """What can be said of a request before anything is loaded; its recipe.

    Raises:
        ChipNetError: as `prepare`.
    """
    problems = Problems()
    request = typed(request, problems)
    if request.budget:
        with problems.collected("budget"):
            Budget.parse(request.budget)
    if request.masks is None:
        with problems.collected("method"):
            read_method(request.method)
    recipe = request.recipe or recipe_for(request.data)
    folder = run_named(request.model)
    for name in ("weights", "masks"):
        if folder and getattr(request, name) is not None:
            problems.add(
                f"--model {request.model} is a run, which has {name} of its own: leave out --{name}."
            )
    if folder:
        recipe = recipe.changed({"train": 0})
    elif request.weights is not None:
        recipe = recipe.changed({"train": 0})
        with problems.collected("weights"):
            find_weights(request.weights)
    elif request.no_train:
        if request.model and ":" not in request.model:  # a callable may return a network that is trained
            problems.add(
                f"--no-train cuts a network that is trained already, and {request.model} begins with new weights: "
                "give --weights FILE, or as --model the folder of a finished run."
            )
    elif recipe.train == 0 and request.masks is None:
        problems.add(
            "there is nothing to prune: training is given 0 epochs and there are no weights. Give "
            "--weights FILE or at least one epoch of training."
        )
    check_no_train(request, problems)
    if request.no_train and torchruns() > 1:
        problems.add("--no-train is for one process: start it without torchrun.")
    if request.tensorboard:
        with problems.collected():
            optional_import(
                "torch.utils.tensorboard",
                needed_for="tensorboard: true (--tensorboard)",
                install="tensorboard",
            )
    check_device(request, problems)
    problems.tell()
    return recipe


def example_images(data: Data) -> Tensor:
    """One image of noise, as the networks for this data set see images: float32 [1, C, H, W]."""
    shape = (1, data.in_channels, data.image_size, data.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _fitted(recipe: Recipe, request: Request, data: Data, processes: int) -> Recipe:
    """The recipe with what it only suggests fitted to the data."""
    images = data.train
    trained = recipe.train == 0 and request.masks is None  # masks take a whole network apart
    if isinstance(images, LoaderImages):
        steps = images.steps or 1
        return recipe.fitted(images.batch_size * processes, lambda size: steps, trained)
    most = max(len(images) // EPOCH_STEPS, MIN_BATCH * processes)
    size = min(recipe.batch_size, 2 ** int(math.log2(most)), len(images))
    return recipe.fitted(size, lambda n: count_batches(len(images), n, True, (0, processes)), trained)


def _check_batch(data: Data, batch_size: int, processes: int) -> None:
    if not isinstance(data.train, LoaderImages):
        if batch_size > len(data.train):
            raise ConfigError(
                f"a batch of {batch_size} is more than the {amount(len(data.train), 'training image')}. "
                "Give a smaller --batch-size."
            )
    elif (given := data.train.batch_size * processes) != batch_size:
        each = f" on each of {amount(processes, 'process')}" if processes > 1 else ""
        raise ConfigError(
            f"{data.train.name} gives batches of {amount(data.train.batch_size, 'image')}{each}, and the run's are "
            f"{batch_size}, which its learning rates are for. Give --batch-size {given}, or let the callable take "
            "batch_size."
        )


def _run_folder(out: str) -> Path:
    """The run folder's path, which the system can at least look for."""
    try:
        path = Path(out).expanduser()
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
    except (OSError, ValueError, RuntimeError) as error:  # too long or closed; a NUL in it; ~nobody
        raise _unwritable(out, error) from error
    return path


def _free_folder(request: Request, resume: bool) -> Path:
    """The run folder, which nobody is writing to; what is in it may be replaced."""
    out = _run_folder(os.fspath(request.out))
    if (out / RUN).exists():
        with only_writer(out):  # while another process is, this says so before anything is loaded
            pass
    if not resume:
        check_unused(out, request.overwrite)
    return out


def check_unused(out: Path, overwrite: bool, resume: bool = False) -> None:
    """Whether a run may be written into a folder.

    Raises:
        ConfigError: a finished run is there, or one that was stopped (unless it is to ``resume``), or another
            process writes one now.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"the output folder {out} is a file. Give a folder.")
    if resume and (out / RESULT).exists():
        raise ConfigError(
            f"the run in {out} is finished ({RESULT}): there is nothing to continue. To train it again: "
            f"{shell_command('prune', '--config', out / CONFIG, '--overwrite')}"
        )
    if resume:
        return
    if (out / RESULT).exists() and not overwrite:
        raise ConfigError(
            f"{out} holds a finished run ({RESULT}). Give another --out, or --overwrite to replace it."
        )
    if checkpoint.there(out) and not overwrite:
        raise ConfigError(
            f"{out} holds a run that was stopped. Continue it with: {shell_command('prune', '--resume', out)}. Or "
            "give another --out, or --overwrite to replace it."
        )


def make_folder(out: Path) -> None:
    """Make the run folder and write to it once.

    Raises:
        ConfigError: it cannot be made or written to; what was made on the way is gone again.
    """
    new = [path for path in (out, *out.parents) if not os.path.lexists(path)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise _unwritable(str(out), error) from error


def _unwritable(out: str, error: Exception) -> ConfigError:
    why = getattr(error, "strerror", None) or error
    name = out if len(out) <= 100 else f"{out[:60]}...{out[-20:]}"
    name = name if name.isprintable() else repr(name)
    return ConfigError(f"cannot write to the output folder {name} ({why}). Give another --out.")


def _check_logits(network: nn.Module, example: Tensor, name: str, classes: int) -> None:
    was = network.training
    with torch.no_grad():
        out = network.eval()(example)
    network.train(was)
    wanted = (1, classes)
    if not isinstance(out, Tensor) or tuple(out.shape) != wanted:
        got = f"a tensor {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ConfigError(
            f"for {list(example.shape)} images {name} returns {got}; this loop needs logits {list(wanted)}. "
            "Give the network an argument num_classes, or train in a loop of your own."
        )
