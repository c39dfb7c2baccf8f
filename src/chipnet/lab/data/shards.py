"""WebDataset shards on disk: .tar files that hold one sample in a few members, `KEY.jpg` and `KEY.cls`.

Their headers are read once, which tells where each image lies. So they are a data set with an order and an index
like any other: split, limited, shuffled over all shards and shared out by process. This file reads no shards that
are compressed or elsewhere: for those, a loader of WebDataset's own can be given (`Loaders`).
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import torch

from chipnet.errors import ConfigError
from chipnet.lab.data.folders import problem_of, read_image
from chipnet.lab.data.foreign import from_mapping
from chipnet.lab.data.sources import PublishedData, folder

_IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff")
_PART = re.compile(r"(?<![a-z])(train|val|test)(?:id|idation)?(?![a-z])")


class Shards:
    """(PIL image, label) of the samples in .tar files, in their order; a map-style data set.

    Args:
        paths: the shards. A member is called KEY.EXTENSION; members that follow each other with one KEY are one
            sample. Of a sample, the image and `cls`, a class number in text, are read.

    Raises:
        ConfigError: a shard that cannot be read, or a sample without exactly one image and a class number.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        places: list[tuple[int, int, int]] = []  # of the image: shard, first byte, bytes
        self.targets: list[int] = []
        for number, path in enumerate(paths):
            try:
                with tarfile.open(path, "r:") as tar:
                    found = _samples(tar, path)
            except (tarfile.TarError, OSError) as error:
                raise ConfigError(
                    f"{path} is not a readable .tar file ({error}). Copy it again; compressed ones must be "
                    "unpacked to plain .tar first."
                ) from error
            places += [(number, *place) for place, _ in found]
            self.targets += [label for _, label in found]
        self.places = torch.tensor(places, dtype=torch.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        place, content = self._content(index)
        return read_image(content, place), self.targets[index]

    def problem(self, index: int) -> tuple[str, str]:
        """The place of an image, and why it cannot be read, or nothing."""
        place, content = self._content(index)
        return place, problem_of(content)

    def _content(self, index: int) -> tuple[str, io.BytesIO]:
        number, start, size = self.places[index].tolist()
        with open(self.paths[number], "rb") as file:
            file.seek(start)
            return f"{self.paths[number]}: the image at byte {start}", io.BytesIO(file.read(size))


def _samples(tar: tarfile.TarFile, path: Path) -> list[tuple[tuple[int, int], int]]:
    """((first byte, bytes) of the image, label) of every sample."""
    found: list[tuple[tuple[int, int], int]] = []
    key, image, label, seen = "", None, None, ""

    def finish() -> None:
        if not key:
            return
        if image is None or label is None:
            raise ConfigError(
                f"{path}: the sample {key!r} has {seen.strip()}; it needs an image ({', '.join(_IMAGES[:3])}, ...) "
                "and cls, the number of its class."
            )
        found.append((image, label))

    for member in tar:
        if not member.isfile():
            continue
        head, slash, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if head + slash + stem != key:
            finish()
            key, image, label, seen = head + slash + stem, None, None, ""
        extension = extension.lower()
        seen += f" {extension}"
        if extension in _IMAGES:
            image = member.offset_data, member.size
        elif extension == "cls":
            text = tar.extractfile(member).read()  # type: ignore[union-attr]
            try:
                label = int(text)
            except ValueError:
                raise ConfigError(
                    f"{path}: the class of the sample {key!r} is {text[:20]!r}; cls holds a whole number from 0."
                ) from None
    finish()
    return found


def web_dataset(data_dir: str | Path | None) -> PublishedData:
    """Folders or files called train, val and test: `train-000000.tar` or `train/000000.tar`."""
    wanted = "a folder of WebDataset shards, such as train-000000.tar and val-000000.tar"
    root = folder(data_dir, "wds", wanted)
    parts: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.tar")):
        named = set(_PART.findall(str(path.relative_to(root)).lower()))
        if len(named) != 1:
            raise ConfigError(
                f"the name of {path} says {' and '.join(sorted(named)) or 'no part'}: one of train, val and test "
                f"must be in it. wds needs {wanted}."
            )
        parts.setdefault(named.pop(), []).append(path)
    if not parts:
        raise ConfigError(
            f"{root} holds no .tar file (compressed ones must be unpacked). wds needs {wanted}."
        )
    return from_mapping(f"wds in {root}", {part: Shards(paths) for part, paths in parts.items()})
