"""Two real processes (gloo, under torchrun): the same masks, plans and weights on both, and as one has them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import killing
import pytest
import ranks
import torch
from safetensors.torch import load_file

from chipnet._util import distributed
from chipnet.lab.data import load_data
from chipnet.lab.data.images import count_batches
from chipnet.lab.train import Recipe, Request, prepare, run
from chipnet.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(
    1,
    2,
    1,
    batch_size=32,
    train_lr=0.05,
    prune_lr=0.05,
    clip=1.0,
    label_smoothing=0.1,
    limit=171,
    limit_test=61,
)


pytestmark = pytest.mark.xdist_group("distributed")  # one pair of processes for all

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One pair of processes for all tests here: two runs, one of them twice, then loops of a user's own."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(ROOT / "tests" / "ranks.py"), str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def same(a, b):
    """Equal to the last bit, whatever holds the tensors."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("phase", ["train", "prune", "finetune"])
@pytest.mark.parametrize("model", ranks.RUNS)
def test_both_processes_have_the_same_at_every_phases_end(folder, model, phase):
    zero, one = (torch.load(folder / f"{model}-{rank}-{phase}.pt") for rank in (0, 1))
    assert set(zero) >= {"weights", "plan", "known"} | ({"mask", "pruner"} if phase == "prune" else set())
    for key in zero:
        assert same(zero[key], one[key]), key


def test_without_batch_statistics_two_processes_compute_what_one_does(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    alone = run(
        prepare(
            Request("ranks:conv_net", "digits", "macs=0.5", tmp_path, RECIPE, accelerator="cpu", threads=1)
        )
    )
    both = json.loads((folder / "conv_net" / "result.json").read_text())
    assert both["environment"]["processes"] == 2
    assert both["images"] == alone["images"] == {"train": 171, "validation": 19, "test": 61}
    plans = [json.loads((f / "plan.json").read_text()) for f in (folder / "conv_net", tmp_path)]
    assert plans[0] == plans[1]
    for name in ("dense.safetensors", "model.safetensors"):
        one, two = load_file(tmp_path / name), load_file(folder / "conv_net" / name)
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-5)
    # Every image counts once, in evaluation too: 61 test images on two processes.
    assert both["compact"]["accuracy"] == pytest.approx(alone["compact"]["accuracy"])
    assert both["compact"]["accuracy"] * 61 / 100 == pytest.approx(
        round(both["compact"]["accuracy"] * 61 / 100)
    )


def test_two_processes_that_are_killed_and_continued_end_with_the_same_bits(folder):
    """In soft pruning, with dropout on each and loaders of the user's own. (`test_resume` kills a real process.)"""
    assert not (folder / "killed-0-train.pt").exists() and (folder / "killed-1-prune.pt").exists()
    assert killing.fingerprint(folder / "killed") == killing.fingerprint(folder / "dropping")


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_of_the_users_own_with_ddp(folder, method):
    zero, one = (torch.load(folder / f"loop-{rank}.pt")[method] for rank in (0, 1))
    assert same(zero["mask"], one["mask"])
    assert same(zero["weights"], one["weights"])
    assert same(zero["pruner"], one["pruner"])
    alone = ranks.own_loop(method)
    assert torch.equal(alone["mask"], zero["mask"])
    for key, tensor in alone["weights"].items():
        torch.testing.assert_close(zero["weights"][key], tensor, rtol=1e-4, atol=1e-5)
    if method in ("chipnet", "fisher"):
        torch.testing.assert_close(zero["pruner"]["square"], alone["pruner"]["square"], rtol=1e-3, atol=0)
    if method == "chipnet-2026a":  # what the gates' gradients said
        torch.testing.assert_close(zero["pruner"]["square"], alone["pruner"]["square"], rtol=1e-4, atol=0)
        # Early: a normalised gradient's steps follow rounding. One process alone, its inputs changed by 1e-6, has
        # a psi (of up to 4) 0.001 away at this step, 0.1 eight steps later and 3 where benefit and budget balance.
        torch.testing.assert_close(zero["early"]["psi"], alone["early"]["psi"], rtol=0, atol=0.01)


@pytest.mark.parametrize("train", [True, False])
def test_the_parts_of_all_processes_are_the_whole(train):
    data = load_data("digits", limit=171)
    whole = data.loader("train", 32, train=train, seed=3)
    parts = [data.loader("train", 32, train=train, seed=3, part=(k, 2)) for k in (0, 1)]
    if not train:
        seen = torch.cat([y for part in parts for _, y in part])
        assert torch.equal(seen, data.train.labels)
        return
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *parts, strict=True):
        assert torch.equal(x, torch.cat([x0, x1]))
        assert torch.equal(y, torch.cat([y0, y1]))
    assert [whole.size(i) for i in range(len(whole))] == [32] * 5 + [11]


@pytest.mark.parametrize("start", [0, 1, 5])
def test_an_epoch_can_begin_at_any_batch(start):
    data = load_data("digits", limit=171)
    whole, rest = (data.loader("train", 32, train=True, seed=3) for _ in range(2))
    whole.set_epoch(4)
    rest.set_epoch(4, start)
    for (x, y), (x0, y0) in zip(list(whole)[start:], list(rest), strict=True):
        assert torch.equal(x, x0) and torch.equal(y, y0)
    assert len(list(rest)) == 6  # the next epoch is whole again


def test_a_last_batch_too_small_for_every_process_is_dropped():
    assert [count_batches(67, 32, True, (0, n)) for n in (1, 2)] == [3, 2]
    assert [count_batches(67, 32, False, (k, 2)) for k in (0, 1)] == [2, 2]


def test_one_process_agrees_with_itself():
    assert (distributed.world(), distributed.gathered(3), distributed.sums([1, 2], None)) == (
        1,
        [3],
        [1, 2],
    )
