"""Signals to a whole process group: workers of loaders go on until the run that started them has saved."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from chipnet import ChipNetError
from chipnet.lab import train as loop
from chipnet.lab.cli.errors import stop_signals
from chipnet.lab.data import FolderBatches, FolderImages, LoaderBatches, LoaderImages
from chipnet.lab.data.folders import folder_transform


def write_images(folder, count):
    """``count`` images a class, in the two classes of train and val."""
    noise = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in "ab":
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return sorted(map(str, folder.rglob("*.png")))


def folder_batches(tmp_path):
    paths = write_images(tmp_path, 3)
    images = FolderImages(tuple(paths), torch.zeros(len(paths), dtype=torch.int64))
    transform = folder_transform(8, (0.5,) * 3, (0.5,) * 3, "none")
    return FolderBatches(images, 2, transform, shuffle=False, workers=2)


INITS = []


def own_loader(tmp_path):
    images = TensorDataset(torch.zeros(12, 1, 6, 6), torch.arange(12) % 3)
    loader = DataLoader(images, 2, num_workers=2, worker_init_fn=INITS.append)
    return LoaderBatches(LoaderImages(loader, "own", (1, 6, 6), 3, None), seed=0)


class Holds:
    """A loader of somebody's that has a `DataLoader` inside."""

    def __init__(self, loader):
        self.inside = loader

    def __iter__(self):
        return iter(self.inside)


def held_loader(tmp_path):
    batches = own_loader(tmp_path)
    images = LoaderImages(Holds(batches.images.loader), "own", (1, 6, 6), 3, None)
    return LoaderBatches(images, seed=0)


@pytest.mark.parametrize(
    ("made", "number"),
    [
        (folder_batches, signal.SIGINT),
        (folder_batches, signal.SIGTERM),
        (own_loader, signal.SIGTERM),
        (held_loader, signal.SIGTERM),
    ],
)
def test_workers_end_when_their_parent_says_so(tmp_path, capfd, made, number):
    batches = made(tmp_path)
    with stop_signals() as stop:
        going = iter(batches)
        next(going)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        # From another process: what the parent sends is meant.
        subprocess.run(
            ["sh", "-c", f"kill -{int(number)} {' '.join(str(w.pid) for w in workers)}"], check=True
        )
        assert len(list(going)) == 5
        assert not stop()
        if made is folder_batches:  # others have ended with their epoch
            workers[0].terminate()
            workers[0].join(10)
            assert workers[0].exitcode == 0
    assert capfd.readouterr() == ("", "")
    if made is not folder_batches:
        loader = getattr(batches.images.loader, "inside", batches.images.loader)
        assert loader.worker_init_fn == INITS.append


def test_sigterm_to_all_processes_of_a_run_is_a_clean_stop(tmp_path):
    write_images(tmp_path / "images", 10)
    out, here = tmp_path / "run", os.path.dirname(__file__)
    given = {"model": "tiny:tiny_net", "data": "image-folder", "data-dir": tmp_path / "images"}
    given |= {"image-size": 8, "budget": "macs=0.5", "epochs": 1000, "workers": 2, "threads": 1, "out": out}
    command = [sys.executable, "-m", "chipnet.lab.cli", "prune", "--accelerator", "cpu", "--quiet"]
    run = subprocess.Popen(
        [*command, *(str(part) for name, value in given.items() for part in (f"--{name}", value))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while run.poll() is None and time.monotonic() < deadline:
            if (out / "metrics.csv").exists() and (out / "metrics.csv").read_text().count("\n") > 2:
                break
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGTERM)
        _, said = run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130, said
    first, second = said.splitlines()
    assert first == "stopping after this step; once more stops at once"
    assert second.startswith("stopped in phase train, ")
    assert second.endswith(f"Continue with: chipnet prune --resume {out}")
    assert (out / "checkpoint.pt").exists()


@pytest.mark.parametrize("error", [RuntimeError, ChipNetError])
def test_a_hidden_worker_that_ends_by_the_signal_is_no_failure(tmp_path, monkeypatch, error):
    from tiny import TINY

    def ended(*args, **kwargs):
        raise error("DataLoader worker (pid 3) is killed by signal: Terminated.")

    monkeypatch.setattr("chipnet.lab.loop.train_step", ended)
    asked = loop.Request("tiny:tiny_net", "digits", "macs=0.5", tmp_path / "run", TINY, accelerator="cpu")
    with pytest.raises(loop.Interrupted, match="stopped in phase train"):
        loop.run(loop.prepare(asked), stop=lambda: len(list(tmp_path.glob("run/checkpoint.pt"))) > 0)
    with pytest.raises(error, match="worker"):
        loop.run(loop.prepare(asked, resume=True), stop=lambda: False)
