"""Every reader of a run sees images as the run did; what images are and how they are read is said."""

import dataclasses
import pickle

import pytest
import torch
from command import chipnet_
from data_files import write_cifar, write_folders

from chipnet.errors import ConfigError
from chipnet.lab.data import load_data
from chipnet.lab.runs import transfer
from chipnet.lab.runs.folder import Run
from chipnet.lab.train import Request, prepare
from chipnet.lab.val import measure, networks_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with images normalised and split as no data set is by default."""
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("seen") / "run"
    done = chipnet_("prune", "--model", "resnet8", "--data", "digits", "--budget", "macs=0.5", "--out", out,
                    "--epochs", "1", "--limit", "160", "--limit-test", "60", "--threads", "1",
                    "--accelerator", "cpu", "--mean", "0.3", "--std", "0.6", "--validation", "0.2")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.count("images are normalised by mean 0.3 and std 0.6") == 1
    return out


def test_readers_see_images_as_the_run_did(run):
    opened = Run.open(run)
    data = opened.data()
    assert (data.mean, data.std, data.counts()) == ((0.3,), (0.6,), opened.result["images"])
    networks, images, size = networks_of(str(run), None, None, None)
    for name, network in networks.items():
        assert measure(network, images.loader("test", size))["accuracy"] == pytest.approx(
            opened.result[name]["accuracy"]
        )
    _, options, _ = transfer.recipe_like(str(run), "digits")
    assert (options["mean"], options["std"], options["validation"]) == ((0.3,), (0.6,), 0.2)


def test_pruning_further_sees_images_as_the_first_run_did(run, tmp_path):
    asked = {"model": str(run), "data": "digits", "budget": "macs=0.3", "accelerator": "cpu"}
    job = prepare(Request(**asked, out=tmp_path / "further"))
    assert (job.data.mean, job.data.std) == ((0.3,), (0.6,))
    again = prepare(dataclasses.replace(job.request, out=str(tmp_path / "again")))  # as --resume does
    assert (again.data.mean, again.data.std) == ((0.3,), (0.6,))
    other = prepare(Request(**asked, out=tmp_path / "other", mean=(0.1,), std=(0.2,)))
    assert other.data.mean == (0.1,)


def test_a_mean_that_no_images_have_is_refused():
    with pytest.raises(ConfigError, match=r"mean is of images in 0 to 1, not \(123.7,\): divide levels"):
        load_data("digits", mean=(123.7,), std=(0.2,))


def test_imagenets_normalisation_is_said_to_be_that(tmp_path):
    said = load_data("image-folder", write_folders(tmp_path)).normalisation()
    assert said.startswith("images are normalised by mean 0.485,0.456,0.406") and "ImageNet's" in said


def test_a_folder_of_data_sets_is_no_data_set(tmp_path):
    write_folders(tmp_path / "pets", parts=("train",))
    with pytest.raises(ConfigError, match=r"holds data sets, not classes: give one of them, such as .*pets"):
        load_data("image-folder", tmp_path)
    assert load_data("image-folder", tmp_path / "pets" / "train").class_names == ("cat", "dog")


def test_files_without_the_official_checksum_are_named(tmp_path, monkeypatch):
    base = write_cifar(tmp_path, monkeypatch)
    official = load_data("cifar10", tmp_path)
    assert not load_data("cifar10", tmp_path, checksum=False).notes[0].startswith("without")
    file = base / "data_batch_2"
    file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()), protocol=4))  # as a packer would
    with pytest.raises(ConfigError, match=r"data_batch_2 does not have the checksum.*--no-checksum"):
        load_data("cifar10", tmp_path)
    repacked = load_data("cifar10", tmp_path, checksum=False)
    assert repacked.notes[0].startswith("without the official checksum, read all the same")
    assert repacked.notes[0].endswith("data_batch_2")
    assert torch.equal(repacked.train.images, official.train.images)
