"""The loop: its parts on toy data, whole runs on a few digits, and what is on disk when one is stopped."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY, TinyNet, rows
from torch import nn

import chipnet
from chipnet import BudgetError, CaptureError, ChipNetError, ConfigError
from chipnet.lab import phases
from chipnet.lab import steps as step_module
from chipnet.lab import train as loop
from chipnet.lab.data import load_data
from chipnet.lab.loop import Loop
from chipnet.lab.metrics import LOSSES
from chipnet.lab.models import get_model, load_weights
from chipnet.lab.train import (
    Objective,
    Recipe,
    Silent,
    SpikeClip,
    evaluate,
    prepare,
    recalibrate,
    recipe_for,
    run,
    train_step,
)
from chipnet.program import counting
from chipnet.surgery.optimizer import cut_state, set_state
from chipnet.surgery.storage import save_weights


@pytest.fixture(scope="module")
def fabric():
    from lightning.fabric import Fabric

    return Fabric(accelerator="cpu", devices=1)


# -- parts ------------------------------------------------------------------------------------------------


def batches(count=5, size=7):
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        labels = torch.randint(0, 3, (size,), generator=generator)
        made.append(
            (nn.functional.one_hot(labels, 3) + 0.1 * torch.randn(size, 3, generator=generator), labels)
        )
    return made


def steps(fabric, model, data, optimizer, **options):
    rows = []
    for images, labels in data:
        train_step(
            fabric,
            model,
            optimizer,
            images,
            labels,
            Objective(),
            check=lambda row: rows.append(row.tolist()),
            **options,
        )
    return rows


def test_train_step_learns_and_tells_its_losses_before_it_changes_weights(fabric):
    network = nn.Linear(3, 3)
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.5))
    data = batches()
    expected = nn.functional.cross_entropy(network(data[0][0]), data[0][1]).item()
    first = steps(fabric, model, data, optimizer)
    assert first[0][LOSSES.index("task")] == expected
    assert all(row[LOSSES.index("pruning")] == 0 for row in first)
    for _ in range(20):
        last = steps(fabric, model, data, optimizer)
    assert sum(r[0] for r in last) < sum(r[0] for r in first) / 2
    assert sum(r[-1] for r in last) == 35
    assert evaluate(model, data) == 100


def test_train_step_adds_the_pruners_losses_and_steps_it(fabric):
    network = nn.Sequential(nn.Linear(3, 17), nn.BatchNorm1d(17), nn.ReLU(), nn.Linear(17, 3))
    pruner = chipnet.Pruner(network, torch.zeros(2, 3), "macs=0.5", steps=10, method="chipnet-2026a")
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    rows = [r for _ in range(2) for r in steps(fabric, model, batches(), optimizer, pruner=pruner)]
    assert pruner.progress == 1
    table = [dict(zip(LOSSES, row, strict=False)) for row in rows]
    assert table[1]["pruning"] != 0
    assert table[1]["budget"] > 0 and table[1]["crispness"] > 0
    assert chipnet.compact(network, pruner.harden())[0].out_features <= 8


@pytest.mark.parametrize(("part", "named"), [("task", "task loss"), ("pruner", "pruning loss")])
def test_a_loss_that_is_not_finite_is_named_before_it_harms_weights(request_for, monkeypatch, part, named):
    calls = []
    if part == "task":
        real = Objective.__call__

        def broken(self, model, images, labels):
            calls.append(1)
            return real(self, model, images * math.nan if len(calls) == 8 else images, labels)

        monkeypatch.setattr(Objective, "__call__", broken)
    else:
        monkeypatch.setattr(chipnet.Pruner, "losses", lambda self: {"x": torch.tensor(math.inf)})
    job = prepare(request_for(recipe=dataclasses.replace(TINY, train=2)))
    at = "phase train, epoch 2, step 2" if part == "task" else "phase prune, epoch 1, step 0"
    with pytest.raises(ChipNetError, match=rf"the {named}.* is (nan|inf) in {at}\..*checkpoint\.pt"):
        run(job)
    assert all(torch.isfinite(p).all() for p in job.network.parameters())


def test_evaluate_counts_every_image_once_and_puts_the_mode_back():
    class First(nn.Module):
        def forward(self, x):
            assert not self.training
            return x

    model = First()
    data = load_data("digits", limit_test=59)
    assert sum(len(labels) for _, labels in data.loader("test", 32)) == 59
    logits = torch.eye(3)
    # A mean of batch means would give (2/3 + 0) / 2.
    assert evaluate(model, [(logits, torch.tensor([0, 1, 0])), (logits[:1], torch.tensor([2]))]) == 50
    assert model.training
    with pytest.raises(ChipNetError, match="no images"):
        evaluate(model, [])


def test_recalibrate_measures_plain_means():
    norm = nn.BatchNorm1d(3, momentum=0.5).eval()
    data = batches(4)
    recalibrate(norm, data)
    expected = torch.stack([x.mean(0) for x, _ in data]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected)
    assert (norm.momentum, norm.training) == (0.5, False)


def test_recipes():
    assert recipe_for("Fashion_MNIST") == recipe_for("fashion-mnist")
    assert recipe_for("fashion-mnist", quick=True).limit <= 10_000
    assert sum(recipe_for("cifar10", quick=True).epochs) < sum(recipe_for("cifar10").epochs)
    with pytest.raises(ConfigError, match="prune must be at least 1, not 0; batch_size must be at least 2"):
        Recipe(1, 0, 1, batch_size=1)
    with pytest.raises(ConfigError, match="prune_lr must be finite, not nan"):
        Recipe(1, 1, 1, prune_lr=math.nan)


def test_what_a_recipe_only_suggests_is_fitted_to_the_data():
    usual = recipe_for("image-folder", quick=True)
    small = usual.fitted(8, lambda size: 216 // size)
    assert (small.batch_size, small.epochs) == (8, (12, 12, 12))  # 12 * 27 steps
    assert (small.train_lr, small.prune_lr) == (usual.train_lr / 4, usual.prune_lr / 4)
    assert usual.fitted(8, lambda size: 216 // size, trained=True).prune_lr == pytest.approx(
        small.prune_lr / 10
    )
    assert usual.fitted(32, lambda size: 8000 // size) == usual
    assert recipe_for("digits").fitted(32, lambda size: 1294 // size) == recipe_for("digits")

    # What is given stays: by `changed`, as flags and files do, or by hand.
    some = usual.changed({"prune": 3, "train": 0}).fitted(8, lambda size: 216 // size)
    assert (some.epochs, some.batch_size) == ((0, 3, 12), 8)
    size = usual.changed({"batch_size": 64}).fitted(8, lambda size: 216 // size)
    assert (size.batch_size, size.train_lr, size.epochs) == (64, usual.train_lr * 2, (100, 100, 100))
    rate = usual.changed({"prune_lr": 0.3}).fitted(8, lambda size: 216 // size, trained=True)
    assert (rate.prune_lr, rate.train_lr) == (0.3, usual.train_lr / 4)
    for given in (dataclasses.replace(usual, momentum=0.8), Recipe(1, 1, 1), small):
        assert given.fitted(8, lambda size: 216 // size, trained=True) == given


@pytest.mark.parametrize(("limit", "batch", "steps"), [(20, 8, 3), (60, 8, 8), (400, 16, 25), (1294, 32, 41)])
def test_a_run_fits_batches_and_epochs_to_its_images(request_for, limit, batch, steps):
    job = prepare(request_for(recipe=recipe_for("digits", quick=True).changed({"limit": limit})))
    assert job.recipe.batch_size == batch
    assert len(job.data.loader("train", batch, train=True)) == steps
    assert job.recipe.prune == max(8, math.ceil(300 / steps))


def test_weights_are_tried_before_pruning_and_doubts_are_said(request_for, tmp_path, caplog):
    caplog.set_level("INFO", "chipnet")
    before = run(prepare(request_for()))
    assert any("soft pruning has 10 optimiser steps" in text for text in before["warnings"])
    caplog.clear()
    torch.manual_seed(3)
    save_weights(TinyNet(10, 1), tmp_path / "w.safetensors")
    result = run(prepare(request_for(weights=str(tmp_path / "w.safetensors"), out=tmp_path / "b")))
    said = [record.getMessage() for record in caplog.records if record.name == "chipnet"]
    tried = next(i for i, text in enumerate(said) if text.startswith("before pruning: "))
    dense = result["dense"]["accuracy"]
    assert f"{dense:.2f} % on the test images" in said[tried] and "on the validation images" in said[tried]
    assert "guessing is on 10.00 %" in said[tried + 1] and "here: mean" in said[tried + 1]
    assert [text for text in result["warnings"] if "guessing" in text] == [said[tried + 1]]


def test_doubts():
    from chipnet.lab import sanity

    assert sanity.short(300) == "" != sanity.short(299)
    assert sanity.lost(90.0, 85.0) == sanity.lost(None, 1.0) == "" != sanity.lost(90.0, 84.9)
    for classes, right, doubt in ((2, 54.0, True), (2, 56.0, False), (10, 18.0, True), (10, 20.0, False)):
        assert bool(sanity.guessing(right, classes, (0.5,), (0.5,))) is doubt


# -- whole runs -------------------------------------------------------------------------------------------

KEYS = {
    "files", "model", "data", "input", "method", "seed", "budget", "limits", "realisation", "dense", "soft", "hard",
    "compact", "verify", "seconds", "images", "recipe", "environment", "command",
    "steps", "warnings",
}  # fmt: skip


@pytest.mark.parametrize("method", ["chipnet", "chipnet-paper", "bar", "slimming:l1=0.001"])
def test_a_run(request_for, method):
    job = prepare(request_for(method=method, budget=["macs=0.5", "params=0.9"]))
    result = run(job)
    assert set(result) == KEYS
    assert result == json.loads((job.out / "result.json").read_text())
    assert (result["method"], result["budget"]) == (method, {"params": 0.9, "macs": 0.5})
    for row in ("dense", "soft", "hard", "compact"):
        assert set(result[row]) == {"accuracy", "params", "macs", "channels", "volume"}
        assert 0 <= result[row]["accuracy"] <= 100
    assert result["compact"]["macs"] <= 0.5 * result["dense"]["macs"]
    assert result["verify"]["max_abs_difference"] <= 1e-9 * result["verify"]["output_scale"]
    assert set(result["seconds"]) == {"train", "prune", "compact", "finetune", "evaluate", "total"}
    assert result["images"] == {"train": 160, "validation": 18, "test": 60}

    small = chipnet.load(lambda: TinyNet(10, 1), job.out / "model.safetensors")
    assert sum(p.numel() for p in small.parameters()) == result["compact"]["params"]
    assert evaluate(small, job.data.loader("test", 32)) == result["compact"]["accuracy"]
    dense = TinyNet(10, 1)
    load_weights(dense, job.out / "dense.safetensors")
    assert evaluate(dense, job.data.loader("test", 32)) == result["dense"]["accuracy"]
    plan = chipnet.Plan.load(job.out / "plan.json")
    assert plan.compact.to_json() == {
        k: result["compact"][k] for k in ("channels", "volume", "params", "macs")
    }

    table = rows(job.out / "metrics.csv")
    phases = [(row["phase"], row["epoch"]) for row in table]
    tuned = [("finetune", "0"), ("finetune", "1"), ("finetune", "2")]  # 0: as cut
    assert phases == [("train", "1"), ("prune", "1"), ("prune", "2"), *tuned]
    assert all(float(row["task_loss"]) > 0 for row in table if row["epoch"] != "0")
    gates = [[int(n) for n in row["gates"].split()] for row in table if row["phase"] == "prune"]
    assert [sum(g) for g in gates] == [job.structure.gates] * 2
    split = json.loads((job.out / "split.json").read_text())
    assert split["counts"] == result["images"]
    assert split["validation"] == job.data.held_out.tolist()
    masks = chipnet.Masks.load(job.out / "masks.json")
    assert masks.transfer(job.structure).tolist() == list(plan.mask)
    assert all(row["hard_validation_accuracy"] for row in table if row["phase"] == "prune")
    known = {
        "result.json",
        "metrics.csv",
        "metrics.jsonl",
        "plan.json",
        "masks.json",
        "split.json",
        "config.yaml",
    }
    leftover = {p.name for p in job.out.iterdir()} - known
    assert leftover == {"model.safetensors", "dense.safetensors"}


@pytest.mark.parametrize(
    ("method", "recipe", "expected"),
    [("bar", {}, (4.0, 0.9)), ("chipnet", {"distill": 0.5, "temperature": 2.0}, (2.0, 0.5))],
)
def test_distillation_from_the_dense_network(request_for, monkeypatch, method, recipe, expected):
    asked = []
    real = step_module.distillation

    def spy(logits, teacher, temperature):
        asked.append((teacher.requires_grad, temperature))
        return real(logits, teacher, temperature)

    monkeypatch.setattr(step_module, "distillation", spy)
    job = prepare(request_for(method=method, recipe=dataclasses.replace(TINY, **recipe)))
    run(job)
    steps = 5
    assert asked == [(False, expected[0])] * 4 * steps  # pruning and fine-tuning, not the training before
    table = rows(job.out / "metrics.csv")
    assert [float(r["distillation_loss"]) > 0 for r in table if r["task_loss"]] == [False, *[True] * 4]


def test_the_teacher_is_the_dense_network_as_it_was_trained(request_for, monkeypatch):
    found, real = {}, loop.train_step

    def spy(fabric, model, optimizer, images, labels, objective, **options):
        if objective.teacher is not None:
            found[options["pruner"] is None] = objective.teacher(torch.ones(2, 1, 8, 8))
        return real(fabric, model, optimizer, images, labels, objective, **options)

    monkeypatch.setattr("chipnet.lab.loop.train_step", spy)
    job = prepare(request_for(recipe=dataclasses.replace(TINY, distill=0.5)))
    run(job)
    dense = TinyNet(10, 1).eval()
    load_weights(dense, job.out / "dense.safetensors")
    for logits in (found[False], found[True]):  # while pruning and while fine-tuning
        assert torch.equal(logits, dense(torch.ones(2, 1, 8, 8)))


def test_the_objective_by_hand():
    network, teacher = nn.Linear(3, 3), nn.Linear(3, 3)
    images, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    parts, logits = Objective(0.1, teacher=teacher, weight=0.75, temperature=2.0)(network, images, labels)
    task = nn.functional.cross_entropy(network(images), labels, label_smoothing=0.1)
    torch.testing.assert_close(parts["task"], 0.25 * task)
    far = step_module.distillation(logits, teacher(images), 2.0)
    torch.testing.assert_close(parts["distillation"], 0.75 * far)


def test_mixup_mixes_images_and_labels_alike():
    """For logits that are linear in one-hot images, the mixed loss is that of the mixed labels."""
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x

    labels = torch.tensor([0, 1, 2, 0, 1])
    parts, _ = Objective(mixup=0.4)(Watching(), nn.functional.one_hot(labels, 3).float(), labels)
    mixed = seen[0]
    torch.testing.assert_close(mixed.sum(1), torch.ones(5))
    assert mixed.min(1).values.max() > 0 or (mixed > 0).sum() > 5
    torch.testing.assert_close(parts["task"], nn.functional.cross_entropy(mixed, mixed))


@pytest.mark.parametrize("name", ["one-cycle", "cosine", "step"])
def test_schedules(request_for, name):
    job = prepare(request_for(recipe=dataclasses.replace(TINY, schedule=name, train=4, prune=2, finetune=2)))
    run(job)
    rates = {p: [float(r["lr"]) for r in rows(job.out / "metrics.csv") if r["lr"] and r["phase"] == p]
             for p in ("train", "prune", "finetune")}  # fmt: skip
    if name == "step":
        assert rates["train"] == pytest.approx([0.05, 0.05, 0.005, 0.0005])
        assert rates["prune"] + rates["finetune"] == pytest.approx([0.05, 0.05, 0.005, 0.0005])
    else:
        assert rates["train"][-1] < 0.01 * 0.05
        assert rates["finetune"][-1] < 0.01 * 0.05
        assert max(rates["prune"]) > 0.5 * 0.05


def test_the_paper_keeps_the_epoch_that_is_best_with_hard_masks(request_for, monkeypatch):
    # train; dense test; 3 x (soft, hard) on validation; soft, hard on test; as cut; compact on test
    hard = {3: 40.0, 5: 80.0, 7: 60.0}  # soft accuracy, which must not matter, grows
    calls, weights, cut = [], [], []
    real, compacted = phases.evaluate, phases.compacted

    def scripted(model, data, fabric):
        calls.append(real(model, data, fabric))
        if len(calls) - 1 in hard:
            weights.append([p.detach().clone() for p in model.parameters()])
        return hard.get(len(calls) - 1, float(len(calls)))

    def spy(run, network, plan):
        cut.extend(p.detach().clone() for p in network.parameters())
        return compacted(run, network, plan)

    monkeypatch.setattr(phases, "evaluate", scripted)
    monkeypatch.setattr(phases, "compacted", spy)
    recipe = dataclasses.replace(TINY, prune=3, finetune=0)
    run(prepare(request_for(method="chipnet-paper", recipe=recipe)))
    same = [all(map(torch.equal, at, cut)) for at in weights]
    assert same == [False, True, False]


def test_soft_and_hard_are_the_same_network_for_the_default(request_for):
    result = run(prepare(request_for(recipe=dataclasses.replace(TINY, finetune=0))))
    assert result["soft"] == result["hard"] == result["compact"]


@pytest.mark.parametrize("realisation", ["plain", "indexed"])
def test_a_run_is_repeatable(request_for, tmp_path, realisation):
    one, two = (
        run(prepare(request_for(out=tmp_path / name, realisation=realisation, seed=3))) for name in "ab"
    )
    for result in (one, two):
        for key in ("seconds", "environment"):
            del result[key]
    assert one == two
    small = [chipnet.load(lambda: TinyNet(10, 1), tmp_path / n / "model.safetensors") for n in "ab"]
    for (name, a), b in zip(small[0].state_dict().items(), small[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_learning_rate_runs_through_the_cut(request_for):
    job = prepare(request_for(recipe=dataclasses.replace(TINY, prune=3, finetune=3)))
    run(job)
    rates = [float(r["lr"]) for r in rows(job.out / "metrics.csv") if r["phase"] != "train" and r["lr"]]
    falling = rates[1:]
    assert falling == sorted(falling, reverse=True)
    assert rates[3] > 0.2 * TINY.prune_lr  # no new warm-up after the cut, and no new cycle either
    assert rates[-1] < 0.02 * TINY.prune_lr


def test_momentum_goes_through_the_cut(request_for, monkeypatch):
    found = {}
    cut_state, begin = phases.cut_state, phases.Finetune.begin

    def spy(optimizer, network, plan):
        for name, parameter in network.named_parameters():
            buffer = optimizer.state[parameter]["momentum_buffer"]
            for axis, indices in plan.keep.get(name, {}).items():
                buffer = buffer.index_select(axis, torch.tensor(indices))
            found[name] = buffer.clone()
        return cut_state(optimizer, network, plan)

    def begun(self, run):
        for name, parameter in self.network.named_parameters():
            assert torch.equal(self.optimizer.state[parameter]["momentum_buffer"], found[name])
            assert found[name].shape == parameter.shape
        begin(self, run)

    monkeypatch.setattr(phases, "cut_state", spy)
    monkeypatch.setattr(phases.Finetune, "begin", begun)
    run(prepare(request_for()))
    assert found["b.weight"].abs().sum() > 0


def test_momentum_goes_through_a_cut_that_takes_a_whole_branch():
    branch = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch, self.head = nn.Conv2d(3, 2, 1), branch, nn.Conv2d(2, 3, 1)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head(x + self.branch(x))

    net, x = Net(), torch.randn(2, 3, 4, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(x).square().sum().backward()
    optimizer.step()
    s = chipnet.Structure(net, x)
    (site,) = (i for i, site in enumerate(s.sites) if site.name == "branch.0")
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[s.analysis.site_gates[site]] = False
    plan = s.plan(mask)
    assert () in plan.keep["branch.0.weight"].values()  # nothing of it is left
    small, states = chipnet.compact(net, plan), cut_state(optimizer, net, plan)
    again = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    set_state(again, small, states)
    kept = {
        n: again.state[p]["momentum_buffer"].shape for n, p in small.named_parameters() if p in again.state
    }
    assert kept == {n: p.shape for n, p in small.named_parameters()}
    assert torch.equal(
        again.state[small.stem.weight]["momentum_buffer"], states["stem.weight"]["momentum_buffer"]
    )


def weights(out):
    return load_file(out / "model.safetensors")


def test_a_step_in_pieces_is_the_whole_step(fabric):
    """Gradient accumulation: without batch statistics, pieces of unequal size add up to the batch."""
    images, labels = torch.randn(7, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    found = []
    for pieces in (1, 3):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 3))
        pruner = chipnet.Pruner(network, images[:1], "macs=0.5", steps=4)
        model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
        rows = []
        for _ in range(3):
            train_step(
                fabric, model, optimizer, images, labels, Objective(),
                pruner=pruner, accumulate=pieces, check=rows.append,
            )  # fmt: skip
        found.append((torch.stack(rows), pruner.method.state_dict()["square"], *network.parameters()))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped(fabric):
    network = nn.Linear(3, 3)
    before = [p.detach().clone() for p in network.parameters()]
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=1.0))
    for images, labels in batches(1):
        train_step(fabric, model, optimizer, 100 * images, labels, Objective(), clip=0.5)
    moved = torch.cat([(p - b).flatten() for p, b in zip(network.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_a_gradient_that_stands_out_is_made_short(fabric):
    """Hand-worked: memory 1/2, so the first two steps are free, and norms weigh 1, 2, 4, ... of all."""
    weight = nn.Parameter(torch.zeros(2))
    clip = SpikeClip(2.0, memory=0.5)

    def passed(norm):
        weight.grad = torch.tensor([0.6, 0.8]) * norm
        clip([weight], torch.tensor(float(norm)))
        return weight.grad.norm().item()

    assert passed(0) == 0  # nothing to remember
    assert passed(1) == pytest.approx(1)
    assert passed(4) == pytest.approx(4)
    assert passed(5.9) == pytest.approx(5.9)  # typical: (1 + 2 * 4) / 3 = 3
    typical = (1 + 2 * 4 + 4 * 5.9) / 7
    assert passed(100) == pytest.approx(2 * typical, rel=1e-4)
    assert not passed(math.inf) < math.inf  # not ours to judge, and forgotten
    typical = (7 * typical + 8 * 2 * typical) / 15  # what was let through counts
    again = SpikeClip(2.0, memory=0.5)
    again.load_state_dict(clip.state_dict())
    assert passed(100) == pytest.approx(2 * typical, rel=1e-4)
    clip = again
    assert passed(100) == pytest.approx(2 * typical, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_spikes_of_other_number_types(dtype):
    weight, other = nn.Parameter(torch.zeros(2, dtype=dtype)), nn.Parameter(torch.zeros(1))
    clip = SpikeClip(2.0, memory=0.5)
    clip([], torch.tensor(1.0, dtype=dtype))
    for size in (1.0, 1.0, 8.0):
        weight.grad, other.grad = torch.full_like(weight, size), torch.full_like(other, size)
        clip([weight, other], weight.grad.norm())
    assert weight.grad.norm().item() == pytest.approx(2 * 2**0.5, rel=0.15)
    assert other.grad.item() == pytest.approx(weight.grad[0].item(), rel=0.01)


def test_a_gradient_that_begins_next_to_nothing_holds_nothing_back(fabric):
    """A student that begins as its teacher: the first norm is rounding."""
    weight, clip, short = nn.Parameter(torch.zeros(1)), SpikeClip(2.0), 0
    for norm in [0.0, 1e-7] + 100 * [1.0]:
        weight.grad = torch.tensor([norm])
        clip([weight], weight.grad.norm())
        short += weight.grad.item() < 0.99 * norm
    assert not short


def test_a_run_survives_a_batch_that_would_undo_it(fabric):
    """One batch in thirty is a thousand times too large, and labelled wrongly: it throws the weights far away."""
    moved = {}
    for factor in (0.0, 2.0):
        torch.manual_seed(0)
        network = nn.Linear(3, 3)
        before = [p.detach().clone() for p in network.parameters()]
        model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
        spikes = SpikeClip(factor) if factor else None
        for i, (images, labels) in enumerate(batches(30)):
            if i == 20:
                images, labels = 1000 * images, (labels + 1) % 3
            train_step(fabric, model, optimizer, images, labels, Objective(), spikes=spikes)
        parts = [(p - b).flatten() for p, b in zip(network.parameters(), before, strict=True)]
        moved[factor] = torch.cat(parts).norm().item()
    assert moved[0.0] > 10 and moved[2.0] < 2, moved


def test_the_papers_method_clips_nothing(request_for):
    for method, clips in (("chipnet-paper", False), ("chipnet", True)):
        current = Loop(
            prepare(request_for(method=method, overwrite=True)), phases.PHASES, Silent(), lambda: False
        )
        current.enter()
        assert (current.spikes is not None) == clips


def test_a_compiled_run_is_the_same_run(request_for, tmp_path, monkeypatch):
    """Gates come and go, and change every few steps, under a compiled network too (traced, not generated)."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, **_: real(m, backend=counter))
    run(prepare(request_for()))
    run(prepare(request_for(out=tmp_path / "compiled", compile=True)))
    assert (
        counter.frame_count == 5
    )  # one graph a phase, one for steps that do not measure, one for final masks
    one, two = weights(tmp_path / "run"), weights(tmp_path / "compiled")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor)


@pytest.mark.parametrize("options", [{"channels_last": True}, {"precision": "bf16-mixed"}], ids=str)
def test_layout_and_precision(request_for, options):
    result = run(prepare(request_for(**options)))
    assert result["compact"]["macs"] <= 0.5 * result["dense"]["macs"]
    assert result["verify"]["max_abs_difference"] <= 1e-9 * result["verify"]["output_scale"]


@pytest.mark.parametrize("method", ["chipnet:every=1", "chipnet-2026a"])
def test_a_scaled_loss_teaches_the_method_the_same_and_an_overflow_nothing(method):
    found = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 3))
        pruner = chipnet.Pruner(net, torch.zeros(1, 6), "macs=0.5", steps=9, method=method)
        for i in range(3):
            loss = net(torch.ones(4, 6) * (i + 1)).square().mean() + pruner.loss()
            (scale * loss).backward()
            pruner.step(scale)
        found.append(pruner.state_dict()["method"])
    torch.testing.assert_close(found[0]["square"], found[1]["square"])
    learnt = "psi" if "psi" in found[0] else "square"
    torch.testing.assert_close(found[0][learnt], found[1][learnt])
    (net(torch.ones(4, 6)).square().mean() * math.inf).backward()
    pruner.step(1024.0)
    after = pruner.state_dict()["method"]
    assert (after["seen"], torch.equal(after[learnt], found[1][learnt])) == (3, True)


def test_given_weights_are_not_trained_again(request_for, tmp_path):
    dense = TinyNet(10, 1)
    save_weights(dense, tmp_path / "w.safetensors")
    job = prepare(request_for(weights=str(tmp_path / "w.safetensors")))
    result = run(job)
    assert result["recipe"]["train"] == 0
    assert [r["phase"] for r in rows(job.out / "metrics.csv")] == ["prune"] * 2 + ["finetune"] * 3
    kept = TinyNet(10, 1)
    load_weights(kept, job.out / "dense.safetensors")
    assert torch.equal(kept.a.weight, dense.a.weight)


def test_recalibration_is_part_of_a_run(request_for, monkeypatch):
    called = []
    monkeypatch.setattr(phases, "recalibrate", lambda model, data: called.append(len(list(data))))
    run(prepare(request_for(recipe=dataclasses.replace(TINY, recalibrate=True))))
    assert called == [5]


def test_the_best_epoch_is_chosen_on_validation_images(request_for, monkeypatch):
    # train; dense test; prune: 2 × (soft, hard); soft, hard test; as cut; 3 epochs; compact test
    scores = iter([1, 2, 3, 4, 5, 6, 7, 8, 50, 60, 90, 30, 70])
    asked = []
    real = phases.evaluate

    def scripted(model, data, fabric):
        data = list(data)
        asked.append(sum(len(labels) for _, labels in data))
        real(model, data, fabric)
        return float(next(scores))

    monkeypatch.setattr(phases, "evaluate", scripted)
    saved = []
    save = chipnet.save

    def spy(small, *rest):
        saved.append(small.fc.bias.detach().clone())
        save(small, *rest)

    monkeypatch.setattr(chipnet, "save", spy)
    job = prepare(request_for(recipe=dataclasses.replace(TINY, finetune=3)))
    result = run(job)
    assert asked == [18, 60, 18, 18, 18, 18, 60, 60, 18, 18, 18, 18, 60]
    assert result["compact"]["accuracy"] == 70
    # As cut, after epochs 1 and 2, and once more at the end: epoch 2, not the worse epoch 3.
    assert len(saved) == 4
    assert torch.equal(saved[3], saved[2])
    assert not torch.equal(saved[2], saved[1])
    small = chipnet.load(lambda: TinyNet(10, 1), job.out / "model.safetensors")
    assert torch.equal(small.fc.bias, saved[2])


def test_wrong_counts_are_an_error(request_for, monkeypatch):
    class Lying(counting.FlopCounterMode):
        def get_total_flops(self):
            return super().get_total_flops() + 2

    job = prepare(request_for())
    monkeypatch.setattr(counting, "FlopCounterMode", Lying)
    with pytest.raises(
        ChipNetError, match=r"does not cost what the plan says: macs: planned [\d,]+, counted"
    ):
        run(job)
    assert not (job.out / "result.json").exists()


# -- stopped ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "phase", "files"),
    [
        (0, "train, 0 of 1", set()),
        (7, "prune, 0 of 2", {"dense.safetensors"}),
        (17, "finetune, 0 of 2", {"dense.safetensors", "plan.json", "masks.json", "model.safetensors"}),
    ],
)
def test_ctrl_c_at_once_leaves_the_last_saved_state(request_for, monkeypatch, at, phase, files):
    calls = []
    real = loop.train_step

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) > at:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr("chipnet.lab.loop.train_step", stopped)
    job = prepare(request_for())
    with pytest.raises(loop.Interrupted, match=f"stopped in phase {phase} epochs? done") as caught:
        run(job)
    always = {"split.json", "metrics.csv", "metrics.jsonl", "config.yaml", "checkpoint.pt"}
    assert {p.name for p in job.out.iterdir()} - {"checkpoint-before.pt"} == files | always
    for name in files:
        assert name in str(caught.value)
    assert f"Continue with: chipnet prune --resume {job.out}" in str(caught.value)
    if "dense.safetensors" in files:
        load_weights(TinyNet(10, 1), job.out / "dense.safetensors")
    if "model.safetensors" in files:
        small = chipnet.load(lambda: TinyNet(10, 1), job.out / "model.safetensors")
        evaluate(small, job.data.loader("test", 32))
    # What was stopped is not replaced by accident, but may be, from its own dense weights too.
    monkeypatch.setattr("chipnet.lab.loop.train_step", real)
    with pytest.raises(
        ConfigError, match=r"holds a run that was stopped\. Continue it with: chipnet prune --re"
    ):
        prepare(request_for())
    if "dense.safetensors" in files:
        run(prepare(request_for(weights=str(job.out / "dense.safetensors"), overwrite=True)))
        assert (job.out / "result.json").exists()


# -- refused before any training --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"model": "resnet9000"}, ConfigError, "no network 'resnet9000'"),
        ({"data": "digit"}, ConfigError, r"no data set 'digit'\. Close names: digits"),
        ({"data": "cifar10"}, ConfigError, "cifar10 needs data_dir"),
        ({"data": "cifar10", "data_dir": "/nowhere"}, ConfigError, "does not exist"),
        ({"method": "chip"}, ConfigError, "unknown method 'chip'; known: chipnet,"),
        ({"budget": "macs=0"}, BudgetError, "nothing would remain"),
        ({"budget": "macs=-0.5"}, BudgetError, "nothing would remain"),
        ({"budget": "macs=1.5"}, BudgetError, "above 1"),
        ({"budget": "watts=0.5"}, BudgetError, "unknown kind 'watts'"),
        ({"budget": "macs=0.0001"}, BudgetError, "smallest reachable"),
        ({"model": "tiny:not_exportable"}, CaptureError, "could not be captured"),
        ({"model": "tiny:features"}, ConfigError, r"returns a tensor \[1, 7, 4, 4\].*logits \[1, 10\]"),
        ({"weights": "/nowhere.pt"}, ConfigError, "does not exist"),
        ({"recipe": dataclasses.replace(TINY, train=0)}, ConfigError, "nothing to prune"),
        ({"realisation": "sparse"}, ConfigError, "'plain' or 'indexed', not 'sparse'"),
        ({"ignore": ("layer9*",)}, ChipNetError, "matches no module"),
        ({"accelerator": "abacus"}, ConfigError, "unknown accelerator 'abacus'"),
        ({"accelerator": "mps"}, ConfigError, "finds no MPS device here"),
        ({"strategy": "fsdp"}, ConfigError, "unknown strategy 'fsdp'; known: auto, ddp,.*no whole channels"),
        ({"devices": 0}, ConfigError, "devices must be at least 1, or -1 for all GPUs, not 0"),
        ({"devices": -1}, ConfigError, "devices -1 takes all GPUs, and there is none"),
        ({"num_nodes": 0}, ConfigError, "num_nodes must be at least 1, not 0"),
        ({"sync_batch_norm": True}, ConfigError, "sync_batch_norm needs CUDA"),
        ({"precision": "8-true"}, ConfigError, "unknown precision '8-true'"),
        ({"precision": "16-mixed"}, ConfigError, "16-mixed needs a CUDA device"),
        ({"validation": 1.5}, ConfigError, "validation is a fraction"),
        ({"seed": -1}, ConfigError, "seed must be at least 0"),
    ],
    ids=lambda value: "-".join(f"{k}={v}"[:30] for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_refusals(request_for, changes, error, text):
    with pytest.raises(error, match=text):
        prepare(request_for(**changes))


def test_weights_that_do_not_fit_are_refused(request_for, tmp_path):
    save_weights(get_model("resnet8", 10, 1), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="do not fit this TinyNet"):
        prepare(request_for(weights=str(tmp_path / "w.safetensors")))


def test_an_output_folder_that_cannot_be_written_is_refused(request_for, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"is a file\. Give a folder"):
        prepare(request_for(out=tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot write to the output folder"):
        prepare(request_for(out=tmp_path / "file" / "below"))


def test_a_finished_run_is_kept(request_for, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds a finished run \(result\.json\).*--overwrite"):
        prepare(request_for())
    job = prepare(request_for(overwrite=True))
    assert (out / "result.json").read_text() == "{}"  # gone only when training starts
    assert set(run(job)) == KEYS
