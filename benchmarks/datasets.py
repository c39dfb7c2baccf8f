"""Data sets made from Fashion-MNIST for benchmarks, as `module:callable` of `--data` and of bench configurations.

| callable | what |
|---|---|
| `padded` | 32×32 in three equal channels, as the networks of the CIFAR family see CIFAR |
| `first_half`, `second_half` | classes 0 to 4, classes 5 to 9: two tasks for one architecture |
| `small`, `small_first_half`, `small_second_half` | all classes and the halves at 14×14 |
| `pairs` | two garments side by side, each squeezed to half its width: 100 classes |
| `small_pairs` | the same at 14×14: a quarter of the work, and harder |
| `small_pairs_development` | the same, tested on validation images that it leaves unused: to choose methods by |
| `small_development`, `small_second_half_development` | the same of `small` and `small_second_half` |
| `small_pairs_first_half`, `small_pairs_second_half` | `small_pairs` within half of the garments: 25 classes |

Each takes `data_dir`, `seed`, `validation`, `limit` and `limit_test` as `chipnet.lab.data.load_data` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chipnet.lab.data import Augment, Data, load_data
from chipnet.lab.data.images import TensorImages, channel_statistics
from chipnet.lab.data.split import stratified_choice

Change = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Images and labels of one split, and a seed, to those of the new data set."""


def _pad(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    return F.pad(images, (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous(), labels


def _half(first: int) -> Change:
    def change(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        chosen = ((labels >= first) & (labels < first + 5)).nonzero().squeeze(1)
        return images[chosen], labels[chosen] - first

    return change


def _side_by_side(classes: int) -> Change:
    def change(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        partner = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        narrow = F.avg_pool2d(images.float(), (1, 2)).round().to(torch.uint8)
        return torch.cat([narrow, narrow[partner]], dim=3), classes * labels + labels[partner]

    return change


def _then(first: Change, second: Change) -> Change:
    return lambda images, labels, seed: second(*first(images, labels, seed), seed)


def _same(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    return images, labels


def _small(change: Change) -> Change:
    """At half the height and half the width."""

    def smaller(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        images, labels = change(images, labels, seed)
        return F.avg_pool2d(images.float(), 2).round().to(torch.uint8), labels

    return smaller


def _task(
    name: str,
    change: Change,
    names: Callable[[Sequence[str]], Sequence[str]],
    flip: bool = True,
    pad: int = 2,
    development: bool = False,
) -> Callable[..., Data]:
    """A loader of Fashion-MNIST with every split changed; `names` makes the classes of its classes.

    ``development``: test on what is left of the validation split.
    """

    def load(
        data_dir: str,
        seed: int = 0,
        validation: float = 0.1,
        limit: int | None = None,
        limit_test: int | None = None,
    ) -> Data:
        data = load_data("fashion-mnist", data_dir, seed=seed, validation=validation)
        held = None if limit is None else max(1, round(limit * validation / (1 - validation)))
        parts: dict[str, TensorImages] = {}
        for split, count in (("train", limit), ("validation", held), ("test", limit_test)):
            source = getattr(data, split)
            # Test images are the same whatever the seed.
            images, labels = change(source.images, source.labels, 0 if split == "test" else seed)
            count = len(labels) if count is None else min(count, len(labels))
            chosen, rest = stratified_choice(labels, count, seed)
            parts[split] = TensorImages(images[chosen], labels[chosen])
            if development and split == "validation":
                unused = TensorImages(images[rest], labels[rest])
        if development:
            parts["test"] = unused
        mean, std = channel_statistics(parts["train"].images)
        classes = tuple(names(data.class_names))
        return dataclasses.replace(
            data,
            name=name,
            **parts,
            num_classes=len(classes),
            in_channels=parts["train"].images.shape[1],
            image_size=parts["train"].images.shape[2],
            mean=mean,
            std=std,
            class_names=classes,
            augment=Augment(pad=pad, flip=flip),
            held_out=None,
            chosen=None,
        )

    return load


padded = _task("fashion-mnist padded", _pad, tuple)
first_half = _task("fashion-mnist 0-4", _half(0), lambda names: names[:5])
second_half = _task("fashion-mnist 5-9", _half(5), lambda names: names[5:])
small = _task("fashion-mnist 14x14", _small(_same), tuple, pad=1)
small_first_half = _task("fashion-mnist 0-4 14x14", _small(_half(0)), lambda names: names[:5], pad=1)
small_second_half = _task("fashion-mnist 5-9 14x14", _small(_half(5)), lambda names: names[5:], pad=1)


def _pairs(names: Sequence[str]) -> Sequence[str]:
    return [f"{a} | {b}" for a in names for b in names]


# Mirrored, the right garment would be the left one.
pairs = _task("fashion-mnist pairs", _side_by_side(10), _pairs, flip=False)
small_pairs = _task("fashion-mnist pairs 14x14", _small(_side_by_side(10)), _pairs, flip=False, pad=1)
small_development = _task("fashion-mnist 14x14, development", _small(_same), tuple, pad=1, development=True)
small_second_half_development = _task(
    "fashion-mnist 5-9 14x14, development",
    _small(_half(5)),
    lambda names: names[5:],
    pad=1,
    development=True,
)
small_pairs_first_half = _task(
    "fashion-mnist pairs of 0-4 14x14",
    _small(_then(_half(0), _side_by_side(5))),
    lambda names: _pairs(names[:5]),
    flip=False,
    pad=1,
)
small_pairs_second_half = _task(
    "fashion-mnist pairs of 5-9 14x14",
    _small(_then(_half(5), _side_by_side(5))),
    lambda names: _pairs(names[5:]),
    flip=False,
    pad=1,
)
small_pairs_development = _task(
    "fashion-mnist pairs 14x14, development",
    _small(_side_by_side(10)),
    _pairs,
    flip=False,
    pad=1,
    development=True,
)
