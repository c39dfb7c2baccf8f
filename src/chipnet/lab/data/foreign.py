"""Data sets of other libraries: torchvision's by name, Hugging Face's from disk, and the user's own.

This file turns each into a `PublishedData`; what is wrong with them is said here, before any training.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chipnet._util.imports import optional_import
from chipnet._util.text import amount, close_names
from chipnet.errors import ConfigError
from chipnet.lab.data.folders import SampleImages
from chipnet.lab.data.sources import PublishedData, folder


def torchvision_set(name: str, data_dir: str | Path | None) -> PublishedData:
    """A classification data set of `torchvision.datasets`, as it lies on disk."""
    datasets = optional_import("torchvision.datasets", needed_for=f"tv/{name}", install="torchvision")
    if name not in datasets.__all__ or not inspect.isclass(getattr(datasets, name)):
        meant = close_names(name, datasets.__all__, 0.4) or "See torchvision.datasets."
        raise ConfigError(f"torchvision has no data set {name!r}. {meant}")
    root = folder(data_dir, f"tv/{name}", f"the folder that torchvision.datasets.{name} takes as its root")
    reader = getattr(datasets, name)
    known = inspect.signature(reader).parameters
    if "train" in known:
        choices: list[tuple[str, list[Any]]] = [("train", [True]), ("train", [False])]
    elif "split" in known:
        choices = [("split", ["train"]), ("split", ["test", "val", "valid"])]
    else:
        raise ConfigError(
            f"torchvision.datasets.{name} has no training and test part. Load it in a module:callable that returns "
            "{'train': ..., 'test': ...}."
        )
    fixed = {"download": False} if "download" in known else {}
    parts = []
    for option, values in choices:
        errors = []
        for value in values:
            try:
                parts.append(reader(str(root), **{option: value}, **fixed))
                break
            except (RuntimeError, FileNotFoundError, ValueError) as error:
                errors.append(f"{option}={value!r}: {' '.join(str(error).split())}")
        else:
            raise ConfigError(
                f"torchvision.datasets.{name} cannot read {root} ({'; '.join(errors)}). Nothing is downloaded here."
            )
    return from_mapping(f"tv/{name}", {"train": parts[0], "test": parts[1]})


def hugging_face(data_dir: str | Path | None) -> PublishedData:
    """A `datasets.DatasetDict` that `save_to_disk` wrote: one column of images, one of class labels."""
    datasets = optional_import("datasets", needed_for="The data set hf", install="datasets")
    wanted = "the folder of a DatasetDict, written by its save_to_disk"
    root = folder(data_dir, "hf", wanted)
    try:
        found = datasets.load_from_disk(str(root))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{root} is no data set on disk ({error}). hf needs {wanted}.") from error
    if not isinstance(found, Mapping):
        raise ConfigError(f"{root} holds one split; hf needs {wanted}, with train and test.")
    return from_mapping(
        f"hf in {root}", {name: _Columns(part, str(root), datasets) for name, part in found.items()}
    )


class _Columns:
    """(image, label) of a Hugging Face split, by the types of its columns."""

    def __init__(self, split: Any, where: str, datasets: Any) -> None:
        self.split = split
        self.image = self._only(datasets.Image, "images", where)
        self.label = self._only(datasets.ClassLabel, "class labels", where)
        self.classes = list(split.features[self.label].names)
        self.targets = list(split[self.label])

    def _only(self, kind: type, what: str, where: str) -> str:
        names = [name for name, feature in self.split.features.items() if isinstance(feature, kind)]
        if len(names) != 1:
            columns = ", ".join(f"{n}: {type(f).__name__}" for n, f in self.split.features.items())
            raise ConfigError(
                f"{where} has {len(names)} columns of {what}; one is needed. Its columns are {columns}. Cast or "
                "drop columns with datasets' cast_column and remove_columns."
            )
        return names[0]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.split[index]
        return row[self.image], row[self.label]


def from_mapping(name: str, parts: Mapping[str, Any]) -> PublishedData:
    """Map-style data sets of (image, label) by part: train, and test or validation or both."""
    parts = {{"val": "validation", "valid": "validation"}.get(k, k): v for k, v in parts.items()}
    if "train" not in parts or not {"test", "validation"} & set(parts):
        raise ConfigError(
            f"{name} has {', '.join(parts) or 'no parts'}; it takes train, and test or validation or both."
        )
    images = {}
    for part in ("train", "validation", "test"):
        if part not in parts:
            continue
        samples = parts[part]
        if not hasattr(samples, "__getitem__") or not hasattr(samples, "__len__"):
            raise ConfigError(
                f"{name}: {part} is a {type(samples).__name__}, without len() or [index]. Return data sets, or "
                "loaders of batches as a tuple (train, validation, test) or chipnet.lab.data.Loaders."
            )
        labels = _labels(name, part, samples)
        images[part] = SampleImages(samples, labels, torch.arange(len(labels)))
    classes = getattr(parts["train"], "classes", None)
    count = int(images["train"].labels.max()) + 1
    names = tuple(map(str, classes)) if classes is not None else tuple(map(str, range(count)))
    for part, found in images.items():
        low, high = int(found.labels.min()), int(found.labels.max())
        if low < 0 or high >= len(names):
            raise ConfigError(
                f"{name}: the labels of {part} run from {low} to {high}, and there are "
                f"{amount(len(names), 'class')}: they must be 0 to {len(names) - 1}."
            )
    test = images.get("test", images.get("validation"))
    assert test is not None
    return PublishedData(
        images["train"], test, names, None, images.get("validation") if "test" in images else None
    )


def _labels(name: str, part: str, samples: Any) -> Tensor:
    """int64 [N]: the data set's own list where it has one, else by going through it once."""
    if not len(samples):
        raise ConfigError(f"{name}: {part} is empty.")
    for attribute in ("targets", "labels", "_labels"):
        listed = getattr(samples, attribute, None)
        if listed is not None and len(listed) == len(samples):
            break
    else:
        first = samples[0]
        if not isinstance(first, (tuple, list)) or len(first) != 2:
            raise ConfigError(
                f"{name}: {part} gives {type(first).__name__}, not (image, label). Wrap it so that it does."
            )
        listed = [samples[i][1] for i in range(len(samples))]
    try:
        labels = torch.as_tensor([int(v) for v in listed], dtype=torch.int64)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{name}: the labels of {part} are {type(listed[0]).__name__}; classes are whole numbers from 0."
        ) from None
    return labels
