"""Image files that cannot be read: all of them are found before anything is trained.

Every file is decoded once, JPEGs at an eighth of their size: that reads all of a file, in a fraction of the time
that an epoch takes to decode it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from chipnet._util.text import amount, few
from chipnet.errors import ConfigError
from chipnet.lab.data.folders import FolderImages, SampleImages
from chipnet.lab.data.shards import Shards
from chipnet.lab.data.sources import Images

_LISTED = 5
"""So many are named in a message; the rest are counted."""


def check_files(name: str, parts: Sequence[Any]) -> None:
    """Try the image files of a data set's parts; images that are in no files are left alone.

    Raises:
        ConfigError: some cannot be read; lists them.
    """
    if said := _said([problem for images in parts for problem in _problems(images)]):
        raise ConfigError(f"{name}: {said}. Replace or delete them, or leave them out: --skip-broken.")


def without_broken(
    name: str, parts: tuple[Images, Images, Images]
) -> tuple[tuple[Images, Images, Images], list[Tensor], list[str]]:
    """Training, validation and test images without those that cannot be read.

    Returns:
        The parts, which of their images stayed (int64 indices), and what was left out, for people.

    Raises:
        ConfigError: too few are left.
    """
    problems = [_problems(images) for images in parts]
    said = _said([problem for part in problems for problem in part])
    kept = [
        torch.tensor([i for i, (_, why) in enumerate(part) if not why], dtype=torch.int64)
        if part
        else torch.arange(len(images))
        for part, images in zip(problems, parts, strict=True)
    ]
    if not said:
        return parts, kept, []
    if any(len(k) < minimum for k, minimum in zip(kept, (2, 1, 1), strict=True)):
        raise ConfigError(f"{name}: {said}. Too few images are left.")
    train, held_out, test = (images.subset(k) for images, k in zip(parts, kept, strict=True))
    return (train, held_out, test), kept, [f"left out: {said}"]


def _said(problems: Sequence[tuple[str, str]]) -> str:
    """What is broken, or nothing."""
    broken = [f"{place} ({why})" for place, why in problems if why]
    some = few(broken, _LISTED, "; ", "; and ")
    return (
        f"{len(broken):,} of {amount(len(problems), 'image file')} cannot be read: {some}" if broken else ""
    )


def _problems(images: Any) -> list[tuple[str, str]]:
    """(place, what is wrong with it or nothing) of every image that lies in a file."""
    files: FolderImages | Shards
    places: Sequence[int]
    if isinstance(images, FolderImages):
        files, places = images, range(len(images))
    elif isinstance(images, SampleImages) and isinstance(images.samples, Shards):
        files, places = images.samples, images.indices.tolist()
    else:
        return []
    with ThreadPoolExecutor() as pool:  # decoders run outside Python's lock
        return list(pool.map(files.problem, places))
