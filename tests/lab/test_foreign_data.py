"""Data sets of other libraries and of the user's own: read, split, inferred, refused with the fix."""

import gc
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import idx_bytes
from PIL import Image
from tiny import TINY, rows

from chipnet import ConfigError
from chipnet.lab.data import load_data
from chipnet.lab.data.shards import Shards
from chipnet.lab.train import Recipe, Request, prepare, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Squares:
    """Grey 12 x 10 pictures, brighter with every class; no list of labels."""

    def __init__(self, count=40, classes=4, first=0):
        self.count, self.numbers, self.first = count, classes, first

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        label = i % self.numbers
        return Image.new("L", (12, 10), 50 * label), label + self.first


def mapping():
    return {"train": Squares(), "val": Squares(8), "test": Squares(12)}


def arrays():
    pixels = [(np.full((8, 8, 3), i % 2 * 200, np.uint8), i % 2) for i in range(20)]
    return {"train": pixels, "test": pixels[:6]}


BAD = {}


def bad(which="x"):
    return BAD["parts"]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])


def test_a_mapping_of_data_sets():
    data = load_data("test_foreign_data:mapping", image_size=16)
    assert (data.num_classes, data.in_channels, data.image_size) == (4, 3, 16)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 8, 12)
    images, labels = next(iter(data.loader("test", 5, workers=0)))
    assert (images.shape, labels.tolist()) == ((5, 3, 16, 16), [0, 1, 2, 3, 0])
    assert images[0].mean() < images[1].mean() < images[2].mean()
    assert len(load_data("test_foreign_data:mapping", limit=10).train) == 10


def test_without_a_validation_part_one_is_held_out():
    data = load_data("test_foreign_data:arrays", image_size=8, validation=0.2)
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (16, 4, 6, 2)
    assert sorted(data.held_out.tolist() + [int(i) for i in data.train.indices]) == list(range(20))


def test_a_whole_run_on_a_mapping(tmp_path):
    request = Request(
        "tiny:tiny_net", "test_foreign_data:mapping", "macs=0.5", tmp_path / "run",
        Recipe(1, 1, 1, batch_size=8, train_lr=0.05, prune_lr=0.05), image_size=8, workers=0, accelerator="cpu",
    )  # fmt: skip
    result = run(prepare(request))
    assert result["images"] == {"train": 40, "validation": 8, "test": 12}
    assert len(rows(tmp_path / "run" / "metrics.csv")) == 4
    assert TINY.epochs == (1, 2, 2)


def test_torchvision_by_name(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 10)):
        images = generator.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes((np.arange(count) % 10).astype(np.uint8)))
    data = load_data("tv/MNIST", tmp_path, image_size=28)
    assert (data.num_classes, data.class_names[3], len(data.test)) == (10, "3 - three", 10)
    images, _ = next(iter(data.loader("train", 4, train=True, workers=0)))
    assert images.shape == (4, 3, 28, 28)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tv/MNISTT", "torchvision has no data set 'MNISTT'. Close names: "),
        ("tv/CIFAR10", "torchvision.datasets.CIFAR10 cannot read"),
        ("tv/FakeData", "FakeData has no training and test part"),
    ],
)
def test_torchvision_that_cannot_be_read(tmp_path, name, text):
    (tmp_path / "something").write_text("")
    with pytest.raises(ConfigError) as caught:
        load_data(name, tmp_path)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"train": Squares()}, "has train; it takes train, and test or validation or both"),
        ({}, "has no parts"),
        (
            {"train": Squares(), "test": iter([])},
            "test is a list_iterator, without len() or [index]. Return data sets, or loaders",
        ),
        ({"train": Squares(), "test": []}, "test is empty"),
        (
            {"train": Squares(), "test": Squares(first=1)},
            "the labels of test run from 1 to 4, and there are 4 classes",
        ),
        ({"train": Squares(), "test": Squares(first=-1)}, "the labels of test run from -1 to 2"),
        ({"train": [{"image": 1}], "test": Squares()}, "train gives dict, not (image, label)"),
        (
            {"train": [(1, "cat"), (2, "dog")], "test": Squares()},
            "the labels of train are str; classes are whole",
        ),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)
def test_mappings_that_cannot_be_used(parts, text):
    BAD["parts"] = parts
    sys.modules["test_foreign_data"].BAD["parts"] = parts
    with pytest.raises(ConfigError) as caught:
        load_data("test_foreign_data:bad")
    assert text in str(caught.value)


def test_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"photo": datasets.Image(), "what": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {
        "photo": [Image.new("RGB", (9, 9), (i, 0, 0)) for i in range(12)],
        "what": [i % 2 for i in range(12)],
    }
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(4))}).save_to_disk(str(tmp_path / "d"))
    data = load_data("hf", tmp_path / "d", image_size=8)
    assert (data.class_names, len(data.test), data.num_classes) == (("cat", "dog"), 4, 2)
    images, labels = next(iter(data.loader("test", 4, workers=0)))
    assert (images.shape, labels.tolist()) == ((4, 3, 8, 8), [0, 1, 0, 1])

    numbers = datasets.Dataset.from_dict({"photo": rows["photo"], "what": rows["what"]})
    datasets.DatasetDict({"train": numbers, "test": numbers}).save_to_disk(str(tmp_path / "n"))
    with pytest.raises(
        ConfigError, match=r"0 columns of class labels; one is needed\. Its columns are photo: Image"
    ):
        load_data("hf", tmp_path / "n")
    with pytest.raises(ConfigError, match="is no data set on disk"):
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "x").write_text("")
        load_data("hf", tmp_path / "e")


def test_hugging_face_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"hf.*pip install datasets"):
        load_data("hf", tmp_path)


def write_shards(folder, part, count, first=0, **extra):
    """True shards, as WebDataset's own writer makes them: nine samples in each."""
    wds = pytest.importorskip("webdataset")
    with wds.ShardWriter(str(folder / f"{part}-%06d.tar"), maxcount=9, verbose=0) as sink:
        for i in range(count):
            pixels = np.full((10, 12, 3), 60 * (i % 4), np.uint8)
            sink.write(
                {"__key__": f"a.b/{i:06d}", "png": pixels, "cls": i % 4 + first, "json": {"i": i}, **extra}
            )


def test_webdataset_shards(tmp_path):
    for part, count in (("train", 40), ("val", 8), ("some-test", 12)):
        write_shards(tmp_path, part, count)
    assert len(list(tmp_path.glob("train-*.tar"))) == 5
    data = load_data("wds", tmp_path, image_size=16)
    assert (data.num_classes, data.in_channels, data.image_size, data.held_out) == (4, 3, 16, None)
    assert data.counts() == {"train": 40, "validation": 8, "test": 12}
    images, labels = next(iter(data.loader("test", 5, workers=0)))
    assert (images.shape, labels.tolist()) == ((5, 3, 16, 16), [0, 1, 2, 3, 0])
    assert images[0].mean() < images[1].mean() < images[2].mean()
    # An image is found across shards, in any order, by workers too.
    loader = data.loader("train", 8, train=True, seed=1, workers=2)
    grey = [(x.mean((1, 2, 3)), y) for x, y in loader]
    assert len(grey) == 5
    for value, label in grey:
        expected = (60 * label / 255 - torch.tensor(data.mean).mean()) / 0.226
        torch.testing.assert_close(value, expected.float(), atol=0.1, rtol=0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # its reader leaves shards open
def test_webdataset_reads_the_same_samples(tmp_path):
    """Against WebDataset's own reader."""
    wds = pytest.importorskip("webdataset")
    write_shards(tmp_path, "train", 20)
    write_shards(tmp_path, "val", 4)
    urls = sorted(map(str, tmp_path.glob("train-*.tar")))
    theirs = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    ours = (
        load_data("webdataset", tmp_path, image_size=8, limit=18).test.samples,
        Shards([Path(u) for u in urls]),
    )
    assert [len(part) for part in ours] == [4, 20] and len(theirs) == 20
    for (picture, label), (pixels, number) in zip((ours[1][i] for i in range(20)), theirs, strict=True):
        assert label == number and np.array_equal(np.asarray(picture), pixels)
    gc.collect()


def test_a_whole_run_on_shards(tmp_path):
    write_shards(tmp_path, "train", 40)
    write_shards(tmp_path, "val", 8)
    request = Request(
        "tiny:tiny_net", "wds", "macs=0.5", tmp_path / "run", Recipe(1, 1, 1, batch_size=8, limit=32),
        data_dir=str(tmp_path), image_size=8, workers=0, accelerator="cpu",
    )  # fmt: skip
    assert run(prepare(request))["images"] == {"train": 32, "validation": 4, "test": 8}


def add(path, name, content):
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (
            lambda d: (d / "train-000000.tar").write_bytes(b"no tar"),
            "train-000000.tar is not a readable .tar file",
        ),
        (
            lambda d: (d / "train-000000.tar").write_bytes((d / "train-000000.tar").read_bytes()[:1300]),
            "train-000000.tar is not a readable .tar file",
        ),
        (
            lambda d: add(d / "train-000000.tar", "x.png", b"?"),
            "the sample 'x' has png; it needs an image (jpg, ",
        ),
        (lambda d: add(d / "train-000000.tar", "x.cls", b"1"), "the sample 'x' has cls; it needs an image"),
        (
            lambda d: add(d / "train-000000.tar", "x.cls", b"cat"),
            "the class of the sample 'x' is b'cat'; cls holds",
        ),
        (
            lambda d: write_shards(d, "val", 5, first=3),
            "the labels of validation run from 3 to 6, and there are 4",
        ),
        (lambda d: write_shards(d, "more", 5), "more-000000.tar says no part: one of train, val and test"),
        (lambda d: write_shards(d, "train-val", 5), "train-val-000000.tar says train and val: one of"),
        (lambda d: [p.rename(p.with_suffix(".tgz")) for p in d.iterdir()], "holds no .tar file (compressed"),
    ],
)
def test_shards_that_cannot_be_used(tmp_path, damage, text):
    write_shards(tmp_path, "train", 9)
    write_shards(tmp_path, "val", 5)
    damage(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_data("wds", tmp_path)
    assert text in str(caught.value)


def test_an_image_in_a_shard_that_is_broken(tmp_path):
    write_shards(tmp_path, "train", 9)
    write_shards(tmp_path, "val", 5)
    add(tmp_path / "val-000000.tar", "x.png", b"?")
    add(tmp_path / "val-000000.tar", "x.cls", b"1")
    loader = load_data("wds", tmp_path, image_size=8).loader("test", 6, workers=0)
    with pytest.raises(ConfigError, match=r"val-000000\.tar: the image at byte \d+ is not a readable image"):
        list(loader)


def test_augmentation_depends_on_seed_and_epoch_only():
    data = load_data("test_foreign_data:mapping", image_size=8)
    one, two = (data.loader("train", 8, train=True, seed=3, workers=0) for _ in range(2))
    two.set_epoch(0, 2)
    for (x, y), (x0, y0) in zip(list(one)[2:], two, strict=True):
        assert torch.equal(x, x0) and torch.equal(y, y0)
