"""A run's options: what there is, with defaults and types, and what every run must say.

`Request` and its `Recipe` are the only list of options: flags of `chipnet prune`, keys of a YAML file and
config.yaml of a run are all made from their fields. `chipnet.lab.layers` reads values; whether a network, a
folder or a device can be used is `chipnet.lab.job`'s question.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator

from chipnet.errors import ConfigError, Problems
from chipnet.lab.fit import (
    FROM_TEXT,
    FromOne,
    FromZero,
    Number,
    Numbers,
    Part,
    Rate,
    Texts,
    Weight,
    fitted,
    option,
)

CONFIG = "config.yaml"
"""The resolved options of a run, in its folder."""
EPOCHS = ("train", "prune", "finetune")
"""Fields of `Recipe` that are epochs of a phase."""
RATES = ("train_lr", "prune_lr")
"""Fields of `Recipe` that are peak rates, and change with the batch size."""
ADAMW = {"train_lr": 1e-3, "prune_lr": 1e-3, "weight_decay": 0.01}
"""Rates and weight decay of AdamW where nobody gave any: those of `torch.optim.AdamW`."""
DATA = ("validation", "image_size", "mean", "std", "augment", "skip_broken", "checksum")
"""Options of a request that say how images are read; `chipnet.lab.data.load_data` takes them."""
READING = ("batch_size", "limit", "limit_test")
"""Fields of `Recipe` that say how many images are read: those that a run without training has, too."""
TRAINING = (
    "method", "masks", "augment", "devices", "num_nodes", "strategy", "precision", "compile", "channels_last",
    "sync_batch_norm", "checkpoint_seconds", "checkpoint_steps", "tensorboard",
)  # fmt: skip
"""Fields of `Request` that a run without training has no use for."""
PRUNING_STEPS = 300
"""Optimiser steps that soft pruning should have: masks move a little in each, and with fewer they do not settle."""
EPOCH_STEPS, MIN_BATCH = 16, 8
"""A suggested batch is small enough for so many steps an epoch, and large enough for batch norm's statistics."""
FINETUNING = 0.1
"""Rates for a network that is trained already, as a part of those for one that is trained first."""


def _spikes(value: float) -> float:
    if value == 0 or value > 1:
        return value
    raise ValueError("above 1, or 0 for no clipping")


@dataclass(frozen=True)
class Recipe:
    """How to train. The same for every method and network; only data sets differ, in length and batch size.

    What is given stays as it is. Lengths, batch size and rates that nobody gave, but `recipe_for` suggests, are
    fitted to the data once its size is known (`fitted`).

    Dense training is SGD under one schedule (one-cycle). Soft pruning and fine-tuning are SGD under a second
    one that runs through both: the cut happens on its way down, and momentum goes through the cut. The method
    `chipnet-paper` prunes with AdamW at a constant rate, keeps its best epoch, and has a schedule for
    fine-tuning alone.

    Attributes: see the text of each field, which is its help on the command line.

    Raises:
        ConfigError: values that cannot be used, all of them.

    Example:
        >>> Recipe(train=20, prune=15, finetune=10).epochs
        (20, 15, 10)
        >>> Recipe(1, 0, 1, batch_size=1)
        Traceback (most recent call last):
        ...
        chipnet.errors.ConfigError: prune must be at least 1, not 0; batch_size must be at least 2, not 1.
    """

    train: FromZero
    prune: FromOne
    finetune: FromZero
    batch_size: Annotated[int, Ge(2)] = option(
        128, "images per optimiser step, over all devices; the rates scale with it unless they are given"
    )
    accumulate: FromOne = option(1, "pieces that each device's part of a batch is cut into, to save memory")
    clip: Annotated[float, Gt(0), FROM_TEXT] | None = option(None, "largest norm of the gradient")
    clip_spikes: Annotated[float, AfterValidator(_spikes), FROM_TEXT] = option(
        2.0,
        "largest norm of the gradient, as a multiple of its typical norm; 0: no limit. Not in chipnet-paper",
    )
    train_lr: Rate = option(0.1, "peak learning rate of dense training")
    prune_lr: Rate = option(0.1, "peak learning rate of pruning and fine-tuning")
    schedule: Literal["one-cycle", "cosine", "step"] = option(
        "one-cycle",
        "schedule of SGD's learning rates: one-cycle, cosine, or step (a tenth at 50 and at 75 %)",
    )
    warmup: Annotated[float, Gt(0), Lt(1), FROM_TEXT] = option(
        0.2, "part of a one-cycle schedule in which the rate rises"
    )
    momentum: Part = option(0.9, "momentum of SGD")
    nesterov: bool = option(True, "Nesterov's momentum")
    weight_decay: Weight = option(5e-4, "weight decay of the optimiser; AdamW's is 0.01 unless it is given")
    optimizer: Literal["sgd", "adamw"] = option(
        "sgd",
        "sgd or adamw, in all phases; AdamW's peak rates are 0.001, for the suggested batch, unless given",
    )
    label_smoothing: Part = option(0.0, "label smoothing of the cross-entropy, in [0, 1)")
    mixup: Weight = option(0.0, "alpha of mixup; 0: images are not mixed")
    distill: Annotated[float, Ge(0), Le(1), FROM_TEXT] = option(
        0.0,
        "weight of distillation from the dense network, in pruning and fine-tuning; 0: the method decides",
    )
    temperature: Rate = option(4.0, "temperature of distillation")
    adamw_lr: Rate = option(1e-3, "AdamW's learning rate in the pruning phase of chipnet-paper")
    adamw_weight_decay: Weight = option(1e-3, "AdamW's weight decay in the pruning phase of chipnet-paper")
    recalibrate: bool = option(False, "measure batch norm statistics again after the cut")
    limit: int | None = option(None, "keep only so many training images")
    limit_test: int | None = option(None, "keep only so many test images")

    # No fields: a recipe that is made or replaced by hand suggests nothing.
    _open: ClassVar[frozenset[str]] = frozenset()
    _usual: ClassVar[Recipe | None] = None

    def __post_init__(self) -> None:
        wrong: list[str] = []
        vars(self).update(fitted(type(self), vars(self), "", wrong))
        if self.optimizer == "adamw" and type(self).train_lr in (self.train_lr, self.prune_lr):
            wrong.append(
                f"train_lr and prune_lr of {type(self).train_lr} are SGD's: give AdamW others, such as 0.001, or "
                'Recipe(...).changed({"optimizer": "adamw"})'
            )
        if wrong:
            raise ConfigError("; ".join(wrong) + ".")

    @property
    def epochs(self) -> tuple[int, int, int]:
        """Epochs of training, pruning and fine-tuning."""
        return self.train, self.prune, self.finetune

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """This recipe with `changes`. A new batch size scales the rates that are not changed too, and another
        optimiser has rates and a weight decay of its own (`ADAMW`).

        >>> Recipe(1, 1, 1, batch_size=32, train_lr=0.5).changed({"batch_size": 64}).train_lr
        1.0
        >>> adamw = Recipe(1, 1, 1).changed({"optimizer": "adamw", "prune_lr": 0.01})
        >>> adamw.train_lr, adamw.prune_lr, adamw.weight_decay
        (0.001, 0.01, 0.01)
        >>> adamw.changed({"optimizer": "sgd"}) == Recipe(1, 1, 1)
        True
        """
        given, changes = set(changes), dict(changes)
        optimizer = changes.get("optimizer", self.optimizer)
        if optimizer != self.optimizer:
            sgd = {n: getattr(self._usual or type(self), n) for n in ADAMW}
            changes = (ADAMW if optimizer == "adamw" else sgd) | changes
        if (size := changes.get("batch_size")) is not None:
            dataclasses.replace(self, batch_size=size)  # is it one?
            for rate in RATES:
                was = changes.get(rate, getattr(self, rate))
                if rate not in given:
                    changes[rate] = was * self._scaled(size, optimizer)
        return dataclasses.replace(self, **changes)._suggesting(self._open - given, self._usual)

    def given(self) -> list[str]:
        """Fields that somebody chose; none of a recipe that was made by hand, of which that cannot be told.

        >>> recipe_for("digits").changed({"prune": 15, "batch_size": 64, "mixup": 0.2}).given()
        ['prune', 'batch_size', 'mixup']
        """
        usual = self._usual
        if usual is None:
            return []
        suggested = {*EPOCHS, "batch_size", *RATES}
        return [
            n
            for n in (f.name for f in dataclasses.fields(self))
            if (n not in self._open if n in suggested else getattr(self, n) != getattr(usual, n))
        ]

    def _scaled(self, batch_size: int, optimizer: str) -> float:
        """How much rates change with the batch size, so that the noise of the steps stays: in proportion for
        SGD, by the square root for AdamW (Malladi et al. 2022, arXiv:2205.10287)."""
        ratio = batch_size / self.batch_size
        return ratio if optimizer == "sgd" else math.sqrt(ratio)

    def fitted(self, batch_size: int, steps: Callable[[int], int], trained: bool = False) -> Recipe:
        """This recipe, with what is only suggested fitted to the data; one that was given is itself.

        Epochs become so many more, in all phases alike, that pruning has `PRUNING_STEPS`. Rates change with the
        batch size, and are a tenth in pruning and fine-tuning where the network is trained already.

        Args:
            batch_size: that suits the data.
            steps: batch size -> optimiser steps of an epoch.
            trained: weights were given.

        Example:
            >>> recipe_for("image-folder", quick=True).fitted(8, lambda size: 216 // size).epochs
            (12, 12, 12)
            >>> Recipe(2, 2, 2).fitted(8, lambda size: 216 // size).epochs
            (2, 2, 2)
        """
        if self._usual is None:
            return self
        values: dict[str, Any] = {}
        size = values["batch_size"] = batch_size if "batch_size" in self._open else self.batch_size
        for rate in self._open.intersection(RATES):
            part = FINETUNING if trained and rate == "prune_lr" else 1.0
            values[rate] = getattr(self, rate) * part * self._scaled(size, self.optimizer)
        longer = PRUNING_STEPS / (self._usual.prune * max(steps(size), 1))
        if longer > 1:
            values |= {n: math.ceil(getattr(self, n) * longer) for n in self._open.intersection(EPOCHS)}
        return dataclasses.replace(self, **values)

    def _suggesting(self, names: Iterable[str], usual: Recipe | None) -> Recipe:
        """This recipe, whose values of ``names`` are only suggestions, from those of ``usual``."""
        if usual is not None:
            object.__setattr__(self, "_open", frozenset(names))
            object.__setattr__(self, "_usual", usual)
        return self


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
    "image-folder": {
        "train": 2,
        "prune": 2,
        "finetune": 2,
        "batch_size": 32,
        "train_lr": 0.05,
        "prune_lr": 0.05,
        "limit": 8000,
        "limit_test": 2000,
    },
}
_QUICK_ELSEWHERE: dict[str, Any] = {"train": 6, "prune": 5, "finetune": 5, "batch_size": 64, "limit": 6000}


def recipe_for(data: str, quick: bool = False) -> Recipe:
    """The default recipe of a data set: a suggestion, which a run fits to its images (`Recipe.fitted`).

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
    recipe = dataclasses.replace(recipe, **(_QUICK.get(name, _QUICK_ELSEWHERE) if quick else {}))
    return recipe._suggesting((*EPOCHS, "batch_size", *RATES), dataclasses.replace(recipe))


@dataclass(frozen=True)
class Request:
    """One run, in the user's words. `chipnet.lab.train.prepare` reads it.

    Attributes: see the text of each field, which is its help on the command line. A run that does not say `model`,
    `data`, `budget` and `out` is refused. `recipe` None is `recipe_for(data)`. `command` says how the run was
    started, for config.yaml and result.json.
    """

    model: str = option(
        "",
        "a name (`chipnet models`; torchvision's, timm's), module:callable, or the folder of a finished run, "
        "whose compact network is pruned further",
    )
    data: str = option("", "digits, cifar10, image-folder, hf, wds, tv/NAME and more, or module:callable")
    budget: Any = option(
        "", "what remains of the dense network: macs=0.25, params=2M, latency=3ms; repeatable"
    )
    out: str | os.PathLike[str] = option("", "run folder; made if missing")
    recipe: Recipe | None = None
    data_dir: str | None = option(None, "folder of the data set; nothing is ever downloaded")
    image_size: int | None = option(None, "size of images that are decoded while training [default: 224]")
    mean: Numbers | None = option(
        None,
        "means for images in 0 to 1: one number per channel, such as 0.5,0.5,0.5, or one for all "
        "[default: measured on training images in memory; ImageNet's for image files]",
    )
    std: Numbers | None = option(None, "standard deviations, as for --mean")
    augment: Literal["none", "flip", "crop", "crop-flip", "trivial"] | None = option(
        None,
        "how training images vary: none, flip, crop, crop-flip, or trivial (crop-flip, then TrivialAugment; image "
        "files only) [default: the data set's own]",
    )
    skip_broken: bool = option(False, "leave out image files that cannot be read")
    checksum: bool = option(
        True, "--no-checksum: accept files of CIFAR or SVHN that are not the official ones"
    )
    weights: str | None = option(None, "trained dense weights; the run then has no training phase")
    method: str = option(
        "chipnet",
        "chipnet, chipnet-paper, bar, slimming, taylor, fisher, ...; with settings: chipnet:law=1",
    )
    no_train: bool = option(
        False,
        "do not train: measure what fewer channels cost, cut, and fit the remaining weights layer by layer",
    )
    images: FromOne = option(512, "how many training images --no-train uses")
    masks: str | None = option(
        None, "a file of masks: cut the network by them and train it for all epochs of the recipe"
    )
    realisation: Literal["plain", "indexed"] = option(
        "plain", "plain: dense layers only; indexed: layers may read or write a part of a tensor by index"
    )
    heads: Literal["narrow", "whole", "both"] = option(
        "narrow", "attention loses the same features of all heads (narrow), whole heads (whole), or both"
    )
    ignore: Texts = option(
        (), "modules that keep all channels: names ('layer1.*') or types ('type:Linear'); repeatable"
    )
    only: Texts = option((), "the only modules that are pruned, as for --ignore; repeatable")
    outputs: Texts = option(
        (), "the outputs that matter, such as 0, 0.boxes or logits: others may go; repeatable"
    )
    min_channels: FromZero = option(0, "channels that every layer keeps at least")
    round_to: FromOne = option(1, "widths are multiples of this (8 suits most hardware), or as before")
    seed: FromZero = option(0, "seed of all random numbers")
    validation: Number = option(0.1, "part of the training images that chooses epochs")
    threads: FromOne | None = option(None, "CPU threads [default: PyTorch's]")
    accelerator: str = option("auto", "auto, cpu, cuda or mps")
    devices: int = option(
        1, "processes on each machine, one per GPU; -1 for all GPUs. torchrun sets it itself"
    )
    num_nodes: FromOne = option(1, "number of machines")
    strategy: str = option(
        "auto", "auto, ddp, or ddp_find_unused_parameters_true for networks with parts that do not always run"
    )
    precision: str = option("32-true", "32-true, bf16-mixed or 16-mixed")
    compile: bool = option(False, "torch.compile the training step's network")
    channels_last: bool = option(False, "store images and convolutions with the channels last")
    sync_batch_norm: bool = option(False, "compute batch norm over the batches of all GPUs together")
    workers: FromZero | None = option(
        None, "processes that decode image files [default: one per core, at most 8]"
    )
    checkpoint_seconds: Weight = option(60.0, "time between two saved states")
    checkpoint_steps: FromOne | None = option(None, "steps between two saved states, if sooner")
    tensorboard: bool = option(False, "also write TensorBoard's event files")
    overwrite: bool = option(False, "replace an earlier run in --out")
    trust: bool = option(False, "import and call the code (module:callable) that the run in --model names")
    command: str = field(default_factory=lambda: shlex.join(["chipnet", *sys.argv[1:]]))


BEFORE = {"clip_spikes": 0.0}
"""Fields of recipes that runs of earlier versions were made without, and what they did instead."""
SAID = ("model", "data", "budget", "out")
"""What every run has to say."""


def check_said(request: Request) -> None:
    """Refuse a run that does not say what to prune, on what, to what and where.

    Raises:
        ConfigError: names all that is missing, with a command that has it.

    Example:
        >>> check_said(Request(model="resnet20", out="runs/a"))
        Traceback (most recent call last):
        ...
        chipnet.errors.ConfigError: --data and --budget are missing. For example: chipnet prune --model resnet20
        --data digits --budget macs=0.25 --out runs/a
    """
    values = {name: getattr(request, name) for name in SAID}
    missing = [f"--{name}" for name, value in values.items() if value is None or value == ""]
    if missing:
        example = {"model": "resnet8", "data": "digits", "budget": "macs=0.25", "out": "runs/first"}
        example |= {n: str(v) for n, v in values.items() if v and n != "budget"}
        flags = " ".join(f"--{name} {shlex.quote(value)}" for name, value in example.items())
        some = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise ConfigError(
            f"{some} {'are' if len(missing) > 1 else 'is'} missing. For example: chipnet prune {flags}"
        )


def check_no_train(request: Request, problems: Problems) -> None:
    """Refuse, of a run without training, what only training has."""
    if not request.no_train:
        if request.images != Request.images:
            problems.add("--images is for a run without training: leave it out, or add --no-train.")
        return
    given = [name for name in TRAINING if getattr(request, name) != getattr(Request, name)]
    given += [name for name in (request.recipe.given() if request.recipe else ()) if name not in READING]
    short = dict.fromkeys(EPOCHS, "epochs") | dict.fromkeys(RATES, "lr")
    flags = dict.fromkeys(f"--{short.get(name, name).replace('_', '-')}" for name in given)
    if flags:
        problems.add(f"--no-train trains nothing: leave out {', '.join(flags)}.")
