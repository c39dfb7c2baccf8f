"""Labelled images in memory, batches of them, and their augmentation on whole batches.

This file reads no files and knows no data set by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from chipnet._util.random import stream_seed
from chipnet._util.text import amount
from chipnet.errors import ConfigError


@dataclass(frozen=True)
class Augment:
    """How training images are varied: shifted by up to `pad` pixels each way, mirrored half of the time.

    The shift is that of "pad with black, crop at random" (He et al. 2016, section 4.2).

    >>> Augment(pad=4, flip=True)
    Augment(pad=4, flip=True)
    """

    pad: int
    flip: bool


@dataclass(frozen=True, eq=False)
class TensorImages(Dataset[tuple[Tensor, int]]):
    """Labelled images, all of one size, in memory; also a map-style PyTorch data set of `(image, label)`.

    Args:
        images: uint8 [N, C, H, W], 0 is black and 255 white.
        labels: int64 [N], from 0.

    Raises:
        ConfigError: wrong types or shapes, or not as many labels as images.

    Example:
        >>> images = TensorImages(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.arange(5))
        >>> len(images), images[2][0].shape, images[2][1]
        (5, torch.Size([3, 8, 8]), 2)
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        problems = []
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            problems.append(
                f"its images must be uint8 [N, C, H, W], not {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            problems.append(f"labels must be int64 [N], not {self.labels.dtype} {list(self.labels.shape)}")
        if self.images.shape[:1] != self.labels.shape[:1]:
            problems.append(
                f"there are {amount(len(self.images), 'image')} and {amount(len(self.labels), 'label')}"
            )
        if not problems and len(self.labels) and int(self.labels.min()) < 0:
            problems.append(f"labels start at 0, not {int(self.labels.min())}")
        if problems:
            raise ConfigError("TensorImages: " + "; ".join(problems) + ".")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def subset(self, indices: Tensor) -> TensorImages:
        """The images at `indices` (int64 [M]), in that order, as a copy."""
        return TensorImages(self.images[indices], self.labels[indices])


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of full scale (0 black, 1 white).

    Args:
        images: uint8 [N, C, H, W], not empty.

    Returns:
        (means, deviations), C numbers each. A channel that never varies gets the deviation 1: it normalises
        to 0.

    Example:
        >>> images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
        >>> channel_statistics(images)
        ((0.5,), (0.5,))
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        # A histogram is exact and needs no float copy of the whole set.
        histogram = torch.zeros(256, dtype=torch.float64)
        for part in images[:, channel].split(8192):
            histogram += torch.bincount(part.reshape(-1), minlength=256)
        weight = histogram / histogram.sum()
        mean = (weight * levels).sum()
        deviation = (weight * (levels - mean).square()).sum().sqrt()
        means.append(mean.item())
        deviations.append(deviation.item() or 1.0)
    return tuple(means), tuple(deviations)


def shift_and_flip(images: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Move each image by its own offset, filling with 0, then mirror those of them that `flip` marks.

    out[n, c, y, x] = images[n, c, y − shift[n, 0], x' − shift[n, 1]], or 0 where that lies outside the image,
    with x' = W − 1 − x where flip[n] and x' = x elsewhere.

    Args:
        images: [N, C, H, W], any dtype.
        shift: int64 [N, 2]: pixels down and to the right (negative: up, to the left).
        flip: bool [N].

    Returns:
        A new tensor like `images`.

    Example:
        >>> row = torch.tensor([[[[1, 2, 3]]]])
        >>> shift_and_flip(row, torch.tensor([[0, 1]]), torch.tensor([False])).tolist()
        [[[[0, 1, 2]]]]
        >>> shift_and_flip(row, torch.tensor([[0, 1]]), torch.tensor([True])).tolist()
        [[[[2, 1, 0]]]]
    """
    N, _, H, W = images.shape
    pad = int(shift.abs().max()) if shift.numel() else 0
    padded = F.pad(images, (pad,) * 4) if pad else images
    y = torch.arange(H, device=images.device)
    x = torch.arange(W, device=images.device)
    rows = pad + y - shift[:, :1]
    columns = torch.where(flip[:, None], W - 1 - x, x) + pad - shift[:, 1:]
    item = torch.arange(N, device=images.device)
    # With the channels last, one index moves a whole pixel; the contiguous copy restores the layout.
    picked = padded.permute(0, 2, 3, 1)[item[:, None, None], rows[:, :, None], columns[:, None, :]]
    # Not contiguous(): with one channel these strides pass for contiguous *and* for channels-last, and
    # convolutions then take the channels-last kernels (slower on CPU; in oneDNN the backward pass of a 1x1
    # stride-2 convolution of 2 channels writes out of bounds there, torch 2.15).
    return picked.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


def count_batches(images: int, batch_size: int, shuffle: bool, part: tuple[int, int]) -> int:
    """How many batches a loop gives; a last training batch too small for every process's norms is dropped.

    >>> (
    ...     count_batches(9, 4, True, (0, 1)),
    ...     count_batches(9, 4, False, (0, 1)),
    ...     count_batches(10, 4, True, (0, 2)),
    ... )
    (2, 3, 2)
    """
    rank, world = part
    if not shuffle:
        return -(-(images // world + (rank < images % world)) // batch_size)
    full, rest = divmod(images, batch_size)
    return full + (rest >= 2 * world)


class Batches:
    """Normalised batches of in-memory images, in an order that only (seed, epoch) decide.

    Each `for` loop over it is one epoch and moves on to the next, so that a plain training loop shuffles anew
    every time; `set_epoch` says which epoch comes next, for a run that resumes. The order and the
    augmentation are drawn on the CPU and are the same on every device.

    When shuffled, a last batch of a single image for a process is dropped (unless `batch_size` is 1): batch
    norm cannot train on it.

    Args:
        images: the images.
        batch_size: images per batch; the last batch may be smaller.
        shuffle: a new order every epoch; otherwise the order of `images`.
        seed: of the order and the augmentation.
        augment: how images are varied, or None.
        mean: per channel, in units of full scale; subtracted.
        std: per channel, in units of full scale; divided by.
        device: where the batches are made. The images are moved there once, as uint8.
        generator: a CPU generator to draw from instead of (seed, epoch); its state is then yours to keep.
        part: (k, n): the k-th of n processes, counted from 0. Shuffled, each has its part of every batch;
            otherwise its part of the images. All parts together are what one process has.

    Yields:
        (images, labels): float32 [B, C, H, W] and int64 [B].

    Raises:
        ConfigError: a batch size below 1, or not as many means and deviations as channels.

    Example:
        >>> images = TensorImages(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.arange(5))
        >>> batches = Batches(images, 2, shuffle=True, seed=0)
        >>> len(batches), [len(labels) for _, labels in batches]
        (2, [2, 2])
    """

    def __init__(
        self,
        images: TensorImages,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        augment: Augment | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        channels = images.images.shape[1]
        mean = (0.0,) * channels if mean is None else mean
        std = (1.0,) * channels if std is None else std
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        if len(mean) != channels or len(std) != channels:
            raise ConfigError(
                f"The images have {amount(channels, 'channel')}, but there are {amount(len(mean), 'mean')} "
                f"and {amount(len(std), 'deviation')}."
            )
        self._images = images.images.to(device)
        self._labels = images.labels.to(device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.augment = augment
        self.epoch = 0
        self.start = 0
        self.part = part
        self._generator = generator
        # (value / 255 − mean) / std as one multiply-add
        deviation = torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * deviation)).float().reshape(-1, 1, 1).to(device)
        self._offset = (
            (-torch.tensor(mean, dtype=torch.float64) / deviation).float().reshape(-1, 1, 1).to(device)
        )

    def __len__(self) -> int:
        return count_batches(len(self._images), self.batch_size, self.shuffle, self.part)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The next loop over the batches is epoch `epoch`, from batch `start` on."""
        self.epoch, self.start = epoch, start

    def size(self, batch: int) -> int:
        """Images of training batch `batch`, over all processes."""
        return min(self.batch_size, len(self._images) - batch * self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Not itself a generator: the epoch must count from the moment of iter(), not from the first next().
        generator = self._generator
        if generator is None:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, self.epoch))
        self.epoch += 1
        start, self.start = self.start, 0
        return self._run(generator, start)

    def _run(self, generator: torch.Generator, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        N, device = len(self._images), self._images.device
        rank, world = self.part
        order = torch.randperm(N, generator=generator) if self.shuffle else torch.arange(N)
        if not self.shuffle:
            order = order.tensor_split(world)[rank]
        for number, batch in enumerate(order.split(self.batch_size)[: len(self)]):
            if self.augment is not None:
                pad = self.augment.pad
                shift = torch.randint(-pad, pad + 1, (len(batch), 2), generator=generator)
                # Drawn even where no image is mirrored, so that the shifts do not depend on `flip`.
                flip = torch.rand(len(batch), generator=generator) < (0.5 if self.augment.flip else 0.0)
            if number < start:  # drawn for, all the same: what follows does not depend on where a run began
                continue
            index = batch.tensor_split(world)[rank] if self.shuffle else batch
            # Without a shuffle the batch is a slice, which costs no copy of the images.
            at: Tensor | slice = (
                index.to(device) if self.shuffle else slice(int(index[0]), int(index[-1]) + 1)
            )
            images, labels = self._images[at], self._labels[at]
            if self.augment is not None:
                mine = slice(None)
                if self.shuffle:
                    first = sum(len(p) for p in batch.tensor_split(world)[:rank])
                    mine = slice(first, first + len(index))
                images = shift_and_flip(images, shift[mine].to(device), flip[mine].to(device))
            yield torch.addcmul(self._offset, images.float(), self._scale), labels.clone()
