"""One run of the loop in `chipnet.train`, as asked for: read and checked here, trained there."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from chipnet import Budget, ConfigError, Cost, Structure
from chipnet._io import write_atomically
from chipnet.data import Data, load_data
from chipnet.methods import METHODS
from chipnet.models import get_model, load_weights

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
RESULT = "result.json"
"""Written last: where it is, a run was finished."""


@dataclass(frozen=True)
class Recipe:
    """How to train. The same for every method and network; only data sets differ, in length and batch size.

    Dense training is SGD under one one-cycle schedule. Soft pruning and fine-tuning are SGD under a second
    one that runs through both: the cut happens on its way down, and momentum goes through the cut. The method
    `chipnet-paper` prunes with AdamW at a constant rate, keeps its best epoch, and has a one-cycle schedule
    for fine-tuning alone.

    Attributes:
        train, prune, finetune: epochs of each phase.
        batch_size: images per step.
        train_lr: peak learning rate of dense training, at `batch_size`.
        prune_lr: peak learning rate of pruning and fine-tuning, at `batch_size`.
        warmup: part of a schedule in which the rate rises to its peak.
        momentum, nesterov, weight_decay: of SGD.
        label_smoothing: of the cross-entropy.
        adamw_lr, adamw_weight_decay: of the soft pruning of `chipnet-paper`.
        recalibrate: after the cut, measure the batch norms' statistics anew before fine-tuning.
        limit: keep only so many training images; None: all.
        limit_test: keep only so many test images; None: all.

    Raises:
        ConfigError: a value that cannot be used.

    Example:
        >>> Recipe(train=20, prune=15, finetune=10).epochs
        (20, 15, 10)
    """

    train: int
    prune: int
    finetune: int
    batch_size: int = 128
    train_lr: float = 0.1
    prune_lr: float = 0.1
    warmup: float = 0.2
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    adamw_lr: float = 1e-3
    adamw_weight_decay: float = 1e-3
    recalibrate: bool = False
    limit: int | None = None
    limit_test: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"{n} must be at least {least}, not {getattr(self, n)}"
            for n, least in (("train", 0), ("prune", 1), ("finetune", 0), ("batch_size", 2))
            if getattr(self, n) < least
        ]
        wrong += [
            f"{n} must be above 0 and finite, not {getattr(self, n)}"
            for n in ("train_lr", "prune_lr", "adamw_lr")
            if not 0 < getattr(self, n) < math.inf
        ]
        if wrong:
            raise ConfigError("; ".join(wrong) + ".")

    @property
    def epochs(self) -> tuple[int, int, int]:
        """Epochs of training, pruning and fine-tuning."""
        return self.train, self.prune, self.finetune


_GREY = Recipe(30, 20, 20)
_SMALL = Recipe(100, 20, 60)
_RECIPES: dict[str, Recipe] = {
    "digits": Recipe(20, 15, 10, batch_size=32, train_lr=0.05, prune_lr=0.05),
    "mnist": dataclasses.replace(_GREY, train=10, prune=10, finetune=10),
    "fashion-mnist": _GREY,
    "svhn": dataclasses.replace(_SMALL, train=40, finetune=40),
}
_QUICK: dict[str, dict[str, Any]] = {
    "digits": {"train": 10, "prune": 8, "finetune": 5},
    "image-folder": {"train": 2, "prune": 2, "finetune": 2, "limit": 8000, "limit_test": 2000},
}
_QUICK_ELSEWHERE: dict[str, Any] = {"train": 6, "prune": 5, "finetune": 5, "batch_size": 64, "limit": 6000}


def recipe_for(data: str, quick: bool = False) -> Recipe:
    """The default recipe of a data set.

    Args:
        data: its name as in `load_data`.
        quick: a first look, in minutes on two cores: 6,000 training images and few epochs.

    Example:
        >>> recipe_for("digits").epochs
        (20, 15, 10)
        >>> recipe_for("fashion-mnist", quick=True).limit
        6000
    """
    name = data.strip().lower().replace("_", "-")
    recipe = _RECIPES.get(name, _SMALL)
    return dataclasses.replace(recipe, **_QUICK.get(name, _QUICK_ELSEWHERE)) if quick else recipe


@dataclass(frozen=True)
class Request:
    """One run, in the user's words. `prepare` reads it.

    Attributes:
        model: a name for `get_model`, or `module:callable`.
        data: a name for `load_data`, or `module:callable`.
        budget: what remains, as `Budget.parse` reads it.
        out: the run folder; made if missing.
        recipe: how to train; None: `recipe_for(data)`.
        data_dir: folder of the data set.
        weights: trained dense weights; the training phase is then left out.
        method: a name from `chipnet.methods.METHODS`.
        realisation, ignore, only, min_channels, round_to: see `chipnet.Structure`.
        seed: of initial weights, order of images, augmentation, validation split and method.
        validation: part of the training images held out to choose epochs by.
        accelerator: "auto", "cpu" or "cuda".
        precision: one of `PRECISIONS`.
        overwrite: replace a finished run in `out`.
        command: how the run was started, for result.json.
    """

    model: str
    data: str
    budget: Any
    out: str | os.PathLike[str]
    recipe: Recipe | None = None
    data_dir: str | None = None
    weights: str | None = None
    method: str = "chipnet"
    realisation: Literal["plain", "indexed"] = "plain"
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    min_channels: int = 0
    round_to: int = 1
    seed: int = 0
    validation: float = 0.1
    accelerator: str = "auto"
    precision: str = "32-true"
    overwrite: bool = False
    command: str = field(default_factory=lambda: shlex.join(["chipnet", *sys.argv[1:]]))


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

    @property
    def dense(self) -> Cost:
        """Cost of the dense network."""
        return self.structure.cost.dense


def prepare(request: Request) -> Job:
    """Read and check all that a run needs: data, network, weights, budget, device, folder. Trains nothing.

    Raises:
        ChipNetError: the first thing that cannot be used, with what to do about it. A `BudgetError` for the
            budget, a `CaptureError` for the network, a `ConfigError` for the rest.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prepare(Request("resnet8", "digits", "macs=1.5", folder))
        Traceback (most recent call last):
        ...
        chipnet._errors.BudgetError: cannot use the budget 'macs=1.5':
          - macs=1.5: above 1; a fraction is what remains, 0.25 keeps a quarter; for an absolute count ...
    """
    budget = Budget.parse(request.budget)
    if request.method not in METHODS:
        raise ConfigError(f"unknown method {request.method!r}; known: {', '.join(METHODS)}")
    recipe = request.recipe or recipe_for(request.data)
    if request.weights is not None:
        recipe = dataclasses.replace(recipe, train=0)
    elif recipe.train == 0:
        raise ConfigError(
            "there is nothing to prune: training is given 0 epochs and there are no weights. Give "
            "--weights FILE or at least one epoch of training."
        )
    out = Path(request.out).expanduser()
    if not 0 <= request.seed < 2**63:
        raise ConfigError(f"the seed must be at least 0 and below 2**63, not {request.seed}")
    _check_unused(out, request.overwrite)
    _check_device(request.accelerator, request.precision)
    data = load_data(
        request.data,
        request.data_dir,
        seed=request.seed,
        validation=request.validation,
        limit=recipe.limit,
        limit_test=recipe.limit_test,
    )
    if recipe.batch_size > len(data.train):
        raise ConfigError(
            f"a batch of {recipe.batch_size} is more than the {len(data.train)} training images. "
            "Give a smaller --batch-size."
        )
    seed_everything(request.seed)
    network = get_model(request.model, data.num_classes, data.in_channels)
    if request.weights is not None:
        load_weights(network, request.weights)
    example = example_images(data)
    structure = Structure(
        network,
        example,
        realisation=request.realisation,
        ignore=request.ignore,
        only=request.only,
        min_channels=request.min_channels,
        round_to=request.round_to,
    )
    if "latency" in budget.kinds:
        structure.time(network)
    structure.check(budget)
    _check_logits(network, example, request.model, data.num_classes)
    _check_writable(out)
    fabric = _fabric(request.accelerator, request.precision)
    return Job(request, recipe, budget, data, network, example, structure, fabric, out)


def example_images(data: Data) -> Tensor:
    """One image of noise, as the networks for this data set see images: float32 [1, C, H, W]."""
    shape = (1, data.in_channels, data.image_size, data.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _check_unused(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"the output folder {out} is a file. Give a folder.")
    if (out / RESULT).exists() and not overwrite:
        raise ConfigError(
            f"{out} holds a finished run ({RESULT}). Give another --out, or --overwrite to replace it."
        )


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot write to the output folder {out} ({error.strerror or error}). Give another --out."
        ) from error


def _check_device(accelerator: str, precision: str) -> None:
    if accelerator not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown accelerator {accelerator!r}; known: auto, cpu, cuda")
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("PyTorch finds no CUDA device here. Use --accelerator cpu.")
    if precision == "16-mixed" and not (accelerator != "cpu" and torch.cuda.is_available()):
        raise ConfigError("the precision 16-mixed needs a CUDA device; on a CPU use 32-true or bf16-mixed.")


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


def _fabric(accelerator: str, precision: str) -> Fabric:
    from lightning.fabric import Fabric  # takes seconds to import, so not before it is needed

    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and PyTorch's global generators: for initial weights and networks' own randomness."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
