"""Labelled image files on disk, and batches of them decoded by worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from chipnet._util.imports import optional_import
from chipnet._util.random import stream_seed
from chipnet.errors import ConfigError
from chipnet.lab.data.images import count_batches
from chipnet.lab.data.workers import held_back, steady


def read_image(source: str | IO[bytes], name: str | None = None) -> Any:
    """The image in a file, open or not, as a PIL image in RGB; ConfigError when it is not a readable image."""
    image = optional_import("PIL.Image", needed_for="Reading image files", install="pillow")
    try:
        with image.open(source) as opened:
            return opened.convert("RGB")
    # PIL reports broken PNG chunks as SyntaxError.
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise ConfigError(
            f"{name or source} is not a readable image ({error}). Replace or delete it."
        ) from error


def problem_of(source: str | IO[bytes]) -> str:
    """Why an image cannot be read, in a word, or nothing. JPEGs are decoded at an eighth of their size."""
    image = optional_import("PIL.Image", needed_for="Reading image files", install="pillow")
    try:
        with image.open(source) as opened:
            opened.draft(None, (opened.width // 8, opened.height // 8))
            opened.load()
    except FileNotFoundError:
        return "no such file"
    except image.UnidentifiedImageError:
        return "not an image"
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        return str(error) or type(error).__name__
    return ""


@dataclass(frozen=True, eq=False)
class FolderImages(Dataset[tuple[Any, int]]):
    """Labelled image files, decoded when they are asked for; a map-style data set of `(PIL image, label)`.

    Args:
        paths: the files.
        labels: int64 [N], from 0.

    Example:
        >>> len(FolderImages(("a.png", "b.png"), torch.tensor([0, 1])))
        2
    """

    paths: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return read_image(self.paths[index]), int(self.labels[index])

    def problem(self, index: int) -> tuple[str, str]:
        """The place of an image, and why it cannot be read, or nothing."""
        return self.paths[index], problem_of(self.paths[index])

    def subset(self, indices: Tensor) -> FolderImages:
        """The files at `indices` (int64 [M]), in that order."""
        return FolderImages(tuple(self.paths[i] for i in indices.tolist()), self.labels[indices])


@dataclass(frozen=True, eq=False)
class SampleImages(Dataset[tuple[Any, int]]):
    """Images of a map-style data set of somebody else's, decoded when they are asked for.

    Args:
        samples: gives (image, label) for an index; images are PIL's, arrays or tensors [C, H, W].
        labels: int64 [N], of the samples at `indices`.
        indices: int64 [N], which samples.

    Example:
        >>> import numpy as np
        >>> samples = [(np.zeros((8, 8, 3), np.uint8), 0), (np.ones((8, 8, 3), np.uint8), 1)]
        >>> images = SampleImages(samples, torch.tensor([1]), torch.tensor([1]))
        >>> image, label = images[0]
        >>> image.size, image.mode, label
        ((8, 8), 'RGB', 1)
    """

    samples: Any
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.samples[int(self.indices[index])][0]
        if not hasattr(image, "convert"):
            functional = optional_import(
                "torchvision.transforms.v2.functional", needed_for="Images in arrays", install="torchvision"
            )
            image = functional.to_pil_image(image)
        return image.convert("RGB"), int(self.labels[index])

    def subset(self, indices: Tensor) -> SampleImages:
        """The samples at `indices` (int64 [M]) of these, in that order."""
        return SampleImages(self.samples, self.labels[indices], self.indices[indices])


VARIATIONS = ("none", "flip", "crop", "crop-flip", "trivial")
"""How training images may vary."""


def folder_transform(
    image_size: int, mean: tuple[float, ...], std: tuple[float, ...], variation: str
) -> Callable[[Any], Tensor]:
    """The usual ImageNet transforms, from torchvision v2: PIL image -> float32 [3, image_size, image_size].

    Args:
        image_size: height and width of what comes out.
        mean, std: of each channel, of images in 0 to 1.
        variation: one of `VARIATIONS`. With crop: a random crop of 8 to 100 % of the area, resized; without: the
            shorter side resized to 256/224 of `image_size`, the centre cut out. With flip: mirrored half of the
            time. "trivial": TrivialAugmentWide (Müller and Hutter 2021), crop and flip.
    """
    v2 = optional_import("torchvision.transforms.v2", needed_for="Image folders", install="torchvision")
    trivial = variation == "trivial"
    if trivial or "crop" in variation:
        geometry = [v2.RandomResizedCrop(image_size, antialias=True)]
    else:
        geometry = [v2.Resize(round(image_size * 256 / 224), antialias=True), v2.CenterCrop(image_size)]
    if trivial or "flip" in variation:
        geometry.append(v2.RandomHorizontalFlip())
    if trivial:
        geometry.append(v2.TrivialAugmentWide())
    values = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    transform: Callable[[Any], Tensor] = v2.Compose([*geometry, *values])
    return transform


class _Transformed(Dataset[tuple[Tensor, int]]):
    """Takes (index, seed) pairs: what becomes of an image depends on its pair, not on the worker it meets."""

    def __init__(self, images: FolderImages | SampleImages, transform: Callable[[Any], Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, pair: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = pair
        image, label = self.images[index]
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed the accelerators too, and nothing here restores those.
            torch.default_generator.manual_seed(seed)
            return self.transform(image), label


class _SeededBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (index, seed) pairs of the current epoch."""

    def __init__(self, count: int, batch_size: int, shuffle: bool, seed: int, part: tuple[int, int]) -> None:
        self.count, self.batch_size, self.shuffle, self.seed, self.part = (
            count, batch_size, shuffle, seed, part,
        )  # fmt: skip
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return count_batches(self.count, self.batch_size, self.shuffle, self.part)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, start = self.epoch, self.start
        self.epoch, self.start = epoch + 1, 0
        rank, world = self.part
        generator = torch.Generator().manual_seed(stream_seed(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)
        if not self.shuffle:
            order = order.tensor_split(world)[rank]
        for indices in order.split(self.batch_size)[start : len(self)]:
            if self.shuffle:
                indices = indices.tensor_split(world)[rank]
            yield [(i, stream_seed(self.seed, epoch, i)) for i in indices.tolist()]


class FolderBatches(DataLoader[Any]):
    """A DataLoader over image files whose order and augmentation only (seed, epoch) decide.

    As with `Batches`, each loop is one epoch, `set_epoch` says which one comes next, and a last training
    batch of a single image is dropped. The number of workers changes the speed and nothing else.

    Args:
        images: the files.
        batch_size: images per batch.
        transform: PIL image -> float32 [C, H, W]; random ones must draw from torch's global generator.
        shuffle: a new order every epoch.
        seed: of the order and the augmentation.
        device: where batches are sent, None for the CPU.
        workers: processes that decode; None: one per core, at most 8.
        part: (k, n): the k-th of n processes; see `Batches`.

    Yields:
        (images, labels): float32 [B, C, H, W] and int64 [B].

    Raises:
        ConfigError: a batch size below 1; while looping, a file that is no image.

    Example:
        >>> images = FolderImages(("a.png", "b.png", "c.png"), torch.tensor([0, 1, 0]))
        >>> len(FolderBatches(images, 2, folder_transform(8, (0.5,) * 3, (0.5,) * 3, "none"), shuffle=False))
        2
    """

    def __init__(
        self,
        images: FolderImages | SampleImages,
        batch_size: int,
        transform: Callable[[Any], Tensor],
        *,
        shuffle: bool,
        seed: int = 0,
        device: torch.device | str | None = None,
        workers: int | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        if workers is None:
            workers = min(8, _cores())
        self._target = None if device is None else torch.device(device)
        self._batches = _SeededBatches(len(images), batch_size, shuffle, seed, part)
        super().__init__(
            _Transformed(images, transform),
            batch_sampler=self._batches,
            num_workers=workers,
            pin_memory=self._target is not None and self._target.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=steady,
            generator=torch.Generator(),  # otherwise every loop draws from the caller's global generator
        )

    @property
    def epoch(self) -> int:
        """The epoch of the next loop."""
        return self._batches.epoch

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The next loop over the batches is epoch `epoch`, from batch `start` on."""
        self._batches.epoch, self._batches.start = epoch, start

    def size(self, batch: int) -> int:
        """Images of training batch `batch`, over all processes."""
        return min(self._batches.batch_size, self._batches.count - batch * self._batches.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        with held_back():
            batches = super().__iter__()
        for images, labels in batches:
            if self._target is not None:
                images = images.to(self._target, non_blocking=True)
                labels = labels.to(self._target, non_blocking=True)
            yield images, labels


def _cores() -> int:
    # Cores this process may use, where the system can tell: containers are often given a few of many.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
