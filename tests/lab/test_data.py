"""Data sets in their published formats (small files written here), splits, batches and augmentation."""

import pickle
import sys

import numpy as np
import pytest
import torch
from data_files import (
    idx_bytes,
    write_cifar,
    write_folders,
    write_idx,
    write_image,
    write_svhn,
    write_tiny_imagenet,
)

from chipnet._util.random import stream_seed
from chipnet.errors import ConfigError
from chipnet.lab.data import (
    Augment,
    Batches,
    FolderBatches,
    FolderImages,
    TensorImages,
    list_data,
    load_data,
    shift_and_flip,
)
from chipnet.lab.data.folders import problem_of, read_image
from chipnet.lab.data.images import channel_statistics
from chipnet.lab.data.split import stratified_choice

# -------------------------------------------------------------------------------------------- digits


def test_digits():
    pytest.importorskip("sklearn")
    data = load_data("Digits")
    assert (data.name, data.num_classes, data.in_channels, data.image_size) == ("digits", 10, 1, 8)
    assert data.train.images.shape == (1294, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.max() == 255
    assert data.class_names == tuple("0123456789")
    assert data.augment == Augment(pad=1, flip=False)
    everything = torch.cat([data.train.labels, data.validation.labels, data.test.labels])
    assert len(everything) == 1797
    # Every class keeps its share in every split, to within one image per choice.
    shares = torch.bincount(everything) / 1797
    for part in (data.train, data.validation, data.test):
        assert torch.all((torch.bincount(part.labels) - shares * len(part)).abs() < 2)


def test_test_images_of_digits_do_not_follow_the_seed_but_validation_does():
    pytest.importorskip("sklearn")
    one, same, other = load_data("digits", seed=1), load_data("digits", seed=1), load_data("digits", seed=2)
    assert torch.equal(one.test.images, other.test.images)
    assert torch.equal(one.validation.images, same.validation.images)
    assert torch.equal(one.train.images, same.train.images)
    assert not torch.equal(one.validation.images, other.validation.images)


def test_digits_takes_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="takes no data_dir"):
        load_data("digits", tmp_path)


# ------------------------------------------------------------------------------- mnist, fashion-mnist


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw", "raw"])
@pytest.mark.parametrize("gz", [True, False])
def test_fashion_mnist_layouts(tmp_path, place, gz):
    write_idx(tmp_path / place, gz)
    data = load_data("FashionMNIST", tmp_path)
    assert (data.name, data.num_classes, data.in_channels, data.image_size) == ("fashion-mnist", 10, 1, 28)
    assert [len(data.train), len(data.validation), len(data.test)] == [54, 6, 20]
    assert data.class_names[9] == "Ankle boot"
    assert data.augment == Augment(pad=2, flip=True)
    # The first pixel is the number of the image: every label is still with its own image.
    for part in (data.train, data.validation, data.test):
        assert torch.equal(part.images[:, 0, 0, 0].long() % 10, part.labels)


def test_splits_are_disjoint_and_complete(tmp_path):
    data = load_data("mnist", write_idx(tmp_path, train=100), seed=4)
    numbers = [part.images[:, 0, 0, 0].tolist() for part in (data.train, data.validation)]
    assert sorted(numbers[0] + numbers[1]) == list(range(100))
    assert torch.bincount(data.validation.labels).tolist() == [1] * 10
    assert data.augment == Augment(pad=2, flip=False)


def test_limit_keeps_a_stratified_part_of_the_same_split(tmp_path):
    write_idx(tmp_path, train=200)
    full, small = load_data("mnist", tmp_path), load_data("mnist", tmp_path, limit=90, limit_test=10)
    assert [len(small.train), len(small.validation), len(small.test)] == [90, 10, 10]
    assert torch.bincount(small.train.labels).tolist() == [9] * 10
    assert torch.bincount(small.test.labels).tolist() == [1] * 10
    for part in ("train", "validation", "test"):
        kept, whole = (set(getattr(d, part).images[:, 0, 0, 0].tolist()) for d in (small, full))
        assert kept <= whole
    assert len(load_data("mnist", tmp_path, limit=10**6).train) == 180
    assert len(load_data("mnist", tmp_path, limit=90).test) == 20


def test_mean_and_deviation_are_those_of_the_training_images(tmp_path):
    data = load_data("mnist", write_idx(tmp_path))
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx([pixels.mean().item()])
    assert data.std == pytest.approx([pixels.std(correction=0).item()])


def test_idx_missing_folder_and_files(tmp_path):
    with pytest.raises(ConfigError, match=r"needs data_dir.*dataset-fashion-mnist.*Nothing is downloaded"):
        load_data("fashion-mnist")
    with pytest.raises(ConfigError, match=r"absent does not exist.*train-images-idx3-ubyte"):
        load_data("mnist", tmp_path / "absent")
    with pytest.raises(ConfigError, match="is empty"):
        load_data("mnist", tmp_path)
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        ConfigError, match=r"not found: train-labels-idx1-ubyte, t10k-labels-idx1-ubyte .*looked"
    ):
        load_data("mnist", tmp_path)
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        load_data("mnist", tmp_path / "train-images-idx3-ubyte.gz")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
NO_IMAGES = (
    r"images-idx3-ubyte cannot be read .* of unsigned bytes with 3 dimensions .its length or .*truncated"
)
NO_LABELS = r"labels-idx1-ubyte cannot be read .* of unsigned bytes with 1 dimension .it.*swapped"
SQUARES = idx_bytes(np.zeros((2, 2, 2)))


def idx_header(kind, *sizes):
    return bytes([0, 0, kind, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, idx_bytes(np.arange(3)), r"3 dimensions \(it holds torch.uint8 \[3\]\).*swapped"),
        (LABELS, SQUARES, r"1 dimension \(it holds torch.uint8 \[2, 2, 2\]\).*swapped"),
        (IMAGES, idx_header(9, 2, 2, 2) + bytes(8), r"it holds torch.int8 \[2, 2, 2\]"),
        (LABELS, idx_header(14, 2) + bytes(16), r"it holds torch.float64 \[2\]"),
        *[(LABELS, idx_header(kind, 3) + bytes(3), NO_LABELS) for kind in (0, 7, 10, 11, 14, 15, 255)],
        (LABELS, bytes([8, 0, 8, 1, 0, 0, 0, 3, 0, 0, 0]), NO_LABELS),
        (IMAGES, idx_header(8, 2, 2, 2, 1) + bytes(8), NO_IMAGES),
        (IMAGES, SQUARES[:-1], NO_IMAGES),
        (IMAGES, SQUARES + b"x", NO_IMAGES),
        (IMAGES, b"\0\0\x08\x03\0\0", NO_IMAGES),
        (IMAGES, b"", NO_IMAGES),
        (IMAGES, idx_header(8, 0, 28, 28), NO_IMAGES),
        (IMAGES, idx_header(8, *[2**32 - 1] * 3) + bytes(8), NO_IMAGES),
        # 2**64 + 4 bytes, which is 4 in 64 bits
        (IMAGES, idx_header(8, 769546, 494770, 48448661) + bytes(4), NO_IMAGES),
        ("t10k-labels-idx1-ubyte", idx_bytes(np.arange(3)), "holds 20 images but .* holds 3 labels"),
        ("t10k-labels-idx1-ubyte", idx_bytes(np.full(20, 11)), "has the label 11; mnist has 0 to 9"),
    ],
)
def test_idx_bad_contents(tmp_path, name, content, message):
    write_idx(tmp_path, gz=False)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_data("mnist", tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"no gzip", lambda b: b[:50] + b"\0" * 50 + b[100:]]
)
def test_idx_damaged_gzip(tmp_path, damage):
    path = write_idx(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ConfigError, match=r"train-images-idx3-ubyte.gz cannot be read .*truncated or corrupt"
    ):
        load_data("mnist", tmp_path)


# ------------------------------------------------------------------------------------- cifar and svhn


def test_cifar10(tmp_path, monkeypatch):
    base = write_cifar(tmp_path, monkeypatch)
    data = load_data("cifar-10", tmp_path)
    assert (data.name, data.num_classes, data.in_channels, data.image_size) == ("cifar10", 10, 3, 32)
    assert [len(data.train), len(data.validation), len(data.test)] == [90, 10, 20]
    assert data.class_names[3] == "class 3"
    assert data.augment == Augment(pad=4, flip=True)
    # Planes are red, green, blue, each row by row: byte 2048 + 33 is row 1, column 1 of blue.
    assert torch.all(data.test.images[:, 0, 0, 0] == 5)
    assert torch.all(data.test.images[:, 1, 0, 0] == 100)
    assert torch.equal(data.test.images[:, 2, 1, 1].long(), torch.arange(20))
    assert torch.equal(data.train.images[:, 2, 1, 1].long() % 10, data.train.labels)
    assert len(load_data("cifar10", base).train) == 90


def test_cifar100(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, "CIFAR100")
    data = load_data("cifar100", tmp_path)
    assert data.num_classes == 100
    assert [len(data.train), len(data.validation), len(data.test)] == [180, 20, 200]


def test_cifar_errors(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    with pytest.raises(
        ConfigError, match=r"no folder cifar-10-batches-py in .*cifar-10-python.tar.gz unpacks to"
    ):
        load_data("cifar10", tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(ConfigError, match="Unpack it: tar xzf"):
        load_data("cifar10", tmp_path)
    base = write_cifar(tmp_path, monkeypatch)
    content = (base / "data_batch_2").read_bytes()
    (base / "data_batch_2").write_bytes(content[:-10])
    with pytest.raises(
        ConfigError,
        match=r"data_batch_2 does not have the checksum of the official one.*truncated.*--no-checksum",
    ):
        load_data("cifar10", tmp_path)
    (base / "data_batch_2").unlink()
    (base / "test_batch").unlink()
    with pytest.raises(ConfigError, match=r"not found in .*: data_batch_2, test_batch"):
        load_data("cifar10", tmp_path)


def test_other_files_of_the_same_format_are_read_if_asked(tmp_path, monkeypatch):
    base = write_cifar(tmp_path, monkeypatch)
    official = load_data("cifar10", tmp_path)
    content = pickle.loads((base / "data_batch_2").read_bytes())
    for protocol in (1, 2, 5):
        (base / "data_batch_2").write_bytes(pickle.dumps({**content, "more": "x"}, protocol=protocol))
        with pytest.raises(ConfigError, match="--no-checksum"):
            load_data("cifar10", tmp_path)
        data = load_data("cifar10", tmp_path, checksum=False)
        assert torch.equal(data.train.images, official.train.images)
    write_svhn(tmp_path, monkeypatch)
    pytest.importorskip("scipy.io").savemat(
        tmp_path / "test_32x32.mat",
        {"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.full((5, 1), 10, np.uint8)},
    )
    assert load_data("svhn", tmp_path, checksum=False).test.labels.tolist() == [0] * 5
    with pytest.raises(ConfigError, match="checksum is an option of cifar10, cifar100, svhn; digits has no"):
        load_data("digits", checksum=False)


class Evil:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": Evil()}, "asks for io.open, which is no array and no plain value"),
        ({"data": np.zeros((20, 3072), np.float32)}, "no 'data' of bytes, 3,072 an image"),
        ({"data": np.zeros((20, 3000), np.uint8)}, "no 'data' of bytes"),
        ({"data": np.array([Evil()], dtype=object)}, "asks for io.open"),
        ({"labels": [0] * 19}, "no label from 0 to 9 for each of its 20 images"),
        ({"labels": [10] * 20}, "no label from 0 to 9"),
        ({"labels": "0" * 20}, "no label from 0 to 9"),
    ],
)
def test_no_code_of_a_data_file_runs_and_other_formats_are_refused(tmp_path, monkeypatch, change, message):
    base = write_cifar(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    content = pickle.loads((base / "data_batch_2").read_bytes())
    (base / "data_batch_2").write_bytes(pickle.dumps(content | change))
    with pytest.raises(ConfigError, match=f"data_batch_2 .*{message}"):
        load_data("cifar10", tmp_path, checksum=False)
    assert not (tmp_path / "ran").exists()


def test_svhn(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch)
    data = load_data("svhn", tmp_path)
    assert (data.num_classes, data.in_channels, data.image_size) == (10, 3, 32)
    assert [len(data.train), len(data.validation), len(data.test)] == [36, 4, 20]
    assert data.augment == Augment(pad=4, flip=False)
    # The file's class 10 is the digit 0; image i shows the digit i + 1, and i at row 0, column 1 of blue.
    assert torch.equal(data.test.images[:, 2, 0, 1].long(), torch.arange(20))
    assert torch.equal(data.test.labels, (torch.arange(20) + 1) % 10)
    (tmp_path / "test_32x32.mat").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"test_32x32.mat does not have the checksum"):
        load_data("svhn", tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(ConfigError, match=r"not found in .*: test_32x32.mat"):
        load_data("svhn", tmp_path)


# -------------------------------------------------------------------------------------- tiny-imagenet


@pytest.mark.parametrize("inside", ["", "tiny-imagenet-200"])
def test_tiny_imagenet(tmp_path, inside):
    write_tiny_imagenet(tmp_path / inside)
    data = load_data("tiny_imagenet", tmp_path)
    assert (data.num_classes, data.in_channels, data.image_size) == (2, 3, 64)
    assert [len(data.train), len(data.validation), len(data.test)] == [18, 2, 6]
    assert data.class_names == ("goldfish, Carassius", "n02")  # sorted by wnid; no words for n02
    # The test images of n02, which wnids.txt lists first, are black; those of n01 green.
    green = data.test.images[:, 1, 5, 5].long()
    assert torch.equal((green < 128).long(), data.test.labels)
    assert len(load_data("tiny-imagenet", tmp_path, limit=9).train) == 9


def test_tiny_imagenet_errors(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(
        ConfigError, match=r"not found in .*: wnids.txt, train, val/images, val/val_annotations.txt"
    ):
        load_data("tiny-imagenet", tmp_path)
    root = write_tiny_imagenet(tmp_path / "t")
    write_image(root / "train" / "n01" / "images" / "n01_3.JPEG", 0, size=(63, 64))
    with pytest.raises(ConfigError, match=r"n01_3.JPEG is 63x64, not 64x64"):
        load_data("tiny-imagenet", root)
    (root / "val" / "images" / "val_01.JPEG").unlink()
    with pytest.raises(ConfigError, match=r"missing: 1 image, the first is .*val_01.JPEG"):
        load_data("tiny-imagenet", root)
    (root / "val" / "val_annotations.txt").write_text("val_00.JPEG\tn99\n")
    with pytest.raises(ConfigError, match=r"val_annotations.txt, line 1.*n99"):
        load_data("tiny-imagenet", root)
    (root / "wnids.txt").write_text("n01\nn02\nn07\n")
    with pytest.raises(ConfigError, match=r"no images for 1 of the 3 classes.*n07"):
        load_data("tiny-imagenet", root)


# --------------------------------------------------------------------------------------- image folders


def test_image_folder_with_val_only(tmp_path):
    data = load_data("image-folder", write_folders(tmp_path), image_size=16)
    assert (data.num_classes, data.in_channels, data.image_size) == (2, 3, 16)
    assert data.class_names == ("cat", "dog")
    assert [len(data.train), len(data.validation), len(data.test)] == [18, 2, 20]
    assert not set(data.train.paths) & set(data.validation.paths)
    assert all("/val/" in path.replace("\\", "/") for path in data.test.paths)
    assert load_data("image-folder", tmp_path).image_size == 224


def test_image_folder_with_val_and_test(tmp_path):
    write_folders(tmp_path, ("train", "val", "test"))
    data = load_data("image-folder", tmp_path, limit=10, limit_test=4)
    assert [len(data.train), len(data.validation), len(data.test)] == [10, 20, 4]
    assert torch.bincount(data.train.labels).tolist() == [5, 5]


@pytest.mark.parametrize("inside", ["", "train"])
def test_class_folders_alone_are_split(tmp_path, inside):
    write_folders(tmp_path, (inside,))
    (tmp_path / inside / ".cache").mkdir()
    data = load_data("image-folder", tmp_path, seed=3)
    assert data.class_names == ("cat", "dog")
    parts = [data.train, data.validation, data.test]
    assert [len(part) for part in parts] == [14, 2, 4]
    assert len({path for part in parts for path in part.paths}) == 20
    assert data.test.paths == load_data("image-folder", tmp_path, seed=4).test.paths
    assert torch.bincount(data.test.labels).tolist() == [2, 2]
    assert "neither val nor test: 4 of its 20 images, always the same, are the test set" in data.notes[0]
    assert data.notes[1] == "2 of the training images are held out to choose epochs (validation)"


def test_what_val_is_used_for_is_said(tmp_path):
    write_folders(tmp_path)
    assert load_data("image-folder", tmp_path).notes[0] == "val/ is the test set"
    write_folders(tmp_path, ("test",))
    assert load_data("image-folder", tmp_path).notes == (
        "val/ chooses epochs (validation), and test/ is the test set",
    )


def test_normalisation_is_what_was_asked_for(tmp_path):
    write_folders(tmp_path)
    data = load_data("image-folder", tmp_path, image_size=8, mean=(0.5,), std=(0.25, 0.5, 1.0))
    assert (data.mean, data.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    images, _ = next(iter(data.loader("test", 2, workers=0)))
    assert images[:, 0].mean().item() == pytest.approx(-0.5 / 0.25, abs=0.05)  # cats have no red
    grey = load_data("digits", mean=(0.0,), std=(1.0,), augment="none")
    images, _ = next(iter(grey.loader("train", 500, train=True)))
    assert images.min() == 0 and images.max() == 1
    assert load_data("digits", std=(2.0,)).mean == load_data("digits").mean
    with pytest.raises(
        ConfigError, match=r"mean has 2 numbers, and the images have 3 channels: give 3, or one"
    ):
        load_data("image-folder", tmp_path, mean=(0.5, 0.5))


def mirrored(images, like):
    return [bool(torch.equal(a, b.flip(-1))) for a, b in zip(images, like, strict=True)]


def test_training_images_vary_as_asked(tmp_path):
    image, chance = pytest.importorskip("PIL.Image"), np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "cat").mkdir(exist_ok=True)
        image.fromarray(chance.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
            tmp_path / f"cat/{i:02}.png"
        )

    def epoch(augment):
        data = load_data("image-folder", tmp_path, image_size=32, augment=augment)
        ((images, _),) = data.loader("train", 20, train=True, seed=1, workers=0)
        return images

    still, flipped = epoch("none"), epoch("flip")
    turned = mirrored(flipped, still)
    assert 0 < sum(turned) < len(turned)
    assert all(t or torch.equal(a, b) for t, a, b in zip(turned, still, flipped, strict=True))
    cropped, both, trivial = epoch("crop"), epoch("crop-flip"), epoch("trivial")
    assert not torch.equal(cropped, still) and not torch.equal(cropped, both)
    assert torch.equal(both, epoch(None)) and not torch.equal(trivial, both)
    assert torch.equal(trivial, epoch("trivial"))
    for augment, expected in {"none": None, "crop": Augment(1, False), "flip": Augment(0, True)}.items():
        assert load_data("digits", augment=augment).augment == expected
    with pytest.raises(ConfigError, match=r"augment trivial is for image files .*; digits is in memory"):
        load_data("digits", augment="trivial")


def broken_folders(root):
    write_folders(root, per_class=8)
    (root / "val" / "cat" / "0.jpg").write_bytes(b"not a jpeg")
    whole = (root / "train" / "cat" / "2.jpg").read_bytes()
    (root / "train" / "cat" / "2.jpg").write_bytes(whole[: len(whole) - 100])
    return root


def test_broken_images_are_all_found(tmp_path):
    data = load_data("image-folder", broken_folders(tmp_path), image_size=8)
    with pytest.raises(
        ConfigError,
        match=r"2 of 32 .* cannot be read: .*2.jpg \(Truncated File Read\).*0.jpg \(not an image\). .*--skip",
    ):
        data.check_files()
    load_data("digits").check_files()


@pytest.mark.parametrize("limit", [None, 8])
def test_broken_images_are_left_out(tmp_path, limit):
    data = load_data("image-folder", broken_folders(tmp_path), image_size=8, skip_broken=True, limit=limit)
    data.check_files()
    paths = [*data.train.paths, *data.validation.paths]
    everything = load_data("image-folder", tmp_path, image_size=8).train.paths
    assert len(data.test) == 15 and not any(p.endswith("train/cat/2.jpg") for p in paths)
    assert "left out: " in data.notes[-1] and "0.jpg (not an image)" in data.notes[-1]
    if data.chosen is not None and limit is None:  # indices of the official training set
        official = sorted([*everything, *load_data("image-folder", tmp_path).validation.paths])
        assert [official[i] for i in data.chosen.tolist()] == list(data.train.paths)
    for part in ("train", "validation", "test"):
        list(data.loader(part, 8, workers=0))


def test_image_folder_batches(tmp_path):
    data = load_data("image-folder", write_folders(tmp_path), image_size=16)
    loader = data.loader("test", 8, workers=0)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    images, labels = batches[0]
    assert images.shape == (8, 3, 16, 16)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    # Cats have no red: 0 normalises to −mean / std. JPEG changes plain colours by a little.
    assert images[:, 0].mean().item() == pytest.approx(-0.485 / 0.229, abs=0.05)


def epoch_of(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_image_folder_order_and_augmentation_depend_on_seed_and_epoch_only(tmp_path):
    data = load_data("image-folder", write_folders(tmp_path), image_size=8)
    first = data.loader("train", 5, train=True, seed=3, workers=0)
    zero, one = epoch_of(first), epoch_of(first)
    assert not torch.equal(zero[0], one[0])
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = data.loader("train", 5, train=True, seed=3, workers=0)
    again.set_epoch(1)
    assert torch.equal(epoch_of(again)[0], one[0])
    assert again.epoch == 2
    assert torch.equal(torch.get_rng_state(), state)
    other = data.loader("train", 5, train=True, seed=4, workers=0)
    assert not torch.equal(epoch_of(other)[0], zero[0])


# Python 3.12 and 3.13 warn about every fork of a process that has threads.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_image_folder_workers_change_nothing(tmp_path):
    data = load_data("image-folder", write_folders(tmp_path, per_class=4), image_size=8)
    alone = data.loader("train", 3, train=True, seed=3, workers=0)
    helped = data.loader("train", 3, train=True, seed=3, workers=2)
    assert isinstance(helped, torch.utils.data.DataLoader)
    for _ in range(2):
        for one, other in zip(epoch_of(alone), epoch_of(helped), strict=True):
            assert torch.equal(one, other)


def test_broken_image_is_named(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "val" / "cat" / "0.jpg").write_bytes(b"not a jpeg")
    data = load_data("image-folder", tmp_path, image_size=8)
    with pytest.raises(ConfigError, match=r"0.jpg is not a readable image"):
        list(data.loader("test", 8, workers=0))


def test_image_folder_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"is empty\. image-folder needs a folder with train/CLASS"):
        load_data("image-folder", tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(
        ConfigError, match=r"has val, and no train\. image-folder needs a folder with train/CLASS"
    ):
        load_data("image-folder", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ConfigError, match=r"train has no class folders.*val has no class folders"):
        load_data("image-folder", tmp_path)
    write_folders(tmp_path)
    write_image(tmp_path / "val" / "cow" / "0.png", 0)
    (tmp_path / "train" / "ant").mkdir()
    with pytest.raises(ConfigError, match=r"that train has not: cow.*have no images: ant"):
        load_data("image-folder", tmp_path)


def test_single_left_over_image_is_dropped_in_training_only(tmp_path):
    transform = torch.nn.Identity()
    images = FolderImages(tuple("abcdefg"), torch.zeros(7, dtype=torch.int64))
    for shuffle, length in ((True, 2), (False, 3)):
        assert len(FolderBatches(images, 3, transform, shuffle=shuffle, workers=0)) == length
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        FolderBatches(images, 0, transform, shuffle=True)


# ----------------------------------------------------------------------------- options, names, callables


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.0}, "validation is a fraction between 0 and 1"),
        ({"validation": 10}, r"validation is a fraction .*, not 10"),
        ({"limit": 1}, "limit must be at least 2, not 1"),
        ({"limit_test": 0, "seed": -1}, "seed must be at least 0, not -1; limit_test must be at least 1"),
        ({"image_size": 32}, "image_size is an option of image-folder"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        load_data("digits", **options)


def test_unknown_name():
    with pytest.raises(
        ConfigError, match=r"no data set 'cifar11'. Close names: cifar10.*mypackage.data:load"
    ):
        load_data("cifar11")
    assert list_data() == tuple(sorted(list_data()))


def test_unknown_split():
    pytest.importorskip("sklearn")
    with pytest.raises(ConfigError, match="no split 'val': it is 'train', 'validation' or 'test'"):
        load_data("digits").loader("val", 8)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        load_data("digits")


CALLABLE = """
import torch
from chipnet.lab.data import Data, TensorImages
def load(data_dir=None, seed=0, limit=None):
    part = TensorImages(torch.zeros(4, 2, 5, 5, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    return Data(f"mine {seed} {limit}", part, part, part, 2, 2, 5, (0.0, 0.0), (1.0, 1.0), ("a", "b"))
def wrong(): return 3
"""


def test_callable(tmp_path, monkeypatch):
    (tmp_path / "my_data_for_test.py").write_text(CALLABLE)
    monkeypatch.chdir(tmp_path)
    data = load_data("my_data_for_test:load", seed=5, limit=3)
    assert data.name == "mine 5 3"
    images, _ = next(iter(data.loader("test", 4)))
    assert images.shape == (4, 2, 5, 5)
    with pytest.raises(ConfigError, match="takes no limit_test and no image_size"):
        load_data("my_data_for_test:load", limit_test=3, image_size=3)
    with pytest.raises(ConfigError, match=r"returned a int; it must return a mapping"):
        load_data("my_data_for_test:wrong")
    sys.modules.pop("my_data_for_test")


# ------------------------------------------------------------------------------------ stratified choice


@pytest.mark.parametrize("count", [0, 1, 7, 30, 60])
def test_stratified_choice(count):
    labels = torch.tensor([0] * 10 + [1] * 20 + [3] * 30)[torch.randperm(60)]
    chosen, others = stratified_choice(labels, count, seed=1)
    assert sorted(torch.cat([chosen, others]).tolist()) == list(range(60))
    assert len(chosen) == count
    got = torch.bincount(labels[chosen], minlength=4)
    wanted = torch.tensor([10, 20, 0, 30]) * count / 60
    assert torch.all((got - wanted).abs() < 1)
    assert torch.equal(chosen, stratified_choice(labels, count, seed=1)[0])


def test_stratified_choice_largest_remainders_by_hand():
    # 5 of 3 + 3 + 1 items: shares 15/7, 15/7, 5/7 -> 2, 2, 0 and the last one to the remainder 5/7.
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    chosen, _ = stratified_choice(labels, 5, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [2, 2, 1]


# -------------------------------------------------------------------------------------- augmentation

#   1 2 3        0 0 0        0 1 2
#   4 5 6   ->   0 1 2   ;    0 4 5   ;  ...
#   7 8 9        0 4 5        0 7 8
SQUARE = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    ("shift", "flip", "expected"),
    [
        ((0, 0), False, SQUARE),
        ((1, 1), False, [[0, 0, 0], [0, 1, 2], [0, 4, 5]]),
        ((0, 1), False, [[0, 1, 2], [0, 4, 5], [0, 7, 8]]),
        ((-1, 0), False, [[4, 5, 6], [7, 8, 9], [0, 0, 0]]),
        ((0, -2), False, [[3, 0, 0], [6, 0, 0], [9, 0, 0]]),
        ((0, 0), True, [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        ((1, 1), True, [[0, 0, 0], [2, 1, 0], [5, 4, 0]]),
        ((3, 0), False, [[0] * 3] * 3),
    ],
)
def test_shift_by_hand(shift, flip, expected):
    image = torch.tensor(SQUARE, dtype=torch.uint8).reshape(1, 1, 3, 3)
    # Not alone: each image of a batch has a shift of its own; the second channel follows the first.
    batch = torch.cat([torch.cat([image, image + 100], 1), torch.full((1, 2, 3, 3), 50, dtype=torch.uint8)])
    out = shift_and_flip(batch, torch.tensor([shift, (0, 0)]), torch.tensor([flip, True]))
    assert out.dtype == torch.uint8
    assert out[0, 0].tolist() == expected
    assert out[0, 1].tolist() == [[v + 100 if v else 0 for v in row] for row in expected]
    assert torch.all(out[1] == 50)


def test_shift_equals_padding_and_cropping_one_image_at_a_time():
    images = torch.randint(0, 256, (11, 3, 7, 5), dtype=torch.uint8)
    shift = torch.randint(-2, 3, (11, 2))
    flip = torch.rand(11) < 0.5
    out = shift_and_flip(images, shift, flip)
    for n in range(11):
        padded = torch.zeros(3, 11, 9, dtype=torch.uint8)
        padded[:, 2:9, 2:7] = images[n]
        y, x = 2 - int(shift[n, 0]), 2 - int(shift[n, 1])
        crop = padded[:, y : y + 7, x : x + 5]
        assert torch.equal(out[n], crop.flip(2) if flip[n] else crop)


def test_augmented_batches_use_every_shift_and_flip_half():
    images = torch.zeros(4000, 1, 7, 7, dtype=torch.uint8)
    images[:, 0, 3, 3] = 255  # its place shows the shift; mirrored, a darker dot is to its right
    images[:, 0, 3, 2] = 128
    data = TensorImages(images, torch.zeros(4000, dtype=torch.int64))
    ((out, _),) = Batches(data, 4000, shuffle=True, augment=Augment(pad=1, flip=True))
    dots = (out[:, 0] == 1).nonzero()
    places, counts = torch.unique(dots[:, 1:], dim=0, return_counts=True)
    assert places.tolist() == [[y, x] for y in (2, 3, 4) for x in (2, 3, 4)]
    assert torch.all((counts - 4000 / 9).abs() < 100)
    mirrored = out[torch.arange(4000), 0, dots[:, 1], dots[:, 2] + 1] > 0
    assert abs(mirrored.float().mean().item() - 0.5) < 0.05


# -------------------------------------------------------------------------------------------- batches


def numbered(count):
    """Image i is all i, with label i."""
    images = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return TensorImages(images, torch.arange(count))


def labels_of(batches):
    return [labels.tolist() for _, labels in batches]


def test_evaluation_keeps_the_order_and_every_image():
    batches = Batches(numbered(7), 3, shuffle=False)
    assert labels_of(batches) == labels_of(batches) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(batches) == 3


@pytest.mark.parametrize(
    ("count", "size", "lengths"), [(7, 3, [3, 3]), (8, 3, [3, 3, 2]), (6, 3, [3, 3]), (3, 1, [1] * 3)]
)
def test_training_drops_a_single_left_over_image(count, size, lengths):
    batches = Batches(numbered(count), size, shuffle=True)
    got = labels_of(batches)
    assert [len(batch) for batch in got] == lengths
    assert len(batches) == len(lengths)


def test_order_depends_on_seed_and_epoch_only():
    first = Batches(numbered(50), 8, shuffle=True, seed=3, augment=Augment(1, True))
    zero, one = epoch_of(first), epoch_of(first)
    assert sorted(zero[1].tolist()) == list(range(50))
    assert zero[1].tolist() != one[1].tolist()
    torch.manual_seed(123)
    again = Batches(numbered(50), 8, shuffle=True, seed=3, augment=Augment(1, True))
    again.set_epoch(1)
    for expected, got in zip(one, epoch_of(again), strict=True):
        assert torch.equal(expected, got)
    again.set_epoch(0)
    assert torch.equal(epoch_of(again)[0], zero[0])
    other = Batches(numbered(50), 8, shuffle=True, seed=4, augment=Augment(1, True))
    assert epoch_of(other)[1].tolist() != zero[1].tolist()


def test_batches_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    list(Batches(numbered(9), 4, shuffle=True, augment=Augment(1, True)))
    assert torch.equal(torch.get_rng_state(), state)


def test_epoch_counts_from_iter_so_that_a_peek_and_a_loop_do_not_mix():
    batches = Batches(numbered(9), 9, shuffle=True)
    peek = iter(batches)
    whole = labels_of(batches)
    assert batches.epoch == 2
    assert next(peek)[1].tolist() != whole[0]


def test_explicit_generator():
    orders = []
    for _ in range(2):
        batches = Batches(numbered(20), 5, shuffle=True, generator=torch.Generator().manual_seed(7))
        orders.append([labels_of(batches), labels_of(batches)])
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


def test_normalisation():
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 2, 1, 1)
    data = TensorImages(images, torch.tensor([1]))
    ((out, _),) = Batches(data, 1, shuffle=False, mean=(0.5, 0.2), std=(0.25, 0.4))
    assert out.flatten().tolist() == pytest.approx([-2.0, 2.0])
    ((out, _),) = Batches(data, 1, shuffle=False)
    assert out.flatten().tolist() == [0.0, 1.0]


def test_normalised_training_images_have_mean_0_and_deviation_1():
    pytest.importorskip("sklearn")
    images, _ = epoch_of(load_data("digits").loader("train", 500))
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_padding_is_black_before_normalisation():
    data = TensorImages(torch.full((64, 1, 3, 3), 255, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    ((out, _),) = Batches(data, 64, shuffle=True, augment=Augment(1, False), mean=(0.5,), std=(0.5,))
    assert out.unique().tolist() == pytest.approx([-1.0, 1.0])


def test_batches_do_not_share_memory_with_the_data():
    data = numbered(4)
    for images, labels in Batches(data, 4, shuffle=False):
        images.zero_(), labels.zero_()
    assert torch.equal(data.labels, torch.arange(4))


def test_statistics_of_each_channel_and_of_a_constant_one():
    images = torch.randint(0, 256, (10, 2, 5, 5), dtype=torch.uint8)
    images[:, 1] = 51
    mean, std = channel_statistics(images)
    assert mean == pytest.approx([images[:, 0].double().mean().item() / 255, 0.2])
    assert std == pytest.approx([images[:, 0].double().std(correction=0).item() / 255, 1.0])


def test_batches_errors():
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0"):
        Batches(numbered(4), 0, shuffle=True)
    with pytest.raises(ConfigError, match="3 channels, but there are 1 mean and 3 deviations"):
        Batches(numbered(4), 2, shuffle=True, mean=(0.5,))


def test_tensor_images_are_checked():
    with pytest.raises(
        ConfigError, match=r"uint8 .*not torch.float32 \[2, 3\].*int64 .*2 images and 1 label"
    ):
        TensorImages(torch.zeros(2, 3), torch.zeros(1))
    with pytest.raises(ConfigError, match="labels start at 0, not -1"):
        TensorImages(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([-1]))


def test_tensor_images_serve_a_plain_data_loader():
    loader = torch.utils.data.DataLoader(numbered(5), batch_size=5)
    ((images, labels),) = loader
    assert (images.dtype, labels.tolist()) == (torch.uint8, [0, 1, 2, 3, 4])


def test_stream_seed_is_fixed_and_spreads():
    assert len({stream_seed(7), stream_seed(7, 0), stream_seed(7, 0, 0), stream_seed(2**32 + 7)}) == 4
    seeds = {stream_seed(seed, epoch) for seed in range(50) for epoch in range(50)}
    assert len({seed % 2**32 for seed in seeds}) == 2500  # torch's CPU generator reads no more bits
    assert stream_seed(1, 2) == stream_seed(1, 2)
    assert all(0 <= seed < 2**63 for seed in [*seeds, stream_seed(2**63 - 1, 2**40)])
    for seed in (-1, 2**63):
        with pytest.raises(ConfigError, match="seed must be at"):
            next(iter(Batches(numbered(4), 2, shuffle=True, seed=seed)))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp"])
def test_a_file_that_is_cut_off_anywhere_is_found(tmp_path, suffix):
    image, chance = pytest.importorskip("PIL.Image"), np.random.default_rng(0)
    image.fromarray(chance.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    assert problem_of(str(tmp_path / f"a.{suffix}")) == ""
    for size in (0, 3, len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4):
        (tmp_path / f"b.{suffix}").write_bytes(whole[:size])
        assert problem_of(str(tmp_path / f"b.{suffix}"))
        with pytest.raises(ConfigError, match="is not a readable image"):
            read_image(str(tmp_path / f"b.{suffix}"))
