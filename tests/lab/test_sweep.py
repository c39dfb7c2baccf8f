"""Several budgets in one command, `--dry-run`, `chipnet val` and `--version`."""

import itertools
import json
import re

import pytest
from command import chipnet_, prune

import chipnet
from chipnet import BudgetError
from chipnet.lab import phases
from chipnet.lab import train as loop
from chipnet.lab.cli import runs
from chipnet.lab.cli.sweep import several
from chipnet.lab.runs.folder import Run

SHORT = ("--limit", "160", "--limit-test", "60", "--threads", "1")


def test_several_values_of_one_kind_are_several_budgets():
    assert several("macs=0.5") == several(["macs=0.5", "params=2M"]) == several("0.5,0.25") == {}
    assert several({"macs": 0.5}) == several("") == several(None) == {}
    assert several(["macs=0.5,25%", "params=2M"]) == {
        "0.5": "macs=0.5,params=2M",
        "25%": "macs=25%,params=2M",
    }
    assert several(["macs=0.5", "macs=0.25"]) == {"0.5": "macs=0.5", "0.25": "macs=0.25"}
    with pytest.raises(BudgetError, match="several values of macs and of params: one kind can have several"):
        several("macs=0.5,0.25,params=0.5,0.25")
    with pytest.raises(BudgetError, match=r"macs=0.5,0.5 has a value twice; keep one"):
        several("macs=0.5,0.5")


def test_a_run_a_budget_after_one_dense_training(tmp_path, monkeypatch):
    trained = []
    finish = phases.Train.finish
    monkeypatch.setattr(
        phases.Train, "finish", lambda self, run: trained.append(self.epochs) or finish(self, run)
    )
    reports = []
    monkeypatch.setattr(runs, "report_after", lambda *folders: reports.append(folders))
    budget = {"--budget": "macs=0.5,0.25"}
    done = prune(tmp_path, *SHORT, **budget)
    assert done.exit_code == 0, done.output
    folders = tmp_path / "0.5", tmp_path / "0.25"
    assert reports == [folders[:1], folders[1:], folders]
    one, two = (Run.open(tmp_path / name) for name in ("0.5", "0.25"))
    assert trained == [1, 0]
    assert one.result["budget"] == {"macs": 0.5} and two.result["budget"] == {"macs": 0.25}
    assert one.result["dense"] == two.result["dense"]
    assert (one.folder / "dense.safetensors").read_bytes() == (two.folder / "dense.safetensors").read_bytes()
    for key in ("prune", "finetune", "batch_size", "prune_lr"):
        assert one.result["recipe"][key] == two.result["recipe"][key], key
    lines = done.stdout.splitlines() + done.stderr.splitlines()
    starts = ("images are normalised", "warning: soft pruning has")
    notes = [n for n in lines if "are held out" in n or n.startswith(starts)]
    assert len(notes) == len(set(notes)) == 3, notes  # not once for each budget
    assert "│ dense  │" in done.stdout and "│ 0.5    │" in done.stdout and "│ 0.25   │" in done.stdout

    # The same command again trains nothing; with one budget more it trains that one; with others it is refused.
    monkeypatch.setattr(
        "chipnet.lab.loop.train_step", lambda *a, **k: (_ for _ in ()).throw(AssertionError("trained"))
    )
    again = prune(tmp_path, *SHORT, **budget)
    assert again.exit_code == 0 and "│ 0.25   │" in again.stdout
    other = prune(tmp_path, *SHORT, "--seed", "3", **budget)
    assert (other.exit_code, "holds a run with other options (seed)" in other.stderr) == (2, True)


def stopped_at(step, monkeypatch):
    """Ctrl-C before a training step; returns a list that grows with each step."""
    calls, real = [], loop.train_step

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr("chipnet.lab.loop.train_step", stopped)
    return calls


def test_a_sweep_that_was_stopped_goes_on(tmp_path, monkeypatch):
    calls = stopped_at(35, monkeypatch)
    given = {"--budget": "macs=0.5,0.25"}
    done = prune(tmp_path, *SHORT, "--checkpoint-steps", "1", **given)
    assert done.exit_code == 130
    assert (
        "chipnet prune --resume" in done.stderr
        and "For the other budgets: the same command again" in done.stderr
    )
    assert prune(tmp_path, *SHORT, "--checkpoint-steps", "1", **given).exit_code == 0
    assert len(calls) == 101  # of 100 steps, one was not made
    one, two = (Run.open(tmp_path / name).result for name in ("0.5", "0.25"))
    assert two["compact"]["macs"] <= 0.25 * one["dense"]["macs"]


def test_nested_networks_are_pruned_one_from_the_other(tmp_path, monkeypatch):
    trained, pages = [], []
    finish = phases.Train.finish
    monkeypatch.setattr(
        phases.Train, "finish", lambda self, run: trained.append(self.epochs) or finish(self, run)
    )
    monkeypatch.setattr(runs, "report_after", lambda *folders: pages.append(folders))
    given = {"--budget": "macs=0.25,0.6,0.4,params=0.9", "--epochs": "1,2,3"}
    done = prune(tmp_path, *SHORT, "--nested", **given)
    assert done.exit_code == 0, done.output
    folders = [tmp_path / name for name in ("0.6", "0.4", "0.25")]
    assert pages == [*((f,) for f in folders), tuple(folders)]
    found = [Run.open(folder) for folder in folders]
    assert trained == [1, 0, 0]
    assert [run.result["recipe"]["prune"] for run in found] == [2, 1, 1]
    assert [run.result["recipe"]["finetune"] for run in found] == [3, 2, 2]
    assert [run.result.get("start", {}).get("run") for run in found] == [
        None, *(str(folder.resolve()) for folder in folders[:2])
    ]  # fmt: skip
    dense = found[0].result["dense"]
    for wide, thin in itertools.pairwise(found):
        assert all(a or not b for a, b in zip(wide.plan().mask, thin.plan().mask, strict=True))
    for run, part in zip(found, (0.6, 0.4, 0.25), strict=True):
        assert run.result["dense"] == dense and run.result["model"] == "tiny:tiny_net"
        assert run.result["budget"] == {"params": 0.9, "macs": part}
        assert run.result["compact"]["macs"] <= part * dense["macs"]
    assert re.search(r"│ 0\.25 .*│ 0\.6 .*│ 0\.4 ", done.stdout, re.DOTALL)

    # Again: nothing is trained. Without --nested it is another family.
    monkeypatch.setattr("chipnet.lab.loop.train_step", lambda *a, **k: pytest.fail("trained"))
    again = prune(tmp_path, *SHORT, "--nested", **given)
    assert again.exit_code == 0 and "│ 0.25 " in again.stdout
    other = prune(tmp_path, *SHORT, **given)
    assert (other.exit_code, "holds a run with other options" in other.stderr) == (2, True)


def test_a_nested_family_that_was_stopped_goes_on(tmp_path, monkeypatch):
    calls = stopped_at(75, monkeypatch)
    given = {"--budget": "macs=0.5,0.25"}
    done = prune(tmp_path, *SHORT, "--nested", "--checkpoint-steps", "1", **given)
    assert done.exit_code == 130 and "For the other budgets: the same command again" in done.stderr
    assert prune(tmp_path, *SHORT, "--nested", "--checkpoint-steps", "1", **given).exit_code == 0
    assert len(calls) == 101  # of 100 steps, one was not made
    assert Run.open(tmp_path / "0.25").result["start"]["run"] == str(tmp_path / "0.5")


def test_a_nested_family_of_data_that_normalises_itself(tmp_path):
    """The second run must not ask a callable for a mean that it does not take; its own config.yaml neither."""
    given = {"--budget": "macs=0.5,0.25", "--data": "tiny:own_digits", "--data-dir": tmp_path}
    done = prune(tmp_path, *SHORT, "--nested", **given)
    assert done.exit_code == 0, done.output
    config = tmp_path / "0.25" / "config.yaml"
    again = chipnet_("prune", "--config", config, "--out", tmp_path / "again", "--quiet")
    assert again.exit_code == 0, again.output
    one, two = (Run.open(tmp_path / name).result for name in ("0.25", "again"))
    assert one["compact"] == two["compact"] and one["start"] == two["start"]


@pytest.mark.parametrize("budget", ["macs=0.5", "macs=0.5,params=0.5"])
def test_one_network_is_not_nested(tmp_path, no_training, budget):
    done = prune(tmp_path / "run", "--nested", **{"--budget": budget})
    assert (done.exit_code, "--nested is for several values of one kind" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ("macs=0.5,0.0001", "--budget is below what a connected network costs"),
        ("macs=0.5,2,params=1,half", "several values of macs and of params"),
        ("macs=0.5,half", "macs=half: not a number"),
        ("macs=2,000,000", "error: 2 mistakes"),
    ],
)
def test_every_budget_is_checked_before_the_first_run(tmp_path, no_training, budget, text):
    done = prune(tmp_path / "run", **{"--budget": budget})
    assert (done.exit_code, text in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, no_training):
    done = prune(tmp_path / "run", *SHORT, "--dry-run", **{"--epochs": "2,3,4"})
    assert done.exit_code == 0, done.output
    for text in (
        "images: train 160, ",
        "gates",
        "dense: channels ",
        "budget: macs at most ",
        "smallest reachable",
        "train 2 (of ",
        "prune 3 (of ",
        "finetune 4 (of ",
        f"folder: {tmp_path / 'run'}",
    ):
        assert text in done.stdout, text
    assert not (tmp_path / "run").exists()
    assert prune(tmp_path / "run", "--dry-run", **{"--budget": "macs=0.0001"}).exit_code == 2


def test_val_measures_what_the_run_did(tmp_path):
    assert prune(tmp_path / "run", *SHORT, "--quiet").exit_code == 0
    result = Run.open(tmp_path / "run").result
    rows = json.loads(chipnet_("val", tmp_path / "run", "--json").stdout)
    for name in ("dense", "compact"):
        assert rows[name]["accuracy"] == pytest.approx(result[name]["accuracy"])
        assert (rows[name]["images"], rows[name]["loss"] > 0) == (60, True)
    file = tmp_path / "run" / "model.safetensors"
    assert json.loads(chipnet_("val", file, "--json").stdout)["model.safetensors"] == rows["compact"]
    text = chipnet_("val", tmp_path / "run").stdout
    assert f"{result['compact']['accuracy']:.2f} %" in text and "60 test images" in text

    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(file.read_bytes())
    bare = chipnet_("val", alone)
    assert (bare.exit_code, "Give the folder of a run, or --model and --data" in bare.stderr) == (2, True)
    told = chipnet_("val", alone, "--model", "tiny:tiny_net", "--data", "digits", "--json")
    assert json.loads(told.stdout)["alone.safetensors"]["images"] == 359


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nowhere",), "nowhere"),
        ((".", "--batch-size", "0"), "--batch-size must be at least 1, not 0"),
        ((".", "--device", "tpu"), "there is no device 'tpu' here"),
    ],
)
def test_val_refuses_in_one_line(tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    done = chipnet_("val", *arguments)
    assert (done.exit_code, text in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr


def test_the_version_is_told():
    assert chipnet_("--version").stdout.startswith(f"chipnet {chipnet.__version__} (torch ")
