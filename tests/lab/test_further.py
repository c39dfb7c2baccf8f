"""Pruning further: a run that begins with the compact network of another leaves a run folder like any other."""

import json
import re

import pytest
import torch
from command import chipnet_, prune

import chipnet
from chipnet.lab.further import run_named
from chipnet.lab.runs.folder import Run
from chipnet.lab.train import Request, prepare

SHORT = ("--limit", "160", "--limit-test", "60", "--threads", "1", "--quiet")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("further") / "first"
    done = chipnet_("prune", "--model", "resnet8", "--data", "digits", "--budget", "macs=0.5", "--epochs", "1",
                    "--accelerator", "cpu", "--out", folder, *SHORT)  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize("budget", ["params=0.1", "macs=60_000"])
def test_budgets_are_of_the_dense_network_that_the_first_run_began_with(first, tmp_path, budget):
    job = prepare(Request(str(first), "digits", budget, tmp_path / "second", accelerator="cpu"))
    dense = Run.open(first).result["dense"]
    assert job.structure.cost.dense["params"] < dense["params"]
    assert job.budget.targets == tuple(chipnet.Budget.parse(budget).limits(dense).items())


def test_what_is_pruned_further_is_a_run_of_the_first_network(first, tmp_path):
    done = prune(tmp_path / "second", *SHORT, **{"--model": first, "--budget": "macs=0.25"})
    assert done.exit_code == 0, done.output
    one, two = Run.open(first), Run.open(tmp_path / "second")
    kind, dense = "macs", one.result["dense"]
    most = int(0.25 * dense[kind])
    assert {k: two.result["dense"][k] for k in ("params", "macs", "volume", "channels")} == {
        k: dense[k] for k in ("params", "macs", "volume", "channels")
    }
    assert 0.5 * most < two.result["compact"][kind] <= most < one.result["compact"][kind]
    assert two.result["limits"] == {kind: most}
    start = two.result["start"]
    assert (start["run"], start["budget"], start["macs"]) == (
        str(first.resolve()),
        {"macs": 0.5},
        one.result["compact"]["macs"],
    )
    assert start["accuracy"] == pytest.approx(one.result["compact"]["accuracy"])

    # An ordinary run folder of the first network: it needs the first run no more.
    assert two.result["model"] == "resnet8"
    assert two.plan().dense == one.plan().dense
    small = two.compact()
    assert sum(p.numel() for p in small.parameters()) == two.result["compact"]["params"]
    x = torch.randn(2, 1, 8, 8)
    again = chipnet.load(one.build, tmp_path / "second" / "model.safetensors").eval()
    assert torch.equal(small(x), again(x))
    kept, before = (chipnet.Masks.load(f / "masks.json").kept for f in (tmp_path / "second", first))
    assert all(set(kept[site]) <= set(before[site]) for site in before)
    assert torch.equal(two.dense()(x), one.dense()(x))
    shown = chipnet_("prune", "--resume", tmp_path / "second").stdout
    assert re.search("│ start +│", shown)
    # A path may be wrapped anywhere.
    assert f"start: the network of {first.resolve()}".replace(" ", "") in "".join(shown.split())


def test_a_third_run_a_transfer_and_an_export_of_what_was_pruned_twice(first, tmp_path):
    second, third = tmp_path / "second", tmp_path / "third"
    assert prune(second, *SHORT, **{"--model": first, "--budget": "macs=0.3"}).exit_code == 0
    assert prune(third, *SHORT, **{"--model": second, "--budget": "macs=0.1"}).exit_code == 0
    result = json.loads((third / "result.json").read_text())
    assert result["compact"]["macs"] <= 0.1 * 763_520
    assert result["start"]["run"] == str(second.resolve())
    moved = chipnet_(
        "transfer", "--from", third, "--data", "digits", "--out", tmp_path / "moved", "--epochs", "1", *SHORT
    )
    assert moved.exit_code == 0, moved.output
    assert (
        json.loads((tmp_path / "moved/result.json").read_text())["compact"]["macs"]
        == result["compact"]["macs"]
    )
    assert chipnet_("export", third, "--format", "torch-export").exit_code == 0
    report = json.loads(chipnet_("inspect", third, "--json").stdout)
    assert report["cost"]["macs"] == result["compact"]["macs"]
    assert chipnet_("report", third).exit_code == 0
    page = (third / "report.html").read_text()
    assert f"start: the compact network of {second.resolve()}, which was pruned further." in page


def test_a_stopped_run_goes_on_from_elsewhere(first, tmp_path, monkeypatch):
    from chipnet.lab import train as loop

    calls, real = [], loop.train_step

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.chdir(first.parent)
    options = {"--model": "./first", "--budget": "macs=0.25"}
    assert prune(tmp_path / "whole", *SHORT, **options).exit_code == 0
    monkeypatch.setattr("chipnet.lab.loop.train_step", stopped)
    assert prune(tmp_path / "run", *SHORT, "--checkpoint-steps", "1", **options).exit_code == 130
    monkeypatch.setattr("chipnet.lab.loop.train_step", real)
    monkeypatch.chdir(tmp_path)
    assert chipnet_("prune", "--resume", tmp_path / "run", "--quiet").exit_code == 0
    one, two = (Run.open(tmp_path / name) for name in ("whole", "run"))
    assert one.plan() == two.plan()
    assert one.result["compact"] == two.result["compact"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"--budget": "macs=0.6"}, "is within the budget macs=0.6 already (macs 3"),
        ({"--budget": "macs=0.0001"}, "smallest reachable"),
        ({"--weights": "w.pt"}, "is a run, which has weights of its own: leave out --weights"),
        ({"--data": "tiny:nothing"}, "--data"),
    ],
)
def test_refusals(first, tmp_path, changes, text):
    done = prune(tmp_path / "run", **{"--model": first, **changes})
    assert (done.exit_code, text in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "run").exists()


def test_a_name_of_a_network_is_no_folder(first, monkeypatch):
    monkeypatch.chdir(first.parent)
    (first.parent / "resnet8").symlink_to(first)
    assert run_named("resnet8") is None and run_named("tv/resnet18") is None and run_named("m:f") is None
    assert run_named("./resnet8") == run_named("first") == first.resolve()
