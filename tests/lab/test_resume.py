"""Runs that are stopped or killed: the bits they end with, and what damaged checkpoints say."""

import errno
import os
import random

import killing
import pytest
import torch
from tiny import TINY
from typer.testing import CliRunner

from chipnet import ChipNetError, ConfigError, LoadError
from chipnet.lab import checkpoint, cli
from chipnet.lab import train as loop
from chipnet.lab.job import check_unused
from chipnet.lab.train import SpikeClip, prepare, run

ARGUMENTS = (
    "--model", "tiny:tiny_net", "--data", "digits", "--budget", "macs=0.5", "--epochs", "2,4,10",
    "--limit", "320", "--limit-test", "60", "--accelerator", "cpu", "--checkpoint-steps", "3", "--quiet",
)  # fmt: skip


def test_killed_twice_a_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    """The second kill hits the continued run. Twenty kills: `python -m benchmarks.kill`."""
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    generator = random.Random(5)
    out, whole = tmp_path / "killed", tmp_path / "whole"
    for phase in ("prune", "finetune"):
        assert killing.killed(out, phase, generator, *ARGUMENTS, "--out", str(out))
        assert not (out / "result.json").exists()
    # In this process, whose first run it is: nothing of the killed ones is left here.
    for arguments in (("--resume", out, "--quiet"), (*ARGUMENTS, "--out", whole)):
        assert CliRunner().invoke(cli.app, ["prune", *map(str, arguments)]).exit_code == 0
    assert killing.fingerprint(out) == killing.fingerprint(whole)
    assert not (out / "checkpoint.pt").exists()


@pytest.mark.parametrize(("method", "most"), [("chipnet-paper", 6), ("bar", 24), ("random", 24)])
def test_stopped_at_every_pause_a_run_ends_with_the_same_bits(request_for, tmp_path, method, most):
    run(prepare(request_for(out=tmp_path / "whole", method=method)))
    at = random.Random(1)
    stopped, resume = 0, False
    while True:
        left = at.randrange(most // 2, most)

        def stop():
            nonlocal left
            left -= 1
            return left <= 0

        try:
            run(prepare(request_for(method=method), resume=resume), stop=stop)
            break
        except loop.Interrupted:
            stopped, resume = stopped + 1, True
    assert stopped >= (8 if most < 10 else 1)
    assert killing.fingerprint(tmp_path / "run") == killing.fingerprint(tmp_path / "whole")


def stopped_run(make):
    calls = []

    def stop():
        calls.append(1)
        return len(calls) == 8

    with pytest.raises(loop.Interrupted):
        run(prepare(make(checkpoint_steps=2)), stop=stop)


def test_a_truncated_checkpoint_costs_the_steps_since_the_one_before(request_for, tmp_path):
    run(prepare(request_for(out=tmp_path / "whole")))
    stopped_run(request_for)
    out = tmp_path / "run"
    whole = (out / "checkpoint.pt").read_bytes()
    newest = checkpoint.read(out)["state"]
    at = whole.index(next(iter(checkpoint.read(out)["network"].values())).numpy().tobytes()) + 5
    one_bit = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]  # of a weight
    (out / "checkpoint.pt").write_bytes(one_bit)
    flipped = checkpoint.read(out)["state"]
    (out / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    before = checkpoint.read(out)["state"]
    assert (before["phase"], before["step"]) != (newest["phase"], newest["step"])
    assert (before["phase"], before["step"]) == (flipped["phase"], flipped["step"])
    run(prepare(request_for(), resume=True))
    assert killing.fingerprint(out) == killing.fingerprint(tmp_path / "whole")


def test_what_gradients_are_typical_survives_a_stop(request_for, tmp_path, monkeypatch):
    """With a clip that is at work in most steps, and once more without its state."""
    monkeypatch.setattr("chipnet.lab.loop.SpikeClip", lambda factor: SpikeClip(1.01, memory=0.5))
    run(prepare(request_for(out=tmp_path / "whole")))
    stopped_run(request_for)
    run(prepare(request_for(), resume=True))
    assert killing.fingerprint(tmp_path / "run") == killing.fingerprint(tmp_path / "whole")
    monkeypatch.setattr(SpikeClip, "load_state_dict", lambda self, state: None)
    stopped_run(lambda **changes: request_for(overwrite=True, **changes))
    run(prepare(request_for(), resume=True))
    assert killing.fingerprint(tmp_path / "run") != killing.fingerprint(tmp_path / "whole")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not a checkpoint at all"])
def test_when_no_checkpoint_can_be_read_both_are_named(request_for, tmp_path, content):
    stopped_run(request_for)
    out = tmp_path / "run"
    for name in ("checkpoint.pt", "checkpoint-before.pt"):
        (out / name).write_bytes(content)
    with pytest.raises(LoadError) as caught:
        run(prepare(request_for(), resume=True))
    text = str(caught.value)
    assert f"{out / 'checkpoint.pt'} is truncated or damaged" in text
    assert f"{out / 'checkpoint-before.pt'} is truncated or damaged" in text
    assert f"Start again with: chipnet prune --config {out}/config.yaml" in text


def test_a_checkpoint_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    torch.save({"format": 1, "state": Bomb()}, tmp_path / "checkpoint.pt")
    with pytest.raises(LoadError, match="truncated or damaged"):
        checkpoint.read(tmp_path)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_file_systems_without_links_keep_the_checkpoint_before(tmp_path, monkeypatch, code):
    def link(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "symlink", link)
    for number in range(3):
        checkpoint.write(tmp_path, {"state": number})
    assert checkpoint.read(tmp_path)["state"] == 2
    (tmp_path / "checkpoint.pt").unlink()
    assert checkpoint.read(tmp_path)["state"] == 1
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-before.pt"}


@pytest.mark.parametrize(("call", "moment"), [("fsync", 1), ("replace", 1), ("replace", 2)])
def test_at_every_moment_there_is_a_whole_checkpoint(tmp_path, monkeypatch, call, moment):
    """A kill at any rename, and an error there, cost no more than the newest state."""
    for number in range(2):
        checkpoint.write(tmp_path, {"state": number})
    real, calls = getattr(os, call), []

    def broken(*args):
        calls.append(args)
        assert checkpoint.there(tmp_path) and checkpoint.read(tmp_path)["state"] == 1
        if len(calls) == moment:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args)

    monkeypatch.setattr(os, call, broken)
    with pytest.raises(ChipNetError, match=r"Input/output error\)\. The last one is intact: mend that, then"):
        checkpoint.write(tmp_path, {"state": 2})
    monkeypatch.undo()
    assert checkpoint.read(tmp_path)["state"] == 1
    assert {p.name for p in tmp_path.iterdir()} <= {"checkpoint.pt", "checkpoint-before.pt"}
    checkpoint.write(tmp_path, {"state": 2})
    assert checkpoint.read(tmp_path)["state"] == 2


def test_a_run_whose_last_rename_was_cut_off_is_not_overwritten(tmp_path):
    checkpoint.write(tmp_path, {"state": 1})
    (tmp_path / "checkpoint.pt").rename(tmp_path / "checkpoint-before.pt")
    with pytest.raises(ConfigError, match="holds a run that was stopped"):
        check_unused(tmp_path, False)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(request_for, tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        ChipNetError, match=r"cannot write the checkpoint .*No space left.*--resume"
    ) as caught:
        run(prepare(request_for(checkpoint_steps=2)))
    monkeypatch.undo()
    assert str(tmp_path / "run") in str(caught.value)
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.endswith(".tmp")]
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    run(prepare(request_for(), resume=True))
    run(prepare(request_for(out=tmp_path / "whole")))
    assert killing.fingerprint(tmp_path / "run") == killing.fingerprint(tmp_path / "whole")


def test_dropout_continues_with_its_random_numbers(request_for, tmp_path):
    import test_resume

    assert test_resume.TINY is TINY
    options = {"model": "test_resume:dropping", "recipe": TINY}
    run(prepare(request_for(out=tmp_path / "whole", **options)))
    with pytest.raises(loop.Interrupted):
        calls = []
        run(prepare(request_for(**options)), stop=lambda: calls.append(1) or len(calls) == 3)
    run(prepare(request_for(**options), resume=True))
    assert killing.fingerprint(tmp_path / "run") == killing.fingerprint(tmp_path / "whole")


def dropping(num_classes, in_channels):
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(in_channels, 11, 3), nn.BatchNorm2d(11), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(11 * 36, num_classes),
    )  # fmt: skip
