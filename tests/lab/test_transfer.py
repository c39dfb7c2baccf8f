"""Masks on another network: what fits, what is refused and why, and `chipnet transfer` from end to end."""

import dataclasses
import json
import math
import re
import shutil

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

import chipnet
from chipnet import LoadError, Masks, PlanError, Structure
from chipnet.lab import cli
from chipnet.lab import train as loop
from chipnet.lab.config_file import read_config
from chipnet.lab.data import load_data
from chipnet.lab.layers import request_from
from chipnet.lab.loop import Loop
from chipnet.lab.models import get_model
from chipnet.lab.phases import PHASES
from chipnet.lab.runs.transfer import recipe_like
from chipnet.surgery.storage import save_weights

RUNNER = CliRunner()


def few_digits(seed=0, validation=0.1):
    """The digits 0 to 2 in three equal channels: other classes, other input channels."""
    data = load_data("digits", seed=seed, validation=validation, limit=800, limit_test=120)
    parts = {}
    for split in ("train", "validation", "test"):
        images = getattr(data, split)
        few = images.subset((images.labels < 3).nonzero().squeeze(1))
        parts[split] = dataclasses.replace(few, images=few.images.repeat(1, 3, 1, 1))
    mean, std = (values * 3 for values in (data.mean, data.std))
    return dataclasses.replace(
        data, **parts, name="few", num_classes=3, in_channels=3, mean=mean, std=std, class_names=tuple("012")
    )


def structure(classes=10, channels=3, model="resnet8", **options):
    return Structure(get_model(model, classes, channels), torch.zeros(1, channels, 8, 8), **options)


def some_mask(s, seed=0):
    scores = torch.rand(s.gates, generator=torch.Generator().manual_seed(seed))
    return s.harden(scores, {"macs": 0.3})


# -- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"realisation": "indexed"}, {"share": False}])
def test_masks_fit_the_same_architecture_with_other_classes_and_channels(options):
    source, target = structure(**options), structure(classes=7, channels=1, **options)
    mask = some_mask(source)
    masks = Masks.of(source, mask)
    moved = masks.transfer(target)
    # Hand check: for this family gates are in the same order, so the gates themselves are equal.
    assert torch.equal(moved, mask)
    assert masks.fingerprint == Masks.of(target, moved).fingerprint
    small = chipnet.compact(get_model("resnet8", 7, 1), target.plan(moved))
    assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_kept_indices_are_those_of_the_plan():
    s = structure()
    plan = s.plan(some_mask(s), chipnet.Budget.parse("macs=0.3"))
    masks = Masks.of(s, torch.tensor(plan.mask), plan.budget)
    norm = "stages.0.0.bn1"
    assert masks.kept[norm] == plan.keep[f"{norm}.weight"][0]
    assert masks.budget == "macs=0.3"
    assert "fc" not in masks.widths  # no gates act there


def test_masks_go_to_disk_and_back(tmp_path):
    s = structure()
    masks = Masks.of(s, some_mask(s))
    masks.save(tmp_path / "masks.json")
    assert Masks.load(tmp_path / "masks.json") == masks
    text = (tmp_path / "masks.json").read_text()
    assert len(text) < 100_000  # no weights


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda d: d.update(version=2), "no file of masks that this chipnet reads"),
        (lambda d: d.pop("sites"), "they have no sites"),
        (lambda d: d.update(sites={}), "they have no sites"),
        (lambda d: d.update(sites=[1]), "they have no sites"),
        (lambda d: d.update(network=7), "'network' must be a text, not 7"),
        (lambda d: d.pop("budget"), "'budget' must be a text, not None"),
        (lambda d: d.update(budget="hello"), "cannot use the budget 'hello': - 'hello' does not say what it"),
        (lambda d: d.update(realisation="dense"), "'realisation' must be 'plain' or 'indexed', not 'dense'"),
        (lambda d: d["sites"].update(norm=[1]), "site 'norm': it must have 'channels' and 'kept'"),
        (lambda d: d["sites"]["norm"].pop("kept"), "site 'norm': it must have 'channels' and 'kept'"),
        (lambda d: d["sites"]["norm"].update(channels=12), "do not match their fingerprint"),
        (lambda d: d.pop("fingerprint"), "do not match their fingerprint"),
        *(
            (
                lambda d, width=width: d["sites"]["norm"].update(channels=width),
                f"site 'norm': channels must be a whole number above 0, not {width!r}",
            )
            for width in (math.inf, 0, True, "11", 11.0)
        ),
        *(
            (lambda d, kept=kept: d["sites"]["norm"].update(kept=kept), f"site 'norm': {said}")
            for kept, said in (
                ("012", "kept must be a list of indices, not '012'"),
                ([0.7, 1.9], "kept holds 0.7, which is no index"),
                ([False, True], "kept holds False, which is no index"),
                ([0, 99], "kept holds 99, and its channels are 0 to 10"),
                ([-1], "kept holds -1, and its channels are 0 to 10"),
                ([1, 0], "kept holds 0 after 1, not ascending"),
                ([1, 1], "kept holds 1 twice"),
            )
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, text):
    Masks({"norm": 11}, {"norm": (0, 1)}, "Net", "plain").save(tmp_path / "masks.json")
    data = json.loads((tmp_path / "masks.json").read_text())
    damage(data)
    (tmp_path / "masks.json").write_text(json.dumps(data))
    with pytest.raises(LoadError, match=re.escape(text)) as caught:
        Masks.load(tmp_path / "masks.json")
    assert str(tmp_path / "masks.json") in str(caught.value)


def test_what_is_no_json_or_not_there_is_refused(tmp_path):
    (tmp_path / "x").write_text("[1, 2]")
    with pytest.raises(LoadError, match="no file of masks"):
        Masks.load(tmp_path / "x")
    with pytest.raises(LoadError, match="cannot read masks"):
        Masks.load(tmp_path / "y")
    (tmp_path / "z").write_text("[" * 100_000)
    with pytest.raises(LoadError, match="cannot read masks"):
        Masks.load(tmp_path / "z")


def test_nothing_in_common_is_an_error():
    s = structure()
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    with pytest.raises(PlanError, match=r"nothing of the masks \(of a ResNet\) matches this Sequential"):
        Masks.of(s, some_mask(s)).transfer(Structure(net, torch.zeros(1, 3)))


def test_all_differences_are_named():
    s = structure()
    masks = Masks.of(s, some_mask(s))
    widths, kept = dict(masks.widths), dict(masks.kept)
    widths["stages.1.0.bn1"] += 1
    widths["stages.9.bn"], kept["stages.9.bn"] = 4, (0,)
    del widths["stages.2.0.bn1"]
    with pytest.raises(PlanError) as caught:
        dataclasses.replace(masks, widths=widths, kept=kept).transfer(s)
    said = str(caught.value)
    assert "stages.1.0.bn1: 32 channels in this ResNet, 33 in the masks" in said
    assert "stages.9.bn: not gated in this ResNet" in said
    assert (
        "stages.2.0.bn1: not in the masks (of a ResNet); keep it whole with ignore=['stages.2.0.bn1']" in said
    )


def test_masks_of_one_stream_that_differ_do_not_fit_shared_gates():
    separate, shared = structure(share=False), structure()
    everything = torch.ones(separate.gates, dtype=torch.bool)
    assert Masks.of(separate, everything).transfer(shared).all()  # the same everywhere: fits
    site = next(site for site in separate.sites if site.name == "stages.0.0.bn2")
    everything[site.gates[3]] = False
    with pytest.raises(PlanError, match=r"shares gates with .* and was masked otherwise"):
        Masks.of(separate, everything).transfer(shared)


def test_masks_do_not_fit_where_a_pruned_site_is_whole():
    s = structure()
    with pytest.raises(PlanError, match=r"stages.0.0.bn1: not gated in this ResNet"):
        Masks.of(s, some_mask(s)).transfer(structure(ignore=["stages.0.0.*"]))


def test_masks_that_disconnect_are_refused():
    s = structure(share=False, realisation="indexed")
    masks = Masks.of(s, torch.zeros(s.gates, dtype=torch.bool))
    with pytest.raises(PlanError, match="does not reach every output"):
        masks.transfer(s)


# -- the command ------------------------------------------------------------------------------------------


def chipnet_(*arguments):
    result = RUNNER.invoke(cli.app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "source"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(__file__).rpartition("/")[0])
        options = ["--model", "tiny:tiny_net", "--data", "digits", "--budget", "macs=0.5"]
        done = chipnet_("prune", *options, "--epochs", "1", "--method", "random", "--out", out)
    assert done.exit_code == 0, done.output
    return out


def transfer(source, out, *more):
    options = ["--data", "test_transfer:few_digits", "--batch-size", "16", "--accelerator", "cpu"]
    return chipnet_("transfer", "--from", source, "--out", out, *options, *more)


def test_transfer_trains_the_same_architecture_on_other_data(finished, tmp_path):
    done = transfer(finished, tmp_path / "out", "--epochs", "3")
    assert done.exit_code == 0, done.output
    assert "masks of" in done.stdout
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    source = json.loads((finished / "result.json").read_text())
    assert (result["model"], result["method"]) == (source["model"], "random")
    assert result["data"] == "test_transfer:few_digits"
    assert result["budget"] == {"macs": 0.5}
    assert result["masks"] == str(finished / "masks.json")
    assert result["compact"]["channels"] == source["compact"]["channels"] - 7  # but for the classes
    before, after = (Masks.load(run / "masks.json") for run in (finished, tmp_path / "out"))
    assert before.kept == after.kept
    assert result["compact"]["accuracy"] > 60  # of three classes; it has really been trained
    from tiny import TinyNet, rows

    table = rows(tmp_path / "out" / "metrics.csv")
    assert [(r["phase"], r["epoch"]) for r in table] == [("finetune", str(n)) for n in range(4)]
    small = chipnet.load(lambda: TinyNet(3, 3), tmp_path / "out" / "model.safetensors")
    assert small(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_transfer_may_start_from_dense_weights_of_the_target(finished, tmp_path, monkeypatch):
    from tiny import TinyNet

    dense = TinyNet(3, 3)
    save_weights(dense, tmp_path / "w.safetensors")
    seen = []
    real = loop.train_step
    monkeypatch.setattr(
        "chipnet.lab.loop.train_step",
        lambda f, m, *a, **k: seen.append(m.fc.bias.detach().clone()) or real(f, m, *a, **k),
    )
    done = transfer(finished / "masks.json", tmp_path / "out", "--epochs", "1", "--model", "tiny:tiny_net",
                    "--weights", tmp_path / "w.safetensors")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert torch.equal(seen[0], dense.fc.bias)


def test_the_whole_recipe_is_spent_on_the_compact_network(finished, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        loop, "run", lambda job, *a: asked.append(job) or (_ for _ in ()).throw(KeyboardInterrupt)
    )
    transfer(finished, tmp_path / "out")
    usual = loop.recipe_for("test_transfer:few_digits")
    assert asked[0].recipe.epochs == usual.epochs
    assert asked[0].mask is not None


@pytest.fixture
def asked(monkeypatch):
    jobs = []
    stop = lambda job, *a: jobs.append(job) or (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    monkeypatch.setattr(loop, "run", stop)
    return jobs


OWN = {"train": 3, "prune": 2, "finetune": 4, "batch_size": 16, "label_smoothing": 0.1, "limit": 300}


@pytest.fixture
def own_way(finished, tmp_path):
    """A run with a recipe that no data set has by default."""

    def made(**changes):
        shutil.copytree(finished, tmp_path / "own")
        config = tmp_path / "own" / "config.yaml"
        values = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump({**values, "recipe": {**values["recipe"], **OWN}, **changes}))
        return tmp_path / "own"

    return made


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ((), {}),
        (("--batch-size", "32"), {"batch_size": 32, "train_lr": 0.1, "prune_lr": 0.1}),
        (("--batch-size", "32", "--lr", "0.02"), {"batch_size": 32, "train_lr": 0.02, "prune_lr": 0.02}),
        (("--limit", "200", "--limit-test", "50"), {"limit": 200, "limit_test": 50}),
        (("--epochs", "5"), {"train": 0, "prune": 1, "finetune": 4}),
    ],
)
def test_on_the_data_of_the_run_the_recipe_is_the_run_s(own_way, asked, tmp_path, options, changes):
    source = own_way()
    done = chipnet_("transfer", "--from", source, "--data", "Digits", "--out", tmp_path / "out", *options)
    own = request_from(read_config(source / "config.yaml")).recipe
    assert {n: getattr(own, n) for n in OWN} == OWN
    assert asked[0].recipe == dataclasses.replace(own, **changes)
    assert asked[0].data.counts()["train"] == changes.get("limit", 300)
    assert f"{sum(asked[0].recipe.epochs)} epochs by the run's own recipe" in done.stdout
    current = Loop(asked[0], PHASES, loop.Silent(), lambda: False)
    assert current.recipe.finetune == (5 if options[:1] == ("--epochs",) else 9)
    current.metrics.close()


def test_elsewhere_the_recipe_is_the_data_set_s(own_way, asked, tmp_path):
    source = own_way()
    chipnet_("transfer", "--from", source, "--data", "test_transfer:few_digits", "--out", tmp_path / "a")
    chipnet_("transfer", "--from", source, "--data", "digits", "--quick", "--out", tmp_path / "b")
    model = ("--model", "tiny:tiny_net")
    chipnet_("transfer", "--from", source / "masks.json", "--data", "digits", *model, "--out", tmp_path / "c")
    usual = loop.recipe_for("digits")
    assert [job.recipe for job in asked] == [
        loop.recipe_for("test_transfer:few_digits").fitted(8, lambda size: 200 // size),
        loop.recipe_for("digits", quick=True),
        usual,
    ]


def test_a_name_that_says_little_means_the_run_s_data_only_in_the_run_s_folder(
    own_way, tmp_path, monkeypatch
):
    (tmp_path / "there").mkdir()
    source = own_way(data="image-folder", data_dir="there")
    result = json.loads((source / "result.json").read_text())
    result["input"]["data_dir"] = str(tmp_path / "there")
    (source / "result.json").write_text(json.dumps(result))
    same = ("there", tmp_path / "there", tmp_path / "here" / ".." / "there")
    monkeypatch.chdir(tmp_path)
    for folder in same:
        assert recipe_like(str(source), "image_folder", str(folder))[2] == "the run's own recipe"
    config = (source / "config.yaml").read_text().replace("image_size: null", "image_size: 96")
    (source / "config.yaml").write_text(
        re.sub(r" *clip_spikes:.*\n", "", config)
    )  # from before there was one
    recipe, reading, _ = recipe_like(str(source), "image_folder", "there")
    assert (recipe.clip_spikes, reading["image_size"]) == (0.0, 96)
    for folder in ("here", None):
        assert recipe_like(str(source), "image_folder", folder)[2] == "the recipe of image_folder"


def test_a_run_s_config_that_cannot_be_read_is_named(own_way, tmp_path):
    source = own_way()
    (source / "config.yaml").write_text("recipe: [1")
    done = chipnet_("transfer", "--from", source, "--data", "digits", "--out", tmp_path / "out")
    assert (done.exit_code, f"cannot read the config file {source}" in done.stderr) == (2, True)
    (source / "config.yaml").write_text("data: digits\nrecipe: {trian: 1}")
    done = chipnet_("transfer", "--from", source, "--data", "digits", "--out", tmp_path / "out")
    assert (done.exit_code, f"cannot use {source}" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--budget", "macs=0.1"), "the masks cost more than the budget: macs: "),
        (("--model", "resnet8"), "nothing of the masks (of a TinyNet) matches this ResNet"),
        (("--ignore", "norm_a"), "norm_a: not gated in this TinyNet"),
        *(
            (("--epochs", n), f"--epochs '{n}': give one whole number, of at least 1: nothing is pruned here")
            for n in ("0", "-1", "abc", "1,2,3")
        ),
        (("--limit", "1"), "limit must be at least 2, not 1"),
    ],
)
def test_transfers_that_are_refused(finished, tmp_path, arguments, text):
    done = transfer(finished, tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_sources_that_are_refused(finished, tmp_path):
    done = transfer(tmp_path, tmp_path / "out")
    assert (done.exit_code, "holds no masks.json" in done.stderr) == (2, True)
    done = transfer(finished / "masks.json", tmp_path / "out")
    assert (done.exit_code, "Give --model" in done.stderr) == (2, True)
