"""Loaders of the user's own: any iterable of (images, labels) batches, in the run's hands.

One idea: an epoch of a loader depends on (seed, epoch, process) and on nothing else. It begins anew, samplers and
data sets that have `set_epoch` are told which one it is, and random numbers (Python's, NumPy's, PyTorch's) are
seeded for it and kept apart from the network's. So an epoch can be repeated, and a run that was stopped goes on
after going through the batches that it had already. (A `torch.Generator` of the loader's own is seeded alike for
all processes: its sampler may share out one order.)

This file neither shuffles, transforms nor shares out images: what a batch holds is the loader's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chipnet._util.distributed import gathered
from chipnet._util.imports import blamed
from chipnet._util.random import OwnRandomness, stream_seed
from chipnet._util.text import amount
from chipnet.errors import ChipNetError, ConfigError
from chipnet.lab.data.workers import steadied

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Loaders:
    """Loops over batches for a `module:callable` to return; a tuple of the first two or three will do.

    A loader is any iterable that begins anew with every loop (a `DataLoader`, a list, a class with `__iter__`), or
    a function of the epoch that gives one. Batches are (images, labels): floating point [B, C, H, W], as the
    network sees them, and whole numbers [B].

    Args:
        train: in the order of training, augmented.
        validation: chooses epochs.
        test: for the final numbers; None: the validation loader.
        steps: batches of `train` in an epoch; None: `len(train)`.
        classes: how many, or their names; None: the data set's `classes`, or else the largest label of one epoch.
        mean, std: per channel, what the loaders normalise images in [0, 1] by. Nothing here does: they go with
            exported networks.

    Example:
        >>> batches = [(torch.randn(8, 1, 5, 5), torch.arange(8) % 3) for _ in range(4)]
        >>> Loaders(batches, batches[:1], classes=["rock", "paper", "scissors"]).steps is None
        True
    """

    train: Batches | Callable[[int], Batches]
    validation: Batches | Callable[[int], Batches]
    test: Batches | Callable[[int], Batches] | None = None
    steps: int | None = None
    classes: int | Sequence[str] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


@dataclass(frozen=True, eq=False)
class LoaderImages:
    """One part of a data set that somebody else loops over.

    Attributes:
        loader: gives the batches.
        name: of the loader, for errors.
        shape: (C, H, W) of every image.
        batch_size: images of its first batch.
        steps: batches of an epoch, the same for all processes; None: until it ends.
        classes: labels are below; None: any.
    """

    loader: Any
    name: str
    shape: tuple[int, int, int]
    batch_size: int
    steps: int | None = None
    classes: int | None = None

    def count(self) -> int | None:
        """Images, where the loader's data set can tell."""
        try:
            return len(self.loader.dataset)
        except (AttributeError, TypeError, NotImplementedError):
            return None


class LoaderBatches:
    """A loader's batches on the run's device; see this file's head. The run's counterpart of `Batches`.

    Args:
        images: the loader, and what its batches must be.
        seed: with the epoch and the process, decides its random numbers.
        device: where batches are sent; None: where they are.
        part: (k, n): this is the k-th of n processes. What it sees is for its loader to choose.

    Yields:
        (images, labels): float32 [B, C, H, W] and int64 [B].

    Raises:
        ConfigError: while looping, a batch that does not fit the first one or the classes.
        ChipNetError: while looping, the loader ended before its steps.

    Example:
        >>> class Noise:
        ...     def __iter__(self):
        ...         return iter(
        ...             [(torch.rand(4, 1, 5, 5), torch.zeros(4, dtype=torch.int64)) for _ in range(3)]
        ...         )
        >>> batches = LoaderBatches(LoaderImages(Noise(), "noise", (1, 5, 5), 4, steps=3), seed=0)
        >>> one, two = list(batches), list(batches)
        >>> batches.set_epoch(1, start=2)
        >>> torch.equal(one[2][0], two[2][0]), torch.equal(next(iter(batches))[0], two[2][0])
        (False, True)
    """

    def __init__(
        self,
        images: LoaderImages,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.images, self.seed, self.device, self.part = images, seed, device, part
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return len(self.images.loader) if self.images.steps is None else self.images.steps

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The next loop over the batches is epoch `epoch`, from batch `start` on; those before are gone through."""
        self.epoch, self.start = epoch, start

    def size(self, batch: int) -> None:
        """Nobody knows the sizes of all processes' parts: they count alike."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, start = self.epoch, self.start
        if self.images.steps is not None:  # an evaluation sees the same every time
            self.epoch, self.start = epoch + 1, 0
        return self._run(epoch, start)

    def _run(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.images
        randomness = OwnRandomness(stream_seed(self.seed, epoch, self.part[0]))
        with randomness:
            batches = opened(images.loader, images.name, epoch, self.seed)
        number = 0
        while images.steps is None or number < images.steps:
            with randomness:
                batch = following(batches, images.name)
            if batch is None:
                if images.steps is None:
                    return
                raise ChipNetError(
                    f"{images.name} ended after {amount(number, 'batch')} of epoch {epoch + 1}, and an epoch has "
                    f"{images.steps}. Give Loaders fewer steps, or a loader that goes on."
                )
            number += 1
            if number <= start:
                continue
            x, y = read_batch(batch, f"{images.name}, batch {number}", images.shape, images.classes)
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


def opened(loader: Any, name: str, epoch: int, seed: int) -> Iterator[Any]:
    """The loader's batches of an epoch, from the first one on; random generators are the caller's business."""
    try:
        if callable(loader) and not isinstance(loader, Iterable):
            loader = loader(epoch)
        for owner in owners(loader):
            if callable(getattr(owner, "set_epoch", None)):
                owner.set_epoch(epoch)
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                generator.manual_seed(stream_seed(seed, epoch))
        with steadied(loader):
            return iter(loader)
    except Exception as error:
        raise blamed(f"looping over {name}", error) from error


def following(batches: Iterator[Any], name: str) -> Any:
    """The next batch; None at the end."""
    try:
        return next(batches, None)
    except ConfigError:
        raise
    except Exception as error:
        raise blamed(f"reading a batch of {name}", error) from error


def owners(loader: Any) -> list[Any]:
    """A loader and its parts that may keep an order or random numbers."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = [getattr(loader, name, None) for name in ("dataset", "sampler")]
    found = [loader, *parts, batch_sampler, getattr(batch_sampler, "sampler", None)]
    return list({id(part): part for part in found if part is not None}.values())


def read_batch(
    batch: Any, where: str, shape: tuple[int, ...] | None = None, classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """(float32 [B, C, H, W], int64 [B]) of a batch.

    Args:
        batch: what a loader gave.
        where: it was.
        shape: (C, H, W) that it must have; None: any square images.
        classes: labels must be below; None: any.

    Raises:
        ConfigError: it is something else; says what, and what to do.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        many = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ConfigError(
            f"{where}: it is a {type(batch).__name__}{many}, not (images, labels). Wrap the loader."
        )
    images, labels = (torch.as_tensor(v) if hasattr(v, "__array__") else v for v in batch)
    if (
        not isinstance(images, Tensor)
        or images.dim() != 4
        or not images.is_floating_point()
        or not len(images)
    ):
        raise ConfigError(
            f"{where}: its images must be floating point [B, C, H, W], as the network sees them, not "
            f"{_told(images)}. Convert and normalise them in the loader, with torchvision's "
            "v2.ToDtype(torch.float32, scale=True)."
        )
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ConfigError(
            f"{where}: labels must be whole numbers [{len(images)}], one for each image, not {_told(labels)}. "
            "Other tasks have loops of their own (docs/integrations.md)."
        )
    if shape is None and images.shape[2] != images.shape[3]:
        raise ConfigError(
            f"{where}: images are {images.shape[2]} x {images.shape[3]} pixels, and this loop takes square ones. "
            "Crop or resize them in the loader."
        )
    if shape is not None and tuple(images.shape[1:]) != tuple(shape):
        raise ConfigError(
            f"{where}: images are {list(images.shape[1:])}, and those of the first training batch "
            f"{list(shape)}: [channels, height, width] must stay the same. Resize them in the loader."
        )
    if not labels.is_cuda:  # looking there would stop the device
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (classes is not None and high >= classes):
            allowed = "they start at 0" if classes is None else f"{classes} classes are 0 to {classes - 1}"
            raise ConfigError(
                f"{where}: labels run from {low} to {high}, and {allowed}. Give Loaders classes=..., or change "
                "them in the loader."
            )
    return images.float(), labels.long()


def _told(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def read_loaders(
    name: str, loaders: Loaders, processes: int, shares: bool
) -> tuple[dict[str, LoaderImages], tuple[str, ...]]:
    """Every part, looked at and found usable, and the names of the classes.

    Args:
        name: of the data set.
        loaders: the user's.
        processes: that train together.
        shares: the callable was told which process it is called in.

    Raises:
        ConfigError: a loader that cannot be looped over again, has no length, gives something else than batches of
            images with labels, or gives every process the same images.
    """
    given = {"train": loaders.train, "validation": loaders.validation, "test": loaders.test}
    parts: dict[str, LoaderImages] = {}
    shape: tuple[int, int, int] | None = None
    for part, loader in given.items():
        if loader is None:
            parts[part] = parts["validation"]
            continue
        where = f"{name}: the {'training' if part == 'train' else part} loader"
        if isinstance(loader, Iterator):
            raise ConfigError(
                f"{where} is a {type(loader).__name__}, which can be gone through once. Give a DataLoader, a class "
                "with __iter__, or a function of the epoch."
            )
        if not callable(loader) and not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
            raise ConfigError(f"{where} is a {type(loader).__name__}, which no loop can go through.")
        if part == "train" and getattr(loader, "persistent_workers", False):
            raise ConfigError(
                f"{where} has persistent_workers: their random numbers run on from epoch to epoch, and a run that "
                "is continued could not repeat them. Leave persistent_workers out."
            )
        with OwnRandomness(0):
            first = following(opened(loader, where, 0, 0), where)
        if first is None:
            raise ConfigError(f"{where} is empty.")
        images, _ = read_batch(first, f"{where}, batch 1", shape)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        parts[part] = LoaderImages(loader, where, shape, len(images))
    train = parts["train"]
    owns = owners(train.loader)
    if processes > 1 and not shares and all(getattr(owner, "num_replicas", 1) == 1 for owner in owns):
        raise ConfigError(
            f"{train.name} would give all {processes} processes the same images. Give it a DistributedSampler, "
            "or let the callable take part=(k, n) and load the k-th of n shares."
        )
    steps = loaders.steps
    if steps is None:
        try:
            steps = len(train.loader)
        except (TypeError, NotImplementedError):
            raise ConfigError(
                f"{train.name} is a {type(train.loader).__name__} without len(), and the schedules need the number "
                "of batches in an epoch. Return chipnet.lab.data.Loaders(train, validation, steps=...)."
            ) from None
    if steps < 1:
        raise ConfigError(f"{train.name} has {amount(steps, 'batch')} in an epoch; it takes at least 1.")
    steps = min(gathered(steps))  # all processes take steps together
    names = _classes(loaders, train, steps)
    return {
        part: replace(images, steps=steps if part == "train" else None, classes=len(names))
        for part, images in parts.items()
    }, names


def _classes(loaders: Loaders, train: LoaderImages, steps: int) -> tuple[str, ...]:
    given = loaders.classes
    if given is None:
        given = getattr(getattr(train.loader, "dataset", None), "classes", None)
    if given is None:
        epoch = LoaderBatches(replace(train, steps=steps))
        given = max(gathered(1 + max(int(labels.max()) for _, labels in epoch)))
    return tuple(map(str, range(given) if isinstance(given, int) else given))
