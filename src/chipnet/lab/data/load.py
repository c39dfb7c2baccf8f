"""Data sets by name, split into training, validation and test images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from chipnet._util.given import NAME, PATH
from chipnet._util.imports import accepted, call_user, import_callable
from chipnet._util.random import OwnRandomness
from chipnet._util.text import amount, close_names
from chipnet.errors import ConfigError
from chipnet.lab.data import sources
from chipnet.lab.data.broken import check_files, without_broken
from chipnet.lab.data.folders import FolderBatches, FolderImages, folder_transform
from chipnet.lab.data.foreign import from_mapping, hugging_face, torchvision_set
from chipnet.lab.data.images import Augment, Batches, TensorImages, channel_statistics
from chipnet.lab.data.loaders import LoaderBatches, LoaderImages, Loaders, read_loaders
from chipnet.lab.data.reading import Reading, check_options
from chipnet.lab.data.shards import web_dataset
from chipnet.lab.data.sources import Images, PublishedData
from chipnet.lab.data.split import stratified_choice

Split = Literal["train", "validation", "test"]

# Of the photographs of ImageNet; what networks for image folders are nearly always trained with.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_SOURCES: dict[str, Callable[[str | Path | None], PublishedData]] = {
    "mnist": partial(sources.mnist_family, "mnist"),
    "fashion-mnist": partial(sources.mnist_family, "fashion-mnist"),
    **{name: partial(sources.cifar, name) for name in ("cifar10", "cifar100")},
    "svhn": sources.svhn,
    "tiny-imagenet": sources.tiny_imagenet,
    "image-folder": sources.image_folder,
    "hf": hugging_face,
    "wds": web_dataset,
}
_ALIASES = {
    "fashionmnist": "fashion-mnist", "cifar-10": "cifar10", "cifar-100": "cifar100", "webdataset": "wds",
}  # fmt: skip
_DECODED = ("image-folder", "hf", "wds")
_SUMMED = ("cifar10", "cifar100", "svhn")
"""Data sets whose official files have checksums."""


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, split and ready to be looped over.

    Attributes:
        name: as given to `load_data`.
        train: training images: in memory (`TensorImages`), as files (`FolderImages`), as a data set of somebody
            else's gives them (`SampleImages`), or in a loader's batches (`LoaderImages`).
        validation: images held out of the training set; choose epochs and settings by these.
        test: the official test images; for the final number only.
        num_classes: classes.
        in_channels: channels of an image.
        image_size: height and width in pixels of what the network gets.
        mean: per channel, of `train`, in units of full scale (0 black, 1 white); ImageNet's for image
            folders.
        std: likewise the standard deviation.
        class_names: one name per label.
        augment: how `loader(..., train=True)` varies images in memory.
        variation: how it varies image files: see `folder_transform`.
        held_out: indices of `validation` in the official training set, ascending; None where it has files of its
            own, or was not split here.
        chosen: likewise of `train`, where a limit left some out.
        notes: what people should know of how the splits came about.
    """

    name: str
    train: Images | LoaderImages
    validation: Images | LoaderImages
    test: Images | LoaderImages
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    augment: Augment | None = None
    held_out: Tensor | None = None
    chosen: Tensor | None = None
    variation: str = "crop-flip"
    notes: tuple[str, ...] = ()

    def split(self) -> dict[str, Any]:
        """Who is in which split, as plain JSON values: what must be stored with a run to tell its split again.

        Example:
            >>> load_data("digits", limit=20, seed=1).split()["validation"]
            [84, 745]
        """

        def listed(indices: Tensor | None) -> list[int] | None:
            return None if indices is None else indices.tolist()

        chosen = {"validation": listed(self.held_out), "train": listed(self.chosen)}
        return {"data": self.name, "counts": self.counts(), **chosen}

    def counts(self) -> dict[str, int | None]:
        """Images of each split; None where a loader cannot tell.

        Example:
            >>> load_data("digits").counts()
            {'train': 1294, 'validation': 144, 'test': 359}
        """
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {k: v.count() if isinstance(v, LoaderImages) else len(v) for k, v in parts.items()}

    def normalisation(self) -> str:
        """What images are normalised by, for people.

        Example:
            >>> load_data("digits", mean=(0.3,), std=(0.4,)).normalisation()
            'images are normalised by mean 0.3 and std 0.4'
        """
        if isinstance(self.train, LoaderImages):
            return f"the loaders of {self.name} normalise images themselves"
        mean, std = (",".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        whose = " (ImageNet's; others: --mean, --std)" if self.mean == _IMAGENET_MEAN else ""
        return f"images are normalised by mean {mean} and std {std}{whose}"

    def check_files(self) -> None:
        """Try every image file, at a fraction of what an epoch takes to decode them.

        Raises:
            ConfigError: some cannot be read; lists them.
        """
        check_files(self.name, (self.train, self.validation, self.test))

    def to_json(self) -> dict[str, object]:
        """What a network for these images must know, as plain JSON values: sizes, normalisation, labels.

        Example:
            >>> facts = load_data("digits").to_json()
            >>> facts["image_size"], facts["in_channels"], facts["class_names"][:3]
            (8, 1, ['0', '1', '2'])
        """
        return {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "class_names": list(self.class_names),
        }

    def loader(
        self,
        split: Split,
        batch_size: int,
        train: bool = False,
        seed: int = 0,
        *,
        device: torch.device | str | None = None,
        workers: int | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Batches | FolderBatches | LoaderBatches:
        """Batches of one split, normalised by `mean` and `std`.

        Args:
            split: "train", "validation" or "test".
            batch_size: images per batch; the last batch may be smaller. A single left-over image is dropped
                in training. A loader of somebody else's has batches of its own.
            train: shuffle and augment. Otherwise the order is fixed and images are not varied.
            seed: with the epoch, decides order and augmentation. Each loop is one epoch; `set_epoch(n)` sets
                the next.
            device: where the batches are; None: the CPU.
            workers: processes that decode image files (None: one per core, at most 8); unused for images in
                memory.
            part: (k, n): the k-th of n processes that train together; see `Batches`.

        Returns:
            An iterable with `len()` and `set_epoch()`, of float32 [B, C, H, W] and int64 [B].

        Raises:
            ConfigError: no such split, or a batch size below 1.

        Example:
            >>> data = load_data("digits")
            >>> images, labels = next(iter(data.loader("train", 32, train=True, seed=0)))
            >>> images.shape, images.dtype, labels.dtype
            (torch.Size([32, 1, 8, 8]), torch.float32, torch.int64)
        """
        if split not in ("train", "validation", "test"):
            raise ConfigError(f"There is no split {split!r}: it is 'train', 'validation' or 'test'.")
        images: Images | LoaderImages = getattr(self, split)
        if isinstance(images, LoaderImages):
            return LoaderBatches(images, seed=seed, device=device, part=part)
        if not isinstance(images, TensorImages):
            variation = self.variation if train else "none"
            transform = folder_transform(self.image_size, self.mean, self.std, variation)
            return FolderBatches(
                images,
                batch_size,
                transform,
                shuffle=train,
                seed=seed,
                device=device,
                workers=workers,
                part=part,
            )
        return Batches(
            images,
            batch_size,
            shuffle=train,
            seed=seed,
            augment=self.augment if train else None,
            mean=self.mean,
            std=self.std,
            device=device,
            part=part,
        )


def list_data() -> tuple[str, ...]:
    """The names that `load_data` knows, sorted.

    Example:
        >>> "digits" in list_data()
        True
    """
    return tuple(sorted(("digits", *_SOURCES)))


def identity(name: str, data_dir: str | Path | None) -> tuple[str, str | None]:
    """What tells two data sets apart: the name, and the folder where the name alone does not say what is in it.

    Example:
        >>> identity("CIFAR-10", "a") == identity("cifar10", "b")
        True
        >>> identity("image-folder", "a") == identity("image-folder", "b")
        False
    """
    if ":" not in name and not name.startswith("tv/"):
        plain = name.strip().lower().replace("_", "-")
        name = _ALIASES.get(plain, plain)
        if name in list_data() and name not in _DECODED:
            return name, None
    return name, os.path.realpath(os.path.expanduser(str(data_dir))) if data_dir else None


def load_data(
    name: str,
    data_dir: str | Path | None = None,
    *,
    seed: int = 0,
    validation: float = 0.1,
    limit: int | None = None,
    limit_test: int | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    part: tuple[int, int] = (0, 1),
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    augment: str | None = None,
    skip_broken: bool = False,
    checksum: bool = True,
) -> Data:
    """Load a data set from disk. Nothing is ever downloaded.

    | name | `data_dir` | images |
    |---|---|---|
    | `digits` | not used: part of scikit-learn | 1x8x8; a fixed stratified fifth is the test set |
    | `mnist`, `fashion-mnist` | the four idx files, plain or `.gz`, or torchvision's `.../raw` | 1x28x28 |
    | `cifar10`, `cifar100` | holds `cifar-10-batches-py`, `cifar-100-python` | 3x32x32 |
    | `svhn` | holds `train_32x32.mat` and `test_32x32.mat` | 3x32x32 |
    | `tiny-imagenet` | `tiny-imagenet-200`; its validation set is the test set | 3x64x64, 1.3 GB in memory |
    | `image-folder` | `train/CLASS/` and `val/CLASS/` or `test/CLASS/`, or `CLASS/` | files, decoded then |
    | `hf` | a `datasets.DatasetDict`, as `save_to_disk` wrote it | decoded while training |
    | `wds` | WebDataset shards: `train-000000.tar`, `val-000000.tar`, ... | decoded while training |
    | `tv/NAME` | as the torchvision data set NAME likes | decoded while training |
    | `module:callable` | as the callable likes | it returns a `Data`, a mapping of data sets, or loaders |

    The validation set is a stratified part of the training set, chosen by `seed`; an image folder that has
    both `val` and `test` uses `val`. Of one that has class folders only, in `train` or by themselves, a fixed
    stratified fifth is the test set. A `module:callable` is called with those of `data_dir`, `seed`,
    `validation`, `limit`, `limit_test`, `image_size`, `batch_size`, `part`, `mean`, `std` and `augment` that it
    takes, and with random generators seeded by `seed`. It returns a `Data`; a mapping with the map-style data sets
    `train`, `test` and perhaps `validation`, of (image, label); or loaders: `Loaders`, or a tuple (train,
    validation[, test]).

    Args:
        name: which data set; case does not matter, `_` is `-`.
        data_dir: its folder.
        seed: chooses the validation images and, with a limit, the images kept.
        validation: fraction of the training images held out, within (0, 1).
        limit: keep only this many training images, stratified; the validation set, where it was held out of
            the training set, shrinks in proportion.
        limit_test: keep only this many test images, stratified.
        image_size: of images decoded while training: height and width after the transforms, by default 224.
        batch_size: for a callable that takes it: images of one batch of its training loader, in each process.
        part: for a callable that takes it: (k, n), the k-th of n processes that train together.
        mean, std: what images in 0 to 1 are normalised by: a number for each channel, or one for all. By default
            those of the training images, where they are in memory, and ImageNet's for image files.
        augment: how training images vary: "none", "flip", "crop", "crop-flip", or, for image files, "trivial"
            (crop, flip, then TrivialAugmentWide of Müller and Hutter 2021). By default the data set's own.
        skip_broken: try all image files now, and leave out those that cannot be read. Otherwise one is an error
            when it is met; `Data.check_files` finds all.
        checksum: whether files of cifar10, cifar100 and svhn must be the official ones. Either way no code of a
            file is run.

    Returns:
        The data; the three splits share no image.

    Raises:
        ConfigError: an unknown name, an option out of range, or a folder or file that is missing, empty,
            truncated, corrupt or inconsistent; the message says which files were looked for.

    Example:
        >>> data = load_data("digits", seed=0)
        >>> len(data.train), len(data.validation), len(data.test)
        (1294, 144, 359)
        >>> len(load_data("digits", limit=100).train)
        100
    """
    NAME.check("the name of a data set", name)
    if data_dir is not None:
        PATH.check("data_dir", data_dir)
    check_options(seed, validation, limit, limit_test, image_size, mean, std, augment)
    reading = Reading(image_size, mean, std, augment, skip_broken)
    plain = name.strip().lower().replace("_", "-")
    key = _ALIASES.get(plain, plain)
    if not checksum and key not in _SUMMED:
        raise ConfigError(f"checksum is an option of {', '.join(_SUMMED)}; {name} has no checksums.")
    if ":" in name:
        given = {"seed": seed, "validation": validation, "batch_size": batch_size, "part": part}
        wanted = {"data_dir": data_dir, "limit": limit, "limit_test": limit_test, "image_size": image_size}
        return _from_callable(name, given, wanted | {"mean": mean, "std": std, "augment": augment}, reading)
    if name.startswith("tv/"):
        return _split(name, torchvision_set(name[3:], data_dir), seed, validation, limit, limit_test, reading)
    if key not in list_data():
        close = close_names(key, list_data())
        raise ConfigError(
            f"There is no data set {name!r}. {close and close + ' '}"
            f"Known: {', '.join(list_data())}; module:callable, for example mypackage.data:load, gives "
            f"your own."
        )
    if image_size is not None and key not in _DECODED:
        raise ConfigError(
            f"image_size is an option of {', '.join(_DECODED)} and tv/NAME; the images of {key} have one size."
        )
    if key == "digits" and data_dir is not None:
        raise ConfigError("digits is part of scikit-learn and takes no data_dir; leave it out.")
    if key == "digits":
        source = sources.digits()
    elif key in _SUMMED:
        source = _SOURCES[key](data_dir, checksum=checksum)  # type: ignore[call-arg]
    else:
        source = _SOURCES[key](data_dir)
    return _split(key, source, seed, validation, limit, limit_test, reading)


def _split(
    name: str,
    source: PublishedData,
    seed: int,
    validation: float,
    limit: int | None,
    limit_test: int | None,
    reading: Reading,
) -> Data:
    train, held_out, test = source.train, source.validation, source.test
    out: Tensor | None = None
    rest: Tensor | None = None
    if held_out is None:
        total = len(train)
        count = max(1, round(validation * total))
        if total - count < 2:
            raise ConfigError(
                f"{name} has {amount(total, 'training image')}: too few to hold out {validation:g} of them."
            )
        out, rest = stratified_choice(train.labels, count, seed)
        held_out, train = train.subset(out), train.subset(rest)
        if limit is not None and limit < len(train):
            keep = max(1, round(limit * len(held_out) / len(train)))
            out = out[stratified_choice(held_out.labels, keep, seed)[0]]
            held_out = _reduce(held_out, keep, seed)
    chosen = None
    if limit is not None and limit < len(train):
        kept = stratified_choice(train.labels, limit, seed)[0]
        chosen = kept if rest is None else rest[kept]
    train = _reduce(train, limit, seed)
    test = _reduce(test, limit_test, seed)
    for part, images, minimum in (("training", train, 2), ("validation", held_out, 1), ("test", test, 1)):
        if len(images) < minimum:
            raise ConfigError(f"{name} has {len(images)} {part} images; it takes at least {minimum}.")
    notes = list(source.notes)
    if source.validation is None:
        notes.append(f"{len(held_out):,} of the training images are held out to choose epochs (validation)")
    if reading.skip_broken:
        (train, held_out, test), stayed, said = without_broken(name, (train, held_out, test))
        notes += said
        before = chosen if chosen is not None else rest
        if said:
            chosen = stayed[0] if before is None else before[stayed[0]]
        out = None if out is None else out[stayed[1]]
    data = _finish(name, source, train, held_out, test, reading)
    return replace(data, held_out=out, chosen=chosen, notes=tuple(notes))


def _finish(
    name: str, source: PublishedData, train: Images, held_out: Images, test: Images, reading: Reading
) -> Data:
    if name == "tiny-imagenet":
        # Decoded after the split and the limits, so that only the images in use are read.
        train, held_out, test = (
            sources.decoded_images(part, 64) if isinstance(part, FolderImages) else part
            for part in (train, held_out, test)
        )
    if isinstance(train, TensorImages):
        usual = channel_statistics(train.images)
        channels, image_size = train.images.shape[1], train.images.shape[2]
    else:
        usual, channels, image_size = (_IMAGENET_MEAN, _IMAGENET_STD), 3, reading.image_size or 224
    mean, std = reading.statistics(channels, usual)
    return Data(
        name=name,
        train=train,
        validation=held_out,
        test=test,
        num_classes=len(source.class_names),
        in_channels=channels,
        image_size=image_size,
        mean=mean,
        std=std,
        class_names=source.class_names,
        augment=reading.varied(name, source.augment),
        variation=reading.augment or "crop-flip",
    )


def _reduce(images: Images, count: int | None, seed: int) -> Images:
    if count is None or count >= len(images):
        return images
    return images.subset(stratified_choice(images.labels, count, seed)[0])


def _from_callable(reference: str, options: dict[str, Any], wanted: dict[str, Any], reading: Reading) -> Data:
    build = import_callable(reference)
    wanted = {key: value for key, value in wanted.items() if value is not None}
    options = wanted | {key: value for key, value in options.items() if value is not None}
    taken = accepted(build, options)
    # Defaults may be left unread, but what the user asked for must not be dropped in silence.
    ignored = [key for key in wanted if key not in taken]
    data = None
    if "data_dir" not in ignored:
        with OwnRandomness(options["seed"]):
            data = call_user(reference, build, taken)
    if isinstance(data, Mapping):  # split, limited and sized here, unless the callable has
        source, rest = from_mapping(reference, data), {key: wanted[key] for key in ignored}
        return _split(
            reference,
            source,
            options["seed"],
            options["validation"],
            rest.get("limit"),
            rest.get("limit_test"),
            reading,
        )
    if ignored:
        raise ConfigError(
            f"{reference!r} takes no {' and no '.join(ignored)}: leave it out or add the parameter."
        )
    if isinstance(data, (tuple, list)) and len(data) in (2, 3):
        data = Loaders(*data)
    if isinstance(data, Loaders):
        return _from_loaders(reference, data, options["part"], "part" in taken)
    if not isinstance(data, Data):
        raise ConfigError(
            f"{reference!r} returned a {type(data).__name__}; it must return a mapping with the data sets train "
            "and test (and validation), a tuple of loaders (train, validation, test), or a chipnet.lab.data.Data."
        )
    return data


def _from_loaders(name: str, loaders: Loaders, part: tuple[int, int], shares: bool) -> Data:
    parts, names = read_loaders(name, loaders, part[1], shares)
    channels, height, _ = parts["train"].shape
    return Data(
        name=name,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        num_classes=len(names),
        in_channels=channels,
        image_size=height,
        mean=tuple(loaders.mean or (0.0,) * channels),
        std=tuple(loaders.std or (1.0,) * channels),
        class_names=names,
    )
