"""Grids of runs: what is read, which run comes when, what is on disk; every configuration in benchmarks/."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from typer.testing import CliRunner

from chipnet import ConfigError, Masks, Structure
from chipnet._util.imports import import_callable
from chipnet.analysis.kinds import KINDS
from chipnet.lab import cli
from chipnet.lab import train as loop
from chipnet.lab.data import list_data, load_data
from chipnet.lab.models import get_model
from chipnet.lab.runs import bench as runner
from chipnet.lab.runs import grid as grids
from chipnet.lab.runs import tables as result_tables
from chipnet.lab.runs.bench import bench, claimed, preflight, request_of
from chipnet.lab.runs.grid import GridRun, grid_from, read_grid, runs_of, smoke
from chipnet.lab.runs.rows import COLUMNS, status
from chipnet.lab.runs.tables import standings, tables, write_plots, write_tables
from chipnet.methods import METHODS, Gradual

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "benchmarks" / "configs").glob("*.yaml"))
RUNNER = CliRunner()

SMALL = {
    "models": ["tiny:tiny_net"],
    "data": ["digits"],
    "budgets": ["macs=0.5"],
    "methods": ["random", "scratch(random)"],
    "seeds": [0],
    "recipe": {"train": 2, "prune": 2, "finetune": 2, "batch_size": 32, "limit": 96, "limit_test": 30},
    "request": {"accelerator": "cpu"},
}


@pytest.fixture(autouse=True)
def own_networks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))


def made(out, **changes):
    return grid_from({**SMALL, **changes}, "the grid", out)


# -- reading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_can_be_run(path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    grid = read_grid(path)
    assert grid.about
    assert grid.out == Path("runs") / path.stem
    for model in grid.models:
        with torch.device("meta"):
            get_model(model)
    for data in grid.data:
        assert callable(import_callable(data)) if ":" in data else data in list_data()
    assert all(callable(import_callable(m)) for m in grid.methods if m.startswith("benchmarks"))
    for which in (grid, smoke(grid)):
        runs = runs_of(which)
        assert len({r.folder for r in runs}) == len(runs)
        for run in runs:
            request = request_of(which, run, {"": "/data"}, "chipnet bench")
            assert request.recipe.epochs
            assert request.data_dir == (None if run.data == "digits" else "/data")
    assert len(runs_of(smoke(grid))) < len(runs_of(grid))


def test_the_paper_has_its_small_and_its_gpu_versions():
    names = {p.stem for p in CONFIGS}
    questions = {"volume-budgets", "channel-budgets", "budget-kinds", "mask-transfer", "extreme-budgets"}
    assert questions | {f"{q}-small" for q in questions} <= names
    assert any(n.endswith("-gpu") for n in names)


def test_what_is_the_same_is_written_in_one_way():
    grid = made(
        "out", budgets=["flops = 50%", "channels=50", "channels=50%"], methods=[" taylor: floor = 5e-2 "]
    )
    assert grid.budgets == ("macs=0.5", "channels=50", "channels=0.5")
    assert grid.methods == ("taylor:floor=0.05",)
    folders = [run.folder for run in runs_of(grid)]
    assert len(set(folders)) == len(folders) == 4
    for axis, values in (
        ("budgets", ["macs=0.25", "macs=25%"]),
        ("methods", ["random", "random "]),
        ("methods", ["scratch(random)", "scratch( random )"]),
    ):
        with pytest.raises(ConfigError, match=f"{axis} has .* twice, written in two ways"):
            made("out", **{axis: values})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": 5}, "out must be the name of a folder, not 5"),
        ({"recipe": {"train": 0}}, r"recipe\.train must be at least 1"),
        ({"methods": ["transfer(random, digits)"]}, "it has no run; a transfer needs a second data set"),
        ({"models": ["a/net", "a-net"]}, "two runs have the folder 'a-net_digits_dense_seed0'"),
        ({"methods": ["no.such:rival"]}, "there is no module 'no'"),
        ({"methods": ["test_bench:NoMethod"]}, "test_bench:NoMethod is a class, and no method"),
        ({"methods": ["scratch(test_bench:rival)"]}, "test_bench:rival leaves no masks"),
        ({"methods": ["random:floor=2"]}, "floor of random must be from 0 to 1, not 2"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_when_it_is_read(changes, message):
    with pytest.raises(ConfigError, match=message):
        grid_from({**SMALL, **changes}, "the grid", "out")


class NoMethod:
    pass


def test_an_out_that_is_given_is_not_the_files(tmp_path):
    (tmp_path / "x.yaml").write_text(json.dumps({**SMALL, "out": "runs/own"}))
    assert read_grid(tmp_path / "x.yaml").out == Path("runs/own")
    assert read_grid(tmp_path / "x.yaml", tmp_path).out == tmp_path


def test_a_long_name_is_shortened_to_one_of_its_own():
    settings = ",".join(f"{k}={v}" for k, v in METHODS["chipnet"].settings().items())
    grid = made("out", methods=[f"chipnet:{settings}", f"chipnet:{settings.replace('60', '61')}"])
    folders = {run.folder for run in runs_of(grid)}
    assert len(folders) == 3 and max(map(len, folders)) < 200


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert grid_from({**SMALL, "out": "~/runs"}, "the grid", "x").out == tmp_path / "runs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["resnet9"]}, "resnet9"),
        ({"seeds": [0, -1]}, "seed must be at least 0"),
        ({"data": ["digitz"]}, "digitz"),
        ({"data": ["mnist"]}, "mnist"),
        ({"request": {"precision": "8"}}, "unknown precision '8'"),
        ({"recipe": {"limit": -5}}, "limit"),
    ],
)
def test_what_is_known_to_fail_is_refused_before_anything_is_written(tmp_path, changes, message):
    grid = made(tmp_path / "out", **changes)
    with pytest.raises(ConfigError, match=f"(?s)nothing was run:.*{message}"):
        preflight(grid, {})
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_is_said_at_once():
    wrong = {
        **SMALL,
        "modles": ["resnet8"],
        "budgets": ["watts=0.5"],
        "methods": [
            "magnitud",
            "scratch(rondom)",
            "transfer(random)",
            "transfer(random, mnist)",
            "random:x=1",
        ],
        "seeds": [0.5],
        "recipe": {"finetun": 3},
        "request": {"acelerator": "cpu", "seed": 1},
    }
    with pytest.raises(ConfigError) as caught:
        grid_from(wrong, "the grid", "out")
    said = str(caught.value)
    for text in (
        "there is no key 'modles'; did you mean 'models'?",
        "there is no option 'recipe.finetun'; did you mean 'recipe.finetune'?",
        "there is no option 'acelerator'; did you mean 'accelerator'?",
        "request.seed is what the grid decides",
        "unknown kind 'watts'",
        "unknown method 'magnitud'; known: chipnet",
        "unknown method 'rondom'",
        "write transfer(METHOD, DATA)",
        "'mnist' must be one of data: digits",
        "random has no setting 'x'",
        "seeds must be a list of whole numbers, not [0.5]",
    ):
        assert text in said, text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"models": []}, "models must be a list of texts"),
        ({"data": ["digits", "digits"]}, "data names something twice"),
        ({"recipe": [1]}, "recipe must be a mapping"),
        ({"recipe": {"prune": 0}}, "prune must be at least 1"),
        ({"request": {"threads": 0}}, "threads must be at least 1"),
        ({"recipe": {"prune": "two"}}, r"recipe\.prune must be a whole number, not 'two'"),
    ],
)
def test_values_that_cannot_be_used(changes, text):
    with pytest.raises(ConfigError, match=text):
        grid_from({**SMALL, **changes}, "the grid", "out")


@pytest.mark.parametrize(
    ("content", "text"),
    [("- 1", "holds a list, not options"), ("a: [", "cannot read"), (None, "there is no config file")],
)
def test_files_that_cannot_be_read(tmp_path, content, text):
    if content is not None:
        (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ConfigError, match=text):
        read_grid(tmp_path / "x.yaml")


# -- the runs ---------------------------------------------------------------------------------------------


def test_runs_come_after_those_that_they_need():
    grid = grid_from(
        {
            **SMALL,
            "data": ["digits", "mnist"],
            "methods": ["scratch(uniform)", "transfer(random, digits)"],
            "seeds": [0, 1],
        },
        "the grid",
        "out",
    )
    runs = runs_of(grid)
    seen = set()
    for run in runs:
        assert run.source is None or run.source in seen
        assert run.method == "dense" or run.dense in seen
        seen.add(run)
    assert [r.seed for r in runs] == sorted(r.seed for r in runs)
    labels = [(r.data, r.method) for r in runs if r.seed == 0]
    assert labels == [
        ("digits", "dense"),
        ("digits", "uniform"),  # for scratch alone
        ("digits", "scratch(uniform)"),
        ("mnist", "dense"),
        ("mnist", "uniform"),
        ("mnist", "scratch(uniform)"),
        ("digits", "random"),  # for the transfer alone
        ("mnist", "transfer(random, digits)"),
    ]


def test_what_each_run_is_given():
    grid = grid_from(
        {**SMALL, "data": ["digits", "mnist"], "methods": ["transfer(random, digits)", "scratch(random)"]},
        "g",
        "out",
    )
    requests = {(r.data, r.method): request_of(grid, r, {"mnist": "/m"}, "") for r in runs_of(grid)}
    dense, learnt = requests["mnist", "dense"], requests["mnist", "random"]
    moved, scratch = requests["mnist", "transfer(random, digits)"], requests["mnist", "scratch(random)"]
    assert (dense.masks, dense.weights) == (
        "out/" + GridRun(*("tiny:tiny_net", "mnist", "", "dense", 0)).folder + "/whole.json",
        None,
    )
    assert sum(dense.recipe.epochs) == 2  # as many as the recipe trains
    assert (learnt.masks, learnt.weights) == (None, str(dense.out / "model.safetensors"))
    assert moved.masks == str(requests["digits", "random"].out / "masks.json")
    assert moved.weights == learnt.weights
    assert (scratch.masks, scratch.weights) == (str(learnt.out / "masks.json"), None)
    assert sum(scratch.recipe.epochs) == 6
    assert (dense.data_dir, requests["digits", "random"].data_dir) == ("/m", None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid of four runs, done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests"))
        grid = made(tmp_path_factory.mktemp("grid"), methods=["random", "chipnet-paper", "scratch(random)"])
        return grid, bench(grid, {})


def test_a_grid_leaves_a_row_a_run(finished):
    grid, rows = finished
    assert [r["method"] for r in rows] == ["dense", "random", "chipnet-paper", "scratch(random)"]
    assert {r["status"] for r in rows} == {"done"}
    dense, random, paper, scratch = rows
    assert dense["macs"] == 1.0 and dense["final"] > 0
    assert random["dense"] == paper["dense"] == dense["final"]  # all start from the same weights
    assert all(r["macs"] <= 0.5 for r in rows[1:])
    assert [r["epochs"] for r in rows] == [2, 4, 4, 6]
    assert random["after_0"] != "" and random["after_2"] != "" and random["after_5"] == ""
    assert scratch["after_5"] != "" and scratch["hard"] == ""
    with open(grid.out / "results.csv", newline="") as file:
        on_disk = list(csv.DictReader(file))
    assert [r["folder"] for r in on_disk] == [r["folder"] for r in rows]
    assert float(on_disk[1]["final"]) == pytest.approx(random["final"], abs=0.01)
    masks = [Masks.load(grid.out / r["folder"] / "masks.json").kept for r in (random, scratch)]
    assert masks[0] == masks[1]


def test_methods_see_the_same_images_in_the_same_order(finished, monkeypatch):
    grid, rows = finished
    orders = []
    real = loop.train_step

    def spy(fabric, model, optimizer, images, labels, *args, **kwargs):
        orders.append(labels.tolist())
        return real(fabric, model, optimizer, images, labels, *args, **kwargs)

    monkeypatch.setattr("chipnet.lab.loop.train_step", spy)
    for row in rows[1:3]:
        run = next(r for r in runs_of(grid) if r.folder == row["folder"])
        loop.run(loop.prepare(dataclasses.replace(request_of(grid, run, {}, ""), out=grid.out / "again")))
    steps = 4 * 3  # 4 epochs of 3 batches
    assert len(orders) == 2 * steps
    assert orders[:steps] == orders[steps:]


def test_what_is_done_is_not_done_again(finished, monkeypatch):
    grid, rows = finished
    monkeypatch.setattr(loop, "run", lambda *a: pytest.fail("a finished run was run again"))
    told = []
    assert bench(grid, {}, told=lambda *a: told.append(a[3])) == rows
    assert told == ["done before"] * 4


def test_runs_of_other_settings_are_not_taken_for_this_grids(finished):
    grid, _ = finished
    other = dataclasses.replace(grid, recipe={**grid.recipe, "finetune": 3})
    with pytest.raises(ConfigError, match=r"recipe\.finetune of digits was 2, is 3"):
        bench(other, {})
    with pytest.raises(ConfigError, match=r"request\.accelerator was 'cpu', is 'auto'"):
        bench(dataclasses.replace(grid, request={}), {})


def test_runs_from_before_a_setting_existed_were_made_without_it(finished, tmp_path):
    grid, _ = finished
    was = json.loads((grid.out / "settings.json").read_text())
    del was["recipe"]["digits"]["clip_spikes"]
    (tmp_path / "settings.json").write_text(json.dumps(was))
    with pytest.raises(ConfigError, match=r"recipe\.clip_spikes of digits was 0\.0, is 2\.0"):
        bench(dataclasses.replace(grid, out=tmp_path), {})


def test_settings_that_mean_the_same_are_the_same(finished, tmp_path):
    grid, _ = finished
    settings = json.loads((grid.out / "settings.json").read_text())
    settings["request"] |= {"realisation": "plain", "ignore": []}  # the defaults
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert preflight(dataclasses.replace(grid, out=tmp_path), {}) is None
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot read .*settings.json"):
        preflight(dataclasses.replace(grid, out=tmp_path), {})


def test_runs_on_other_files_are_not_taken_for_this_grids(tmp_path):
    grid = made(tmp_path / "runs", data=["test_bench:some_images"], methods=["random"])
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    assert bench(grid, {"": str(tmp_path / "a")})
    more = dataclasses.replace(grid, methods=("random", "uniform"))
    assert preflight(more, {"": f"{tmp_path}/b/../a"}) is None
    with pytest.raises(ConfigError, match=r"the folder of test_bench:some_images was .*/a, is .*/b"):
        preflight(more, {"": str(tmp_path / "b")})


def test_a_data_set_that_is_known_by_name_may_move(tmp_path):
    """Every job of a cluster may have its own copy."""
    grid = made(tmp_path, data=["mnist"])
    tmp_path.joinpath("settings.json").write_text(json.dumps(runner._settings(grid, {"": "/a"})))
    assert runner._settings(grid, {"": "/b"})["data_dir"] == {}


def test_nothing_is_checked_that_will_not_run(tmp_path):
    grid = made(tmp_path, data=["mnist"], methods=["random"])
    for run in runs_of(grid):
        (tmp_path / run.folder).mkdir()
        (tmp_path / run.folder / "error.json").write_text('{"error": "no"}')
    assert preflight(grid, {}) is None
    with pytest.raises(ConfigError, match="mnist"):
        preflight(grid, {}, retry=True)


def test_a_network_that_cannot_be_made_without_memory_is_one(tmp_path):
    assert preflight(made(tmp_path, models=["regnet_x_400mf"]), {}) is None


def some_images(data_dir, seed, limit, limit_test):
    return load_data("digits", seed=seed, limit=limit, limit_test=limit_test)


def test_tables_and_plots(finished):
    grid, rows = finished
    text = write_tables(grid, rows).read_text()
    assert "### tiny:tiny_net on digits; dense" in text
    assert "| random | 1 |" in text
    assert "| validation after 0 / 1 / 2 / 5 epochs |" in text
    assert "0 of 4 runs failed." in text
    pytest.importorskip("matplotlib")
    paths = write_plots(grid, rows)
    assert [p.name.split("-")[0] for p in paths] == ["recovery", "layers", "masks"]  # one budget is no curve
    paths = write_plots(grid, [*rows, {**rows[1], "budget": "macs=0.6", "macs": 0.6}])
    assert [p.name.split("-")[0] for p in paths][:2] == ["accuracy", "recovery"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


def test_more_methods_than_colours_can_be_told_apart(finished, monkeypatch):
    grid, rows = finished
    drawn = []
    monkeypatch.setattr(result_tables, "_saved", lambda figure, folder, name: drawn.append((figure, name)))
    many = [
        {**rows[1], "method": f"method {i}", "budget": b} for i in range(14) for b in ("macs=0.5", "macs=0.6")
    ]
    write_plots(grid, many)
    figure = next(figure for figure, name in drawn if name.startswith("accuracy"))
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()]
    assert len(looks) == len(set(looks)) == 14
    for figure, _ in drawn:
        plt.close(figure)


def test_means_and_spreads_by_hand():
    base = {
        "model": "m",
        "data": "d",
        "budget": "macs=0.25",
        "method": "x",
        "status": "done",
        "error": "",
        "folder": "f",
    }
    base |= {"soft": 80.0, "params": 0.3, "volume": 0.3, "channels": 0.3}
    rows = [
        {**base, "seed": 0, "hard": 79.0, "final": 90.0, "macs": 0.2491, "after_0": 70.0},
        {**base, "seed": 1, "hard": 78.0, "final": 93.0, "macs": 0.2499, "after_0": 74.0},
        {
            **base,
            "seed": 2,
            "status": "failed",
            "error": "BudgetError: no",
            "hard": "",
            "final": "",
            "macs": "",
        },
    ]
    text = tables(rows)
    assert "#### macs=0.25\n" in text
    assert "| validation after 0 epochs | failed |\n" in text
    assert "| x | 2 | 91.5 | 3.0 | 78.5 | 2.0 | 24.99 % | 72.0 | 1 |" in text
    assert "1 of 3 runs failed.\n* f: BudgetError: no" in text

    alone = [{**rows[0], "budget": b, "final": 90.0} for b in ("macs=0.25", "macs=0.5")]
    text = tables([{**base, "seed": 0, "method": "dense", "final": 95.0, "budget": ""}, *alone])
    assert text.startswith("### m on d; dense 95.0\n")
    assert "| x | **90.0** | **90.0** |\n" in text  # one seed has no spread
    assert "| x | 1 | 90.0 |  | 79.0 |" in text


def test_the_overview_has_a_row_a_method_and_a_column_a_budget():
    def row(method, budget, seed, final):
        known = {
            "soft": 1.0,
            "hard": 1.0,
            "macs": 0.1,
            "params": 0.1,
            "status": "done",
            "error": "",
            "folder": "f",
        }
        return {
            "model": "m",
            "data": "d",
            "method": method,
            "budget": budget,
            "seed": seed,
            "final": final,
            **known,
        }

    rows = [row("a", "macs=0.2", s, 50.0 + s) for s in (0, 1)] + [row("b", "macs=0.2", 0, 60.0)]
    rows += [row("a", "macs=0.1", 0, 40.0), row("c", "macs=0.1", 0, 39.0), row("a", "macs=0.1", 1, 44.0)]
    lines = tables(rows).splitlines()
    start = lines.index("| method | macs=0.2 | macs=0.1 |")
    assert lines[start + 2 : start + 5] == [
        "| a | 50.5 (1.0) | **42.0** (4.0) |",  # what has every budget comes first
        "| b | **60.0** |  |",
        "| c |  | 39.0 |",
    ]
    assert "| method | macs" not in tables([r for r in rows if r["budget"] == "macs=0.2"])


def test_standings_count_firsts_and_what_a_method_is_behind():
    def runs(method, budget, final, hard, **other):
        known = {"model": "m", "data": "d", "status": "done"} | other
        return [
            known | {"method": method, "budget": budget, "seed": s, "final": final + d, "hard": hard}
            for s, d in enumerate((-1, 1))
        ]

    rows = [
        *runs("a", "macs=0.2", 60.0, 30.0, after_1=50.0),
        *runs("b", "macs=0.2", 62.0, 31.0, after_1=49.0),
        *runs("scratch(a)", "macs=0.2", 90.0, ""),
        *runs("dense", "", 99.0, ""),
        *runs("a", "macs=0.1", 50.0, 21.0, after_1=30.0),
        *runs("b", "macs=0.1", 44.0, 21.0, after_1=""),
        *runs("late", "macs=0.1", 49.0, 20.0),
        *runs("a", "params=0.1", 40.0, 11.0),
        *runs("b", "params=0.1", 40.0, 10.0),
    ]
    rows[0]["status"] = "failed"  # one of the seeds of a: its mean is of the other, 61
    assert standings(rows).splitlines() == [
        "Of so many budgets: first / points behind the best in the mean / at most",
        "",
        "| method | budgets | as cut | after 1 epoch (validation) | fine-tuned |",
        "|---|---|---|---|---|",
        "| a | 3 | 2 / 0.3 / 1.0 | 1 / 0.0 / 0.0 | 2 / 0.3 / 1.0 |",
        "| b | 3 | 2 / 0.3 / 1.0 | 0 / 1.0 / 1.0 | 2 / 2.0 / 6.0 |",
        "| late | 1 | 0 / 1.0 / 1.0 |  | 0 / 1.0 / 1.0 |",  # what was there once is not ahead for it
    ]
    assert standings(rows) in tables(
        [r | {"soft": 1.0, "error": "", "folder": ""} | dict.fromkeys(KINDS, 0.1) for r in rows]
    )
    assert standings([r for r in rows if r["budget"] != "macs=0.1"]) == ""
    assert standings([r for r in rows if r["method"] == "a"]) == ""
    assert "alone" not in standings([*rows, *runs("alone", "volume=0.1", 40.0, 10.0)])


def test_failures_are_written_down_and_the_grid_goes_on(tmp_path, monkeypatch):
    grid = made(tmp_path, methods=["random", "uniform", "scratch(random)"])
    asked = []

    def run(job, watcher, stop):
        asked.append(job.request.out.name)
        if "random" in asked[-1]:
            raise RuntimeError("out of\nmemory")
        result = {
            part: {"accuracy": 50.0, **job.dense.to_json()} for part in ("dense", "soft", "hard", "compact")
        }
        (job.out / "metrics.csv").write_text("phase,epoch,validation_accuracy,gates\n")
        (job.out / "model.safetensors").write_bytes(b"")
        (job.out / "result.json").write_text(json.dumps({**result, "seconds": {"total": 1.0}}))
        return json.loads((job.out / "result.json").read_text())

    real = loop.prepare
    # Weights that were never trained need not be read.
    monkeypatch.setattr(
        loop, "prepare", lambda request, **k: real(dataclasses.replace(request, weights=None), **k)
    )
    monkeypatch.setattr(loop, "run", run)
    rows = {r["method"]: r for r in bench(grid, {})}
    assert {m: r["status"] for m, r in rows.items()} == {
        "dense": "done", "random": "failed", "uniform": "done", "scratch(random)": "failed"
    }  # fmt: skip
    assert rows["random"]["error"] == "RuntimeError: out of memory"
    assert "it needs the run" in rows["scratch(random)"]["error"]
    assert (
        "Traceback"
        in json.loads((grid.out / rows["random"]["folder"] / "error.json").read_text())["traceback"]
    )
    before = len(asked)
    bench(grid, {})
    assert len(asked) == before
    bench(grid, {}, retry=True)
    assert len(asked) == before + 1  # random again; scratch still has no masks to take


def test_a_grid_that_is_stopped_goes_on_in_the_middle_of_a_run(tmp_path):
    whole = bench(made(tmp_path / "whole", methods=["random"]), {})
    grid, asked = made(tmp_path / "stopped", methods=["random"]), []

    def stop():
        asked.append(1)
        return len(asked) > 20  # in the second run

    with pytest.raises(KeyboardInterrupt, match=r"(?s)stopped in .*random.*The same command goes on"):
        bench(grid, {}, stop=stop)
    assert [status(grid, r) for r in runs_of(grid)] == ["done", "open"]
    assert (grid.out / runs_of(grid)[1].folder / "checkpoint.pt").exists()
    rows = bench(grid, {})
    assert [{**r, "seconds": 0} for r in rows] == [{**r, "seconds": 0} for r in whole]


PROCESS = """
import gc, json, sys, torch._dynamo
sys.path[:0] = {path!r}
import test_bench
from chipnet.lab.runs.bench import bench
from pathlib import Path
gc.freeze()
told = []
grid = test_bench.made(Path({out!r}), methods={methods!r})
bench(grid, {{}}, retry=True, told=lambda *a: told.append((a[2].folder, a[3])))
print(json.dumps(told))
"""


def test_processes_share_the_runs_of_a_grid_and_run_what_failed_again_once(tmp_path):
    methods, out = ["random", "uniform", "scratch(random)"], tmp_path / "shared"
    runs = runs_of(made(out, methods=methods))
    for run in runs[1:3]:
        (out / run.folder).mkdir(parents=True)
        (out / run.folder / "error.json").write_text('{"error": "a disk was full"}')
    text = PROCESS.format(
        path=[str(ROOT / "tests"), str(ROOT / "tests" / "lab")], out=str(out), methods=methods
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    done = [p.communicate(timeout=300) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], done[0][1] + done[1][1]
    told = [json.loads(out.splitlines()[-1]) for out, _ in done]
    ran = [[folder for folder, text in one if text.startswith("done:")] for one in told]
    assert sorted(ran[0] + ran[1]) == sorted(r.folder for r in runs)  # no run was made twice
    assert ran[0] and ran[1]  # and both took some
    assert not list(out.glob("*/error.json"))
    alone = bench(made(tmp_path / "alone", methods=methods), {})
    with open(out / "results.csv", newline="") as file:
        together = {r["folder"]: r["final"] for r in csv.DictReader(file)}
    assert together == {r["folder"]: f"{r['final']:.6g}" for r in alone}


def test_under_torchrun_it_says_how_processes_share_a_grid(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    config = tmp_path / "grid.json"
    config.write_text(json.dumps(SMALL))
    done = RUNNER.invoke(cli.app, ["bench", str(config), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and "Start it without torchrun" in done.output
    assert not (tmp_path / "out").exists()


def test_one_process_draws_the_plots(tmp_path):
    config = tmp_path / "grid.json"  # JSON is YAML
    config.write_text(json.dumps({**SMALL, "about": "a grid"}))
    command = ["bench", str(config), "--out", str(tmp_path / "out")]
    with claimed(tmp_path / "out"):
        busy = RUNNER.invoke(cli.app, command)
    assert busy.exit_code == 0 and "another process draws the plots" in busy.output
    assert not (tmp_path / "out" / "plots").exists()
    again = RUNNER.invoke(cli.app, command)
    assert again.exit_code == 0 and "plots in" in again.output
    assert list((tmp_path / "out" / "plots").iterdir())


def test_a_run_that_somebody_else_is_at_is_left_to_them(tmp_path):
    grid, told = made(tmp_path, methods=["random", "uniform"]), []
    dense, random, uniform = runs_of(grid)
    bench(dataclasses.replace(grid, methods=("uniform",)), {})
    with claimed(grid.out / random.folder) as mine:
        assert mine
        with claimed(grid.out / random.folder) as twice:
            assert not twice
        with pytest.raises(KeyboardInterrupt, match="not finished: 1 of 3 runs"):
            bench(grid, {}, stop=lambda: len(told) == 2, told=lambda *a: told.append(a[2:]))
    assert told == [(dense, "done before"), (uniform, "done before")]
    assert bench(grid, {})[1]["status"] == "done"


def test_a_grid_of_rivals_stops_between_two_of_them(tmp_path, monkeypatch):
    asked = []
    for module in (grids, runner):  # one reads the name, the other calls it
        monkeypatch.setattr(
            module, "import_callable", lambda text: lambda job, watcher: asked.append(job) or 1 / 0
        )
    grid = made(tmp_path, methods=["somebody.else:rival", "somebody.else:other"])
    bench(dataclasses.replace(grid, methods=("uniform",)), {})  # the dense network
    with pytest.raises(KeyboardInterrupt, match="not finished: 1 of 3 runs"):
        bench(grid, {}, stop=lambda: bool(asked))
    assert len(asked) == 1


def test_a_rival_does_a_whole_run_of_its_own(tmp_path, monkeypatch):
    pytest.importorskip("torch_pruning")
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.rivals import costs

    rival = "benchmarks.rivals:torch_pruning"
    grid = made(tmp_path, models=["resnet8"], budgets=["params=0.3"], methods=[rival])
    dense, row = bench(grid, {})
    assert (row["method"], row["status"]) == (rival, "done"), row["error"]
    assert row["dense"] == dense["final"]
    assert 0 < row["params"] <= 0.3
    assert row["after_0"] != "" and row["epochs"] == 4  # pruning's and fine-tuning's
    reported = RUNNER.invoke(cli.app, ["report", str(tmp_path / row["folder"])])
    assert reported.exit_code == 2 and "has no plan to report: it is a rival's run" in reported.stderr
    listed = RUNNER.invoke(cli.app, ["ls", str(tmp_path)])
    assert listed.exit_code == 0 and rival in listed.output and "dense" in listed.output
    net = get_model("resnet8", 10, 1)
    x = torch.zeros(1, 1, 8, 8)
    assert costs(net, x) == Structure(net, x).cost.dense.to_json()  # both count the same things


# -- the command ------------------------------------------------------------------------------------------


def test_the_command(tmp_path):
    import yaml

    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**SMALL, "methods": ["uniform"]}))
    listed = RUNNER.invoke(cli.app, ["bench", str(config), "--out", str(tmp_path / "out"), "--dry-run"])
    assert listed.stdout.splitlines()[0].startswith("open\ttiny-tiny_net_digits_dense_seed0")
    assert not (tmp_path / "out").exists()
    done = RUNNER.invoke(cli.app, ["bench", str(config), "--out", str(tmp_path / "out"), "--smoke"])
    assert done.exit_code == 0, done.output
    assert "2/2" in done.stdout and "| uniform | 1 |" in done.stdout
    assert (tmp_path / "out-smoke" / "results.csv").exists()


def test_the_command_refuses_in_one_line(tmp_path):
    (tmp_path / "x.yaml").write_text("modles: [resnet8]")
    done = RUNNER.invoke(cli.app, ["bench", str(tmp_path / "x.yaml")])
    assert done.exit_code == 2
    assert "did you mean 'models'?" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (None, "No such file"),
        ({"x": 1}, "KeyError: 'dense'"),
        ("{", "Expecting property"),
        ([], "not a mapping"),
    ],
)
def test_a_rival_that_leaves_no_result_has_failed_and_the_grid_goes_on(tmp_path, monkeypatch, left, message):
    def leaves(job, watcher):
        (job.out / "metrics.csv").write_text("phase,epoch,validation_accuracy,gates\n")
        if left is not None:
            (job.out / "result.json").write_text(left if isinstance(left, str) else json.dumps(left))
        return {"x": 1}

    monkeypatch.setattr(sys.modules[__name__], "rival", leaves)
    grid = made(tmp_path, methods=["test_bench:rival", "random"])
    rows = {r["method"]: r for r in bench(grid, {})}
    assert rows["test_bench:rival"]["status"] == "failed" and message in rows["test_bench:rival"]["error"]
    assert rows["random"]["status"] == rows["dense"]["status"] == "done"
    assert "is not what a rival leaves" in rows["test_bench:rival"]["error"]
    assert "test_bench:rival" in (tmp_path / "results.csv").read_text()


def rival(job, watcher):
    raise AssertionError("tests put their own here")


def test_a_method_of_ones_own_is_no_rival(tmp_path):
    grid = made(tmp_path, methods=["test_bench:Backwards:floor=0.2", "scratch(test_bench:Backwards)"])
    rows = {r["method"]: r for r in bench(grid, {})}
    assert {r["status"] for r in rows.values()} == {"done"}
    result = json.loads(
        (tmp_path / rows["test_bench:Backwards:floor=0.2"]["folder"] / "result.json").read_text()
    )
    assert result["method"] == "test_bench:Backwards:floor=0.2"


class Backwards(Gradual):
    """The last channels of every site."""

    def scores(self):
        return torch.arange(self.analysis.gates, dtype=torch.float32)


def test_a_damaged_checkpoint_does_not_end_a_run(tmp_path):
    grid = made(tmp_path, methods=["random"])
    for run in runs_of(grid):
        (tmp_path / run.folder).mkdir(parents=True)
        for name in ("checkpoint.pt", "checkpoint-before.pt"):
            (tmp_path / run.folder / name).write_bytes(b"no state")
    assert {r["status"] for r in bench(grid, {})} == {"done"}
    assert len(list(tmp_path.rglob("unreadable-checkpoint*.pt"))) == 4  # nobody's file is deleted


def test_runs_say_what_they_are(finished):
    grid, rows = finished
    said = {json.loads((grid.out / r["folder"] / "result.json").read_text())["method"] for r in rows}
    assert said == {r["method"] for r in rows}


def test_what_is_above_its_budget_is_marked():
    row = {
        "model": "m",
        "data": "d",
        "seed": 0,
        "status": "done",
        "error": "",
        "soft": 1.0,
        "hard": 1.0,
        "final": 2.0,
    }
    row |= {"params": 0.1, "volume": 0.1, "channels": 0.154, "macs": 0.0154, "folder": ""}
    text = tables(
        [
            {
                **row,
                "budget": "macs=0.015",
                "method": "transfer(random, e)",
            },  # from before there was a column
            {**row, "budget": "macs=0.0154", "method": "random"},
            {**row, "budget": "channels=50", "method": "transfer(random, f)", "above": "channels"},
            {**row, "budget": "latency=0.5,macs=0.02", "method": "chipnet", "latency": 0.498},
        ]
    )
    lines = [line.split("|") for line in text.splitlines() if line.startswith("| ") and "| 1 |" in line]
    assert [line[7].strip() for line in lines] == [
        "1.54 % (above)", "1.54 %", "15.40 % (above)", "1.54 %, 49.80 %",
    ]  # fmt: skip


def test_a_grid_that_only_failed_says_so_in_its_exit_code(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text(json.dumps({**SMALL, "models": ["test_bench:no_network"], "methods": ["random"]}))
    done = RUNNER.invoke(cli.app, ["bench", str(config), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1 and "2 of 2 runs failed" in done.output


def no_network(num_classes, in_channels):
    raise ValueError("no")


# -- the results in the documentation ---------------------------------------------------------------------


def test_tables_in_the_documentation_are_what_their_rows_say(finished, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.results import DOCS, PAGES, filled

    for page in ((DOCS / name).read_text() for name in PAGES):
        assert filled(page, DOCS / "results") == page, "run python -m benchmarks.results"

    grid, rows = finished
    (tmp_path / "a.csv").write_text((grid.out / "results.csv").read_text())
    made = filled("before\n<!-- a.csv -->\nold\n<!-- end -->\nafter\n", tmp_path)
    assert (
        tables(rows) in made and made.startswith("before") and made.endswith("after\n") and "old" not in made
    )

    for name, budget in (("b", "macs=0.1"), ("c", "macs=0.2"), ("d", "params=0.1")):
        some = [
            {
                "model": "m",
                "data": "d",
                "budget": budget,
                "method": m,
                "seed": 0,
                "status": "done",
                "final": f,
            }
            for m, f in (("x", 1.0), ("y", 2.0))
        ]
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(some)
    made = filled("<!-- over b.csv c.csv d.csv -->\nold\n<!-- end -->", tmp_path)
    assert "| y | 3 | 3 / 0.0 / 0.0 |" in made and "old" not in made


# -- data sets made for it --------------------------------------------------------------------------------


def test_tasks_made_of_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from data_files import write_idx

    from benchmarks import datasets

    write_idx(tmp_path)
    whole = load_data("fashion-mnist", tmp_path)
    halves = [half(tmp_path) for half in (datasets.first_half, datasets.second_half)]
    assert [h.num_classes for h in halves] == [5, 5]
    assert sum(len(h.train) for h in halves) == len(whole.train)
    assert halves[0].class_names + halves[1].class_names == whole.class_names
    assert all(int(h.train.labels.max()) <= 4 for h in halves)

    padded = datasets.padded(tmp_path, limit=10, limit_test=4)
    assert (len(padded.train), len(padded.test)) == (10, 4)
    assert (padded.in_channels, padded.image_size) == (3, 32)

    pairs, again = datasets.pairs(tmp_path, seed=1), datasets.pairs(tmp_path, seed=2)
    size = whole.image_size
    assert (pairs.num_classes, pairs.test.images.shape[2:]) == (100, (size, size))
    assert torch.equal(pairs.test.labels, again.test.labels)  # the test set does not depend on the seed

    first, second = (h(tmp_path) for h in (datasets.small_pairs_first_half, datasets.small_pairs_second_half))
    assert (first.num_classes, second.num_classes) == (25, 25)
    assert first.class_names[:6] == pairs.class_names[:5] + pairs.class_names[10:11]
    assert second.class_names[-1] == pairs.class_names[-1]
    assert torch.equal(first.test.labels // 5, halves[0].test.labels)
    assert torch.equal(second.test.labels // 5, halves[1].test.labels)

    chosen = datasets.small_pairs(tmp_path, limit=9)
    development = datasets.small_pairs_development(tmp_path, limit=9)
    assert torch.equal(chosen.validation.images, development.validation.images)
    held = datasets.small_pairs(tmp_path).validation
    assert len(development.test) + len(development.validation) == len(held)
    assert datasets.small(tmp_path).image_size == whole.image_size // 2
    left = torch.nn.functional.avg_pool2d(whole.test.images.float(), (1, 2)).round()
    assert torch.equal(pairs.test.images[..., : size // 2].float(), left)
    assert torch.equal(pairs.test.labels // 10, whole.test.labels)
