"""One reader per format: from a folder to a data set's official training and test images.

Readers look for every file they need before they read any, and report all that are missing at once. They know
nothing of validation sets, seeds or batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipnet._util.imports import optional_import
from chipnet._util.text import amount
from chipnet.errors import ConfigError
from chipnet.lab.data.folders import FolderImages, SampleImages, read_image
from chipnet.lab.data.idx import read_idx
from chipnet.lab.data.images import Augment, TensorImages
from chipnet.lab.data.pickles import plain_pickle
from chipnet.lab.data.split import stratified_choice

Images = TensorImages | FolderImages | SampleImages

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_TEST_SEED, _TEST_PART = 0, 0.2
"""A fixed stratified fifth is the test set where there is none. It is part of the data set: it does not follow the
run's seed."""


@dataclass(frozen=True)
class PublishedData:
    """A data set as published: training and test images, and validation images where it has a third set."""

    train: Images
    test: Images
    class_names: tuple[str, ...]
    augment: Augment | None
    validation: Images | None = None
    notes: tuple[str, ...] = ()
    """What people should know of how it was read."""


def folder(data_dir: str | Path | None, name: str, wanted: str) -> Path:
    """`data_dir` as an existing, non-empty folder, or a ConfigError that says what to give."""
    if data_dir is None:
        raise ConfigError(f"{name} needs data_dir, {wanted}. Nothing is downloaded.")
    path = Path(data_dir).expanduser()
    if not path.exists():
        raise ConfigError(f"data_dir {path} does not exist. {name} needs {wanted}.")
    if not path.is_dir():
        raise ConfigError(f"data_dir {path} is a file, not a folder. {name} needs {wanted}.")
    if not any(path.iterdir()):
        raise ConfigError(f"data_dir {path} is empty. {name} needs {wanted}.")
    return path


def digits() -> PublishedData:
    """scikit-learn's 1,797 digits of 8x8 pixels; 359 of them, a fixed stratified fifth, are the test set."""
    datasets = optional_import("sklearn.datasets", needed_for="The data set digits", install="scikit-learn")
    bunch = datasets.load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(
        1
    )  # levels 0 to 16
    everything = TensorImages(images, torch.from_numpy(bunch.target.astype(np.int64)))
    test, train = stratified_choice(everything.labels, round(_TEST_PART * len(everything)), _TEST_SEED)
    return PublishedData(
        everything.subset(train), everything.subset(test), _DIGITS, Augment(pad=1, flip=False)
    )


def mnist_family(name: str, data_dir: str | Path | None) -> PublishedData:
    """MNIST or Fashion-MNIST from its four idx files."""
    fashion = name == "fashion-mnist"
    sub = "FashionMNIST" if fashion else "MNIST"
    wanted = (
        "a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
        f"t10k-labels-idx1-ubyte (plain or .gz), or one with torchvision's {sub}/raw inside"
    )
    if fashion:
        package = "dataset-fashion-mnist"
        wanted += f"; the Debian package {package} has them (`dpkg -L {package}` names the folder)"
    root = folder(data_dir, name, wanted)
    places = [root, root / sub / "raw", root / "raw"]
    found: dict[str, Path] = {}
    for stem, kind in (
        ("train-images", "idx3"),
        ("train-labels", "idx1"),
        ("t10k-images", "idx3"),
        ("t10k-labels", "idx1"),
    ):
        plain = f"{stem}-{kind}-ubyte"
        names = [plain, plain + ".gz", f"{stem}.{kind}-ubyte", f"{stem}.{kind}-ubyte.gz"]
        here = [place / spelling for place in places for spelling in names if (place / spelling).is_file()]
        found[stem] = here[0] if here else Path(plain)
    missing = [path.name for path in found.values() if not path.is_file()]
    if missing:
        raise ConfigError(
            f"{name}: not found: {', '.join(missing)} (nor with .gz), looked for in {_join(places)}. It "
            f"needs {wanted}."
        )
    split = {}
    for part in ("train", "t10k"):
        images = read_idx(found[f"{part}-images"], 3).unsqueeze(1)
        labels = read_idx(found[f"{part}-labels"], 1).long()
        if len(images) != len(labels):
            raise ConfigError(
                f"{found[f'{part}-images']} holds {amount(len(images), 'image')} but "
                f"{found[f'{part}-labels']} holds {amount(len(labels), 'label')}: they are not of one data set."
            )
        if len(labels) and int(labels.max()) > 9:
            raise ConfigError(
                f"{found[f'{part}-labels']} has the label {int(labels.max())}; {name} has 0 to 9."
            )
        split[part] = TensorImages(images, labels)
    if split["train"].images.shape[1:] != split["t10k"].images.shape[1:]:
        raise ConfigError(
            f"{name}: training and test images differ in size in {found['train-images'].parent}."
        )
    class_names = _CLOTHES if fashion else _DIGITS
    return PublishedData(split["train"], split["t10k"], class_names, Augment(pad=2, flip=fashion))


def cifar(name: str, data_dir: str | Path | None, checksum: bool = True) -> PublishedData:
    """CIFAR-10 or CIFAR-100 from the files of the official "python version". They are pickles: only arrays and
    plain values are read from them, and no code of theirs is run."""
    datasets = optional_import(
        "torchvision.datasets", needed_for=f"The data set {name}", install="torchvision"
    )
    reader = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    base, archive = reader.base_folder, reader.filename
    wanted = f"the folder that holds {base} (or {base} itself), which is what {archive} unpacks to"
    root = folder(data_dir, name, wanted)
    sums = dict([*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])])
    if not (root / base).is_dir() and root.name == base:
        root = root.parent
    if not (root / base).is_dir():
        hint = f" Unpack it: tar xzf {root / archive} -C {root}" if (root / archive).is_file() else ""
        raise ConfigError(f"There is no folder {base} in {root}. {name} needs {wanted}.{hint}")
    _require(root / base, list(sums), name)
    other = _check_sums(root / base, sums, name, f"Unpack {archive} again", checksum)
    classes = plain_pickle(root / base / reader.meta["filename"]).get(reader.meta["key"])
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise ConfigError(
            f"{root / base / reader.meta['filename']} has no list {reader.meta['key']!r} of names."
        )
    train, test = (
        _cifar_part([root / base / file for file, _ in listed], len(classes))
        for listed in (reader.train_list, reader.test_list)
    )
    return PublishedData(train, test, tuple(classes), Augment(pad=4, flip=True), notes=other)


def _cifar_part(paths: list[Path], classes: int) -> TensorImages:
    images: list[Tensor] = []
    labels: list[int] = []
    for path in paths:
        found = plain_pickle(path)
        data, listed = found.get("data"), found.get("labels", found.get("fine_labels")) or []
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
            raise ConfigError(f"{path} has no 'data' of bytes, 3,072 an image: it is not of CIFAR's format.")
        right = isinstance(listed, list) and len(listed) == len(data)
        if not right or not all(type(v) is int and 0 <= v < classes for v in listed):
            raise ConfigError(
                f"{path} has no label from 0 to {classes - 1} for each of its {amount(len(data), 'image')}."
            )
        images.append(torch.from_numpy(data.reshape(-1, 3, 32, 32)))
        labels += listed
    return TensorImages(torch.cat(images), torch.tensor(labels, dtype=torch.int64))


def _check_sums(root: Path, sums: Mapping[str, str], name: str, again: str, refuse: bool) -> tuple[str, ...]:
    """Refuse files that are not the official ones, or say which they are."""
    integrity = optional_import("torchvision.datasets.utils", needed_for=name, install="torchvision")
    other = [
        str(root / file) for file, md5 in sums.items() if not integrity.check_integrity(root / file, md5)
    ]
    if other and not refuse:
        return (f"without the official checksum, read all the same (--no-checksum): {', '.join(other)}",)
    if other:
        have = (
            "does not have the checksum of the official one"
            if len(other) == 1
            else ("do not have the checksums of the official ones")
        )
        raise ConfigError(
            f"{name}: {', '.join(other)} {have}, so what is there is truncated or changed. {again}; or, if these "
            "are meant to be others of the same format: --no-checksum."
        )
    return ()


def svhn(data_dir: str | Path | None, checksum: bool = True) -> PublishedData:
    """SVHN's cropped digits (format 2); the "extra" images are not used."""
    datasets = optional_import("torchvision.datasets", needed_for="The data set svhn", install="torchvision")
    io = optional_import("scipy.io", needed_for="The data set svhn", install="scipy")
    wanted = "a folder with train_32x32.mat and test_32x32.mat"
    root = folder(data_dir, "svhn", wanted)
    _require(root, ["train_32x32.mat", "test_32x32.mat"], "svhn")
    sums = {file: md5 for _, file, md5 in (datasets.SVHN.split_list[part] for part in ("train", "test"))}
    again = "Get them again from http://ufldl.stanford.edu/housenumbers/"
    other = _check_sums(root, sums, "svhn", again, checksum)
    parts = []
    for path in (root / "train_32x32.mat", root / "test_32x32.mat"):
        try:
            found = io.loadmat(path)
            pixels, labels = found["X"], found["y"].astype(np.int64).reshape(-1)
        except Exception as error:  # bytes that are no such file can fail in many ways
            raise ConfigError(f"{path} is not a file of SVHN's format ({error}).") from error
        if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)) or labels.max() > 10:
            raise ConfigError(f"{path} is not a file of SVHN's format: X is {pixels.dtype} {pixels.shape}.")
        # The digit 0 has the label 10.
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
        parts.append(TensorImages(images, torch.from_numpy(labels % 10)))
    return PublishedData(parts[0], parts[1], _DIGITS, Augment(pad=4, flip=False), notes=other)


def tiny_imagenet(data_dir: str | Path | None) -> PublishedData:
    """Tiny ImageNet's files; the official validation set is the test set, whose own labels were never
    published.
    """
    wanted = "the folder tiny-imagenet-200 (or the one that holds it) with wnids.txt, train/ and val/"
    root = folder(data_dir, "tiny-imagenet", wanted)
    if not (root / "wnids.txt").is_file() and (root / "tiny-imagenet-200").is_dir():
        root = root / "tiny-imagenet-200"
    _require(root, ["wnids.txt", "train", "val/images", "val/val_annotations.txt"], "tiny-imagenet")
    wnids = tuple(sorted(set((root / "wnids.txt").read_text().split())))
    index = {wnid: i for i, wnid in enumerate(wnids)}
    train = [(p, index[w]) for w in wnids for p in _image_files(root / "train" / w / "images")]
    empty = [w for w in wnids if not _image_files(root / "train" / w / "images")]
    if empty:
        raise ConfigError(
            f"tiny-imagenet: no images for {len(empty)} of the {amount(len(wnids), 'class')} of wnids.txt; "
            f"the first: {root / 'train' / empty[0] / 'images'}. Unpack tiny-imagenet-200.zip again."
        )
    annotations = root / "val" / "val_annotations.txt"
    test = []
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in index:
            raise ConfigError(
                f"{annotations}, line {number}: wanted FILE<tab>WNID with a WNID of wnids.txt: {line!r}."
            )
        test.append((root / "val" / "images" / fields[0], index[fields[1]]))
    absent = [p for p, _ in test if not p.is_file()]
    if absent or not test:
        what = (
            f"missing: {amount(len(absent), 'image')}, the first is {absent[0]}"
            if absent
            else "it lists no images"
        )
        raise ConfigError(f"{annotations}: {what}. Unpack tiny-imagenet-200.zip again.")
    return PublishedData(_files(train), _files(test), _words(root, wnids), Augment(pad=8, flip=True))


def image_folder(data_dir: str | Path | None) -> PublishedData:
    """A folder per class, in DIR/train and in DIR/val or DIR/test (both: val validates, test tests); or in
    DIR/train alone, or in DIR: then a fixed fifth is the test set."""
    datasets = optional_import(
        "torchvision.datasets.folder", needed_for="Image folders", install="torchvision"
    )
    wanted = (
        "a folder with train/CLASS/*.jpg (or .png, ...) and val/CLASS/ or test/CLASS/, or with CLASS/ alone"
    )
    root = folder(data_dir, "image-folder", wanted)
    parts = [part for part in ("train", "val", "test") if (root / part).is_dir()]
    if not parts:
        parts = ["."]  # the classes themselves
    elif "train" not in parts:
        raise ConfigError(f"{root} has {' and '.join(parts)}, and no train. image-folder needs {wanted}.")
    first = parts[0]
    folders = {
        part: sorted(p.name for p in (root / part).iterdir() if p.is_dir() and p.name[0] != ".")
        for part in parts
    }
    names = folders[first]
    if first == "." and (inside := [n for n in names if (root / n / "train").is_dir()]):
        raise ConfigError(
            f"{root} holds data sets, not classes: give one of them, such as {root / inside[0]}."
        )
    problems = [] if names else [f"{root / first} has no class folders"]
    problems += [
        f"{root / part} has class folders that train has not: {', '.join(extra[:5])}"
        for part in parts[1:]
        if (extra := sorted(set(folders[part]) - set(names)))
    ]
    found: dict[str, list[tuple[Path, int]]] = {}
    index = {name: i for i, name in enumerate(names)}
    for part in parts:
        known = {name: i for name, i in index.items() if name in folders[part]}
        samples = (
            datasets.make_dataset(
                str(root / part), known, extensions=datasets.IMG_EXTENSIONS, allow_empty=True
            )
            if known
            else []
        )
        found[part] = [(Path(path), label) for path, label in samples]
        if known and not samples:
            problems.append(f"{root / part} holds no images ({', '.join(datasets.IMG_EXTENSIONS)})")
        elif part == first:
            empty = sorted(set(names) - {names[label] for _, label in found[part]})
            problems += (
                [f"these classes of {root / part} have no images: {', '.join(empty[:5])}"] if empty else []
            )
        elif not known:
            problems.append(f"{root / part} has no class folders")
    if problems:
        raise ConfigError("image-folder: " + "; ".join(problems) + f". It needs {wanted}.")
    return _folder_source(root, {part: _files(found[part]) for part in parts}, tuple(names))


def _folder_source(root: Path, images: Mapping[str, FolderImages], names: tuple[str, ...]) -> PublishedData:
    """Which images of an image folder train, validate and test."""
    train, *others = images.values()
    if not others:
        chosen, rest = stratified_choice(train.labels, round(_TEST_PART * len(train)), _TEST_SEED)
        every = amount(len(train), "image")
        note = f"{root} has neither val nor test: {len(chosen):,} of its {every}, always the same, "
        return PublishedData(
            train.subset(rest), train.subset(chosen), names, None, notes=(note + "are the test set",)
        )
    if len(others) == 1:
        return PublishedData(train, others[0], names, None, notes=(f"{list(images)[1]}/ is the test set",))
    notes = ("val/ chooses epochs (validation), and test/ is the test set",)
    return PublishedData(train, images["test"], names, None, images["val"], notes)


def decoded_images(images: FolderImages, size: int) -> TensorImages:
    """Read image files of one size into memory: uint8 [N, 3, size, size]; ConfigError for any other size."""

    def pixels(path: str) -> Tensor:
        image = read_image(path)
        if image.size != (size, size):
            raise ConfigError(f"{path} is {image.width}x{image.height}, not {size}x{size}.")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    out = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:  # the decoders run outside Python's lock
        for i, image in enumerate(pool.map(pixels, images.paths)):
            out[i] = image
    return TensorImages(out, images.labels)


def _files(samples: Iterable[tuple[Path, int]]) -> FolderImages:
    samples = list(samples)
    return FolderImages(
        tuple(str(path) for path, _ in samples),
        torch.tensor([label for _, label in samples], dtype=torch.int64),
    )


def _image_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.suffix.lower() in (".jpeg", ".jpg", ".png"))


def _words(root: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Readable names from words.txt; the wnid itself where it is absent."""
    words: dict[str, Any] = {}
    if (root / "words.txt").is_file():
        lines = (root / "words.txt").read_text(encoding="utf-8").splitlines()
        words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(str(words.get(wnid, wnid)).strip() for wnid in wnids)


def _require(root: Path, names: list[str], data: str) -> None:
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        raise ConfigError(
            f"{data}: not found in {root}: {', '.join(missing)}. Unpack the official archive again."
        )


def _join(places: list[Path]) -> str:
    return ", ".join(map(str, places))
