"""Runs without training: what they leave is a run folder like any other, and nothing is trained."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from command import chipnet_
from tiny import tiny_net

import chipnet
from chipnet.errors import ConfigError
from chipnet.lab.cli import runs
from chipnet.lab.cli.show import how_to_load
from chipnet.lab.config import recipe_for
from chipnet.lab.data import load_data
from chipnet.lab.runs.folder import Run
from chipnet.lab.shrinking import _Told, training_images
from chipnet.lab.train import Interrupted, Request, Silent, prepare, run
from chipnet.lab.val import measure
from chipnet.surgery.storage import save_weights

NET = "tiny:tiny_net"
FILES = {
    "result.json", "plan.json", "masks.json", "model.safetensors", "dense.safetensors", "split.json", "config.yaml",
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Those of a tiny network that has seen digits for a second."""
    torch.manual_seed(0)
    net, data = tiny_net(10, 1), load_data("digits")
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(3):
        for x, y in data.loader("train", 64, train=True):
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    path = tmp_path_factory.mktemp("weights") / "dense.safetensors"
    save_weights(net, path)
    return path


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch, weights):
    def refuse(*args, **kwargs):
        raise AssertionError("something is trained")

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", refuse)
    monkeypatch.setattr(torch.autograd, "backward", refuse)


def shrink(out, weights, *arguments, **changes):
    options = {
        "--model": NET,
        "--data": "digits",
        "--budget": "macs=0.3",
        "--images": 96,
        "--limit-test": 120,
    }
    options |= {"--weights": weights, "--accelerator": "cpu", "--threads": 1, "--out": out, **changes}
    given = [part for name, value in options.items() if value is not None for part in (name, value)]
    return chipnet_("prune", "--no-train", *given, *arguments)


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("shrunk") / "run"
    done = shrink(out, weights)
    assert done.exit_code == 0, done.output
    (out.parent / "stdout").write_text(done.stdout)
    return out


def test_a_run_folder_without_training(folder, weights):
    assert {p.name for p in folder.iterdir()} == FILES
    result = Run.open(folder).result
    dense, cut, refitted = (result[state] for state in ("dense", "hard", "compact"))
    assert cut["accuracy"] < refitted["accuracy"] <= dense["accuracy"] + 5 and dense["accuracy"] > 60
    assert refitted["loss"] < cut["loss"] and "soft" not in result and "steps" not in result
    assert refitted["macs"] == cut["macs"] <= 0.3 * dense["macs"]
    done = result["shrink"]
    assert done["images"] == 96 and 0 < done["refitted"] < done["cut"]
    assert done["layers"] and all(one["after"] <= one["before"] for one in done["layers"])
    assert result["method"] == "shrink"
    assert result["recipe"] == {"batch_size": 32, "limit": None, "limit_test": 120}
    assert set(result["seconds"]) == {"evaluate", "curves", "refit", "total"}

    stdout = (folder.parent / "stdout").read_text()
    for word in ("dense", "as cut", "refitted", "curves: 2 sites", "refit: ", f"loss {refitted['loss']:.3f}"):
        assert word in stdout, word
    assert f"output error: {100 * done['cut']:.3g} % as cut, {100 * done['refitted']:.3g} % after" in stdout
    assert "metrics.csv" not in stdout and max(map(len, re.findall(r"[│┃].*", stdout))) <= 80


def test_it_is_what_the_library_does_with_training_images_as_they_are(folder, weights, tmp_path):
    asked = Request(NET, "digits", "macs=0.3", tmp_path / "run", weights=str(weights), no_train=True, images=96,
                    accelerator="cpu")  # fmt: skip
    job, one = prepare(asked), Run.open(folder)
    batches, (whole, labels) = training_images(job), next(iter(job.data.loader("train", 5000)))
    same = (whole[:, None] == torch.cat(batches)).flatten(2).all(2)  # as they are in the data set
    assert same.shape[1] == 96 and bool(same.any(0).all())
    assert labels[same.any(1)].unique().tolist() == list(range(10))

    found = chipnet.shrink(job.network, batches, "macs=0.3", distance="kl")
    assert found.plan.mask == one.plan().mask
    x = one.images(4)
    torch.testing.assert_close(found.model.eval()(x), one.compact()(x))
    assert found.refitted == pytest.approx(one.result["shrink"]["refitted"])


def test_all_that_reads_runs_reads_it(folder, tmp_path):
    result = Run.open(folder).result
    rows = json.loads(chipnet_("val", folder, "--trust", "--json").stdout)
    for name in ("dense", "compact"):
        assert rows[name]["accuracy"] == pytest.approx(result[name]["accuracy"])
        assert rows[name]["loss"] == pytest.approx(result[name]["loss"], rel=1e-4)
    file = tmp_path / "m.pt2"
    done = chipnet_("export", folder, "--trust", "--format", "torch-export", "--output", file)
    assert done.exit_code == 0 and file.is_file()
    assert "loss" not in Run.open(folder).card()["costs"]["compact"]
    assert "shrink" in chipnet_("ls", folder).stdout
    assert (
        json.loads(chipnet_("inspect", folder, "--trust", "--json").stdout)["cost"]["macs"]
        == (result["compact"]["macs"])
    )
    assert how_to_load(result, folder)


def test_the_report(folder, run_folder, tmp_path):
    assert chipnet_("report", folder, "--trust", "--output", tmp_path / "one.html").exit_code == 0
    text = re.sub(r"<[^>]*>", "", (tmp_path / "one.html").read_text())
    for part in (
        "Cut and refitted, without training, to a budget of macs 0.3",
        "as cut",
        "The refit",
        "error refitted",
    ):
        assert part in text, part
    assert "Progress" not in text and "soft: with the gates" not in text
    for layer in Run.open(folder).result["shrink"]["layers"]:
        assert layer["layer"].removesuffix(".weight") in text
    both = chipnet_("report", folder, run_folder, "--output", tmp_path / "two.html")
    assert both.exit_code == 0, both.output


def test_masks_of_it_are_trained_and_its_network_is_pruned_further(folder, tmp_path, monkeypatch):
    second = shrink(tmp_path / "second", None, "--trust", **{"--model": folder, "--budget": "macs=0.15"})
    assert second.exit_code == 0, second.output
    one, two = Run.open(folder).result, Run.open(tmp_path / "second").result
    assert two["dense"] == one["dense"] and two["start"]["run"] == str(folder.resolve())
    assert two["start"]["accuracy"] == one["compact"]["accuracy"]
    assert two["compact"]["macs"] <= 0.15 * one["dense"]["macs"]
    from chipnet.lab.runs import transfer

    recipe, options, whose = transfer.recipe_like(str(folder), "digits")
    assert (recipe.epochs, recipe.clip_spikes, recipe.limit_test) == (recipe_for("digits").epochs, 2.0, 120)
    assert whose == "the recipe of digits" and options["validation"] == 0.1
    asked = transfer.request_for(
        str(folder), "digits", trust=True, out=str(tmp_path / "moved"), recipe=recipe
    )
    assert not asked.no_train and transfer.prepare_transfer(asked, strict=False).mask is not None


def test_its_config_repeats_it(folder, tmp_path):
    config = folder / "config.yaml"
    assert "no_train: true" in config.read_text() and "train_lr" not in config.read_text()
    again = chipnet_("prune", "--config", config, "--out", tmp_path / "again", "--quiet")
    assert again.exit_code == 0, again.output
    one, two = (Run.open(f).result for f in (folder, tmp_path / "again"))
    assert one["compact"] == two["compact"] and one["shrink"] == two["shrink"]
    assert chipnet_("prune", "--resume", tmp_path / "again").stdout.startswith(
        f"{tmp_path / 'again'} is finished"
    )


def test_a_family_is_nested_and_made_once(weights, tmp_path, monkeypatch):
    reports = []
    monkeypatch.setattr(runs, "report_after", lambda *folders: reports.append(folders))
    given = {"--budget": "macs=0.2,0.5,params=0.9"}
    done = shrink(tmp_path, weights, "--round-to", "2", **given)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("curves: ") == 1 and done.stdout.count("refit: ") >= 2
    folders = tmp_path / "0.5", tmp_path / "0.2"
    assert reports == [folders[:1], folders[1:], folders[::-1]]
    large, small = (Run.open(tmp_path / name) for name in ("0.5", "0.2"))
    assert all(a or not b for a, b in zip(large.plan().mask, small.plan().mask, strict=True))
    for one, part in ((large, 0.5), (small, 0.2)):
        assert one.result["budget"] == {"params": 0.9, "macs": part}
        assert one.result["compact"]["macs"] <= part * one.result["dense"]["macs"]
    assert re.search(r"│ 0\.2 .*│ 0\.5 ", done.stdout, re.DOTALL) and "│  as cut ┃" not in done.stdout
    again = shrink(tmp_path, weights, "--round-to", "2", **given)
    assert again.exit_code == 0 and "curves" not in again.stdout and "refitted" in again.stdout
    more = shrink(tmp_path, weights, "--round-to", "2", **{"--budget": "macs=0.2,0.5,0.3,params=0.9"})
    assert (more.exit_code, "holds a finished run" in more.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "changes", "texts"),
    [
        (
            (),
            {"--model": "resnet8", "--weights": None},
            ["resnet8 begins with new weights: give --weights FILE"],
        ),
        (("--epochs", "1"), {}, ["--no-train trains nothing: leave out --epochs."]),
        (
            ("--method", "fisher", "--lr", "0.1", "--label-smoothing", "0.1", "--precision", "bf16-mixed"),
            {"--masks": "m.json"},
            ["--no-train trains nothing: leave out --method, --masks, --precision, --lr, --label-smoothing."],
        ),
        (("--images", "0"), {}, ["--images must be at least 1, not 0."]),
        (("--train",), {}, ["--images is for a run without training: leave it out, or add --no-train."]),
        ((), {"--budget": "macs=0.0001"}, ["smallest reachable"]),
        ((), {"--budget": "macs=0.5,0.0001"}, ["--budget is below what a connected network costs"]),
    ],
)
def test_refusals(weights, tmp_path, arguments, changes, texts):
    done = shrink(tmp_path / "run", weights, *arguments, **changes)
    assert done.exit_code == 2
    assert all(text in done.stderr for text in texts), done.stderr
    assert not (tmp_path / "run").exists()


def test_a_network_that_knows_nothing_is_doubted(tmp_path):
    done = shrink(tmp_path / "run", None)  # of code it cannot be told before
    assert done.exit_code == 0, done.output
    assert "the network with these weights is right on" in done.stderr
    assert len(Run.open(tmp_path / "run").result["warnings"]) >= 1


def test_a_dry_run(weights, tmp_path):
    done = shrink(tmp_path / "run", weights, "--dry-run")
    assert (
        "without training: curves and a refit, on 96 images" in done.stdout
        and "batches of" not in done.stdout
    )
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_stopped_leaves_no_result_and_begins_anew(weights, tmp_path):
    request = Request(NET, "digits", "macs=0.3", tmp_path / "run", weights=str(weights), no_train=True,
                      images=64, accelerator="cpu")  # fmt: skip
    asked = []
    with pytest.raises(Interrupted, match="stopped in curves, 2 of 2 done; there is no result"):
        run(prepare(request), stop=lambda: asked.append(1) or len(asked) == 2)
    assert not (tmp_path / "run" / "result.json").exists()
    assert run(prepare(request, resume=True))["compact"]["macs"] > 0
    with pytest.raises(ConfigError, match="holds a finished run"):
        prepare(request)


def test_what_a_watcher_is_told():
    class Watcher(Silent):
        def __init__(self):
            self.told = []

        def start(self, phase, steps):
            self.told.append((phase, steps))

        def advance(self, steps):
            self.told.append(steps)

        def end(self, text):
            self.told.append(text)

        def tick(self, text):
            assert text == "0:00:00 left"

    watcher = Watcher()
    told = _Told(watcher, lambda: False)
    told.begin("curves", 2)
    for part, of in (("curves", 2), ("refit", 1), ("refit", 1)):
        for done in range(1, of + 1):
            told(part, done, of)
    assert watcher.told == [
        ("curves", 2), 1, 1, "2 sites, 0 s", ("refit", 1), 1, "1 layer, 0 s", ("refit", 1), 1, "1 layer, 0 s",
    ]  # fmt: skip
    assert set(told.seconds) == {"curves", "refit"}


def test_measured_losses_are_of_the_whole_test_set(folder):
    one = Run.open(folder, trust=True)
    found = measure(one.compact(), one.data().loader("test", 50))
    assert found["loss"] == pytest.approx(one.result["compact"]["loss"], rel=1e-4)
