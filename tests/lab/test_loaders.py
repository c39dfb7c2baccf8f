"""Loaders of the user's own: whole runs, stopped runs, streams of unknown length, and what is said of bad ones."""

import gc
import json
import random
import sys

import killing
import numpy as np
import pytest
import torch
from tiny import rows
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from chipnet import ChipNetError, ConfigError
from chipnet.lab import train as loop
from chipnet.lab.data import LoaderBatches, LoaderImages, Loaders, load_data
from chipnet.lab.data.loaders import read_batch, read_loaders
from chipnet.lab.train import Recipe, Request, prepare, run

RECIPE = Recipe(1, 1, 1, batch_size=16, train_lr=0.05, prune_lr=0.05)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])


class Noisy:
    """Brighter with every class, and each time other noise, from all three generators that people draw from."""

    def __init__(self, count, classes=3):
        self.count, self.classes = count, [f"level {k}" for k in range(classes)]

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        noise = random.random() + np.random.rand() + torch.rand(1, 6, 6)
        return noise + i % len(self.classes), i % len(self.classes)


class Stream(IterableDataset):
    """A few images after the other, of no known number."""

    def __iter__(self):
        for i in range(44):
            yield torch.rand(1, 6, 6) + i % 3, i % 3


def shuffled(batch_size):
    return DataLoader(Noisy(53), batch_size, shuffle=True), DataLoader(Noisy(17), 9)


def streamed(batch_size):
    return Loaders(lambda epoch: DataLoader(Stream(), batch_size), DataLoader(Noisy(17), 9), steps=2)


GIVEN = {}


def given():
    return GIVEN["loaders"]


def dropping_small(num_classes, in_channels):
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(in_channels, 11, 3), nn.BatchNorm2d(11), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(11, num_classes),
    )  # fmt: skip


def request(out, data="test_loaders:shuffled", **changes):
    return Request("test_loaders:dropping_small", data, "macs=0.5", out, **{
        "recipe": RECIPE, "accelerator": "cpu", "checkpoint_steps": 2, **changes})  # fmt: skip


def batches(loader, steps=3, seed=5, part=(0, 1), shape=(1, 6, 6), classes=3):
    return LoaderBatches(LoaderImages(loader, "noise", shape, 16, steps, classes), seed=seed, part=part)


def equal(one, two):
    return len(one) == len(two) and all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_a_whole_run_on_loaders(tmp_path):
    result = run(prepare(request(tmp_path / "run")))
    assert result["images"] == {"train": 53, "validation": 17, "test": 17}
    facts = result["input"]
    assert (facts["num_classes"], facts["in_channels"], facts["image_size"]) == (3, 1, 6)
    assert facts["class_names"] == ["level 0", "level 1", "level 2"]
    assert len(rows(tmp_path / "run" / "metrics.csv")) == 4
    assert json.loads((tmp_path / "run" / "split.json").read_text())["counts"] == result["images"]


@pytest.mark.parametrize("data", ["shuffled", "streamed"])
def test_stopped_at_every_pause_a_run_on_loaders_ends_with_the_same_bits(tmp_path, data):
    data = f"test_loaders:{data}"
    run(prepare(request(tmp_path / "whole", data)))
    at, stopped, resume = random.Random(2), 0, False
    while True:
        left = at.randrange(4, 14)

        def stop():
            nonlocal left
            left -= 1
            return left <= 0

        try:
            run(prepare(request(tmp_path / "run", data), resume=resume), stop=stop)
            break
        except loop.Interrupted:
            stopped, resume = stopped + 1, True
    assert stopped >= 2
    assert killing.fingerprint(tmp_path / "run") == killing.fingerprint(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("own", [False, True])
def test_an_epoch_depends_on_seed_epoch_and_process_alone(workers, own):
    def made(**options):
        generator = torch.Generator() if own else None  # of the user's own, which nobody seeded
        loader = DataLoader(Noisy(53), 16, shuffle=True, num_workers=workers, generator=generator)
        return batches(loader, **options)

    whole = made()
    epochs = [list(whole) for _ in range(2)]
    assert not equal(*epochs)
    rest = made()
    torch.rand(3)
    rest.set_epoch(1, 2)
    assert equal(list(rest), epochs[1][2:])
    assert not equal(list(made(seed=6)), epochs[0])
    same_order = [torch.equal(y, z) for (_, y), (_, z) in zip(made(part=(1, 2)), epochs[0], strict=True)]
    assert all(same_order) if own else not any(same_order)


def test_the_networks_random_numbers_are_not_the_loaders():
    torch.manual_seed(0)
    wanted = torch.rand(2)
    torch.manual_seed(0)
    iterator = iter(batches(DataLoader(Noisy(53), 16, shuffle=True)))
    next(iterator)
    first = torch.rand(1)
    next(iterator)
    assert torch.equal(torch.cat([first, torch.rand(1)]), wanted)


def test_an_evaluation_sees_the_same_every_time():
    evaluation = batches(DataLoader(Noisy(17), 5), steps=None)
    assert equal(list(evaluation), list(evaluation))
    assert len(evaluation) == 4


def test_samplers_and_data_sets_are_told_the_epoch():
    seen = []

    class Telling(Noisy):
        def set_epoch(self, epoch):
            seen.append(epoch)

    data = Telling(48)
    sampler = DistributedSampler(data, num_replicas=2, rank=1, seed=3)
    loader = batches(DataLoader(data, 8, sampler=sampler))
    one, two = ([y for _, y in loader] for _ in range(2))
    assert seen == [0, 1] and sampler.epoch == 1
    assert not torch.equal(torch.cat(one), torch.cat(two))
    seen.clear()
    list(batches(lambda epoch: seen.append(("made", epoch)) or DataLoader(data, 16)))
    assert seen == [("made", 0), 0]


def test_a_stream_that_ends_before_its_steps():
    with pytest.raises(ChipNetError, match=r"noise ended after 3 batches of epoch 1, and an epoch has 9"):
        list(batches(DataLoader(Stream(), 16), steps=9))


def test_numbers_are_taken_as_they_come():
    x, y = read_batch((np.zeros((2, 1, 6, 6)), np.array([0, 2], np.int32)), "here")
    assert (x.dtype, y.dtype, y.tolist()) == (torch.float32, torch.int64, [0, 2])
    GIVEN["loaders"] = [[(x, y)] * 4, [(x, y)]]
    sys.modules["test_loaders"].GIVEN["loaders"] = GIVEN["loaders"]
    data = load_data("test_loaders:given")
    assert (data.num_classes, data.counts()) == (3, {"train": None, "validation": None, "test": None})
    assert (data.mean, data.std) == ((0.0,), (1.0,))
    assert equal(list(data.loader("train", 2, train=True)), [(x, y)] * 4)


def test_a_callable_is_told_its_batch_and_its_part():
    assert load_data("test_loaders:told", batch_size=4, part=(1, 3)).train.batch_size == 4
    assert (
        load_data("test_loaders:drawn", seed=3).class_names
        == load_data("test_loaders:drawn", seed=3).class_names
    )


def told(batch_size, part):
    assert part == (1, 3)
    return DataLoader(Noisy(16), batch_size), DataLoader(Noisy(8), 8)


def drawn():
    """Draws from the global generator: seeded for it, so that a run that goes on has the same data."""
    return Loaders(DataLoader(Noisy(16), 4), DataLoader(Noisy(8), 8), classes=[str(x) for x in torch.rand(3)])


def test_processes_need_shares_of_their_own():
    loader = DataLoader(Noisy(16), 4)
    for shares in (False, True):
        if not shares:
            with pytest.raises(
                ConfigError, match=r"mine: the training loader would give all 2 processes the same"
            ):
                read_loaders("mine", Loaders(loader, loader), 2, shares)
        else:
            read_loaders("mine", Loaders(loader, loader), 2, shares)
    sampler = DistributedSampler(Noisy(16), num_replicas=2, rank=0)
    read_loaders("mine", Loaders(DataLoader(Noisy(16), 4, sampler=sampler), loader), 2, False)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves shards that are not read to the end open
def test_webdataset_streams(tmp_path, monkeypatch):
    """WebDataset's own reader, shuffled by the epoch, of shards that WebDataset wrote."""
    wds = pytest.importorskip("webdataset")
    with wds.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=11, verbose=0) as sink:
        for i in range(40):
            sink.write({"__key__": f"{i:04d}", "npy": np.full((1, 6, 6), i % 3, np.float32), "cls": i % 3})
    urls = sorted(map(str, tmp_path.glob("*.tar")))
    assert len(urls) == 4

    def loader(epoch):
        shards = wds.WebDataset(urls, shardshuffle=4, seed=epoch, empty_check=False)
        return wds.WebLoader(
            shards.shuffle(20, seed=epoch).decode().to_tuple("npy", "cls").batched(8), batch_size=None
        )

    GIVEN["loaders"] = Loaders(loader, lambda epoch: loader(0), steps=5, classes=3)
    monkeypatch.setitem(sys.modules["test_loaders"].GIVEN, "loaders", GIVEN["loaders"])
    data = load_data("test_loaders:given")
    train = data.loader("train", 8, train=True, seed=1)
    epochs = [torch.cat([y for _, y in train]) for _ in range(2)]
    assert [len(y) for y in epochs] == [40, 40] and not torch.equal(*epochs)
    train.set_epoch(1, 3)
    assert torch.equal(torch.cat([y for _, y in train]), epochs[1][24:])
    x, y = next(iter(data.loader("test", 8)))
    assert torch.equal(x[:, 0, 0, 0].long(), y)
    gc.collect()


X, Y = torch.zeros(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
GOOD = [(X, Y)] * 3


@pytest.mark.parametrize(
    ("loaders", "text"),
    [
        ((iter(GOOD), GOOD), "the training loader is a list_iterator, which can be gone through once"),
        ((3, GOOD), "the training loader is a int, which no loop can go through"),
        (([], GOOD), "the training loader is empty"),
        ((GOOD, []), "the validation loader is empty"),
        ((Stream(), GOOD), "batch 1: its images must be floating point [B, C, H, W], as the network sees them"),
        ((DataLoader(Stream(), 4), GOOD), "is a DataLoader without len(), and the schedules need"),
        ((lambda epoch: GOOD, GOOD), "is a function without len(), and the schedules need"),
        ((lambda epoch: 1 // 0, GOOD), "given: the training loader failed: ZeroDivisionError"),
        (([{"image": X}], GOOD), "it is a dict, not (images, labels)"),
        (([(X, Y, Y)], GOOD), "it is a tuple of 3, not (images, labels)"),
        (([(X.byte(), Y)], GOOD), "not torch.uint8 [4, 1, 6, 6]. Convert and normalise them in the loader"),
        (([(X, Y.float())], GOOD), "labels must be whole numbers [4], one for each image, not torch.float32 [4]"),
        (([(X, Y[:3])], GOOD), "labels must be whole numbers [4], one for each image, not torch.int64 [3]"),
        (([(X[..., 1:], Y)], GOOD), "images are 6 x 5 pixels, and this loop takes square ones"),
        ((GOOD, [(torch.zeros(4, 3, 6, 6), Y)]), "validation loader, batch 1: images are [3, 6, 6]"),
        (([(X, Y), (X, Y - 1)], GOOD), "training loader, batch 2: labels run from -1 to 1, and they start at 0"),
        (Loaders(GOOD, GOOD, steps=0), "has 0 batches in an epoch"),
        (Loaders(DataLoader(Noisy(8), 4, num_workers=1, persistent_workers=True), GOOD), "has persistent_workers"),
        ((GOOD, GOOD, GOOD, GOOD), "returned a tuple; it must return a mapping with the data sets train and test"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "",
)  # fmt: skip
def test_loaders_that_cannot_be_used(loaders, text, monkeypatch):
    monkeypatch.setitem(GIVEN, "loaders", loaders)
    monkeypatch.setitem(sys.modules["test_loaders"].GIVEN, "loaders", loaders)
    with pytest.raises(ConfigError) as caught:
        load_data("test_loaders:given")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ((torch.zeros(4, 3, 6, 6), Y), "noise, batch 2: images are [3, 6, 6], and those of the first"),
        ((X, Y + 1), "noise, batch 2: labels run from 1 to 3, and 3 classes are 0 to 2"),
    ],
)  # fmt: skip
def test_a_later_batch_that_does_not_fit(second, text):
    with pytest.raises(ConfigError) as caught:
        list(batches([(X, Y), second, (X, Y)]))
    assert text in str(caught.value)


def test_batches_of_another_size_than_the_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(GIVEN, "loaders", (GOOD, GOOD))
    monkeypatch.setitem(sys.modules["test_loaders"].GIVEN, "loaders", (GOOD, GOOD))
    with pytest.raises(
        ConfigError, match=r"gives batches of 4 images, and the run's are 16.* --batch-size 4"
    ):
        prepare(request(tmp_path / "run", "test_loaders:given"))
    with pytest.raises(ConfigError, match="takes no limit: leave it out"):
        prepare(request(tmp_path / "run", "test_loaders:given", recipe=RECIPE.changed({"limit": 8})))
