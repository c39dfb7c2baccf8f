"""The command line: whole runs, refusals in one line before any training, signals, and what is listed."""

import ast
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
import typer
from command import chipnet_, prune
from data_files import write_folders
from killing import fingerprint
from tiny import TinyNet

import chipnet
from chipnet import ConfigError
from chipnet.budget.landing import Landing
from chipnet.lab import cli
from chipnet.lab import train as loop
from chipnet.lab.cli import console, sweep
from chipnet.lab.cli.console import Console
from chipnet.lab.cli.show import Bars, show_result, summary
from chipnet.lab.config import Recipe, Request
from chipnet.lab.fit import options
from chipnet.lab.models import get_model, list_models
from chipnet.lab.runs.folder import Run
from chipnet.surgery.storage import save_weights

# -- runs -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("reports")
def test_prune_leaves_a_run_folder_and_prints_a_table(tmp_path):
    out = tmp_path / "new" / "run"
    done = prune(out, "--budget", "params=2k", "--seed", "7", "--threads", "1", "--recalibrate")
    assert done.exit_code == 0, done.output
    names = {
        "result.json",
        "plan.json",
        "model.safetensors",
        "dense.safetensors",
        "metrics.csv",
        "metrics.jsonl",
        "config.yaml",
        "masks.json",
        "split.json",
        "report.html",
    }
    assert {p.name for p in out.iterdir()} == names
    result = json.loads((out / "result.json").read_text())
    assert (result["model"], result["data"], result["method"]) == ("tiny:tiny_net", "digits", "chipnet")
    assert (result["seed"], result["budget"]) == (7, {"params": 2000, "macs": 0.5})
    assert result["recipe"]["recalibrate"]
    for name in ("train", "prune", "finetune"):
        assert f"{name}: 1 epoch, " in done.stdout
    for word in ("dense", "soft", "hard", "compact", "accuracy", "params", "MACs", "volume", "channels"):
        assert word in done.stdout
    assert f"{result['compact']['macs']:,}" in done.stdout
    assert "budget params 2,000, macs 0.5" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if line[:1] in "┏┃┡│├└") <= 80

    again = prune(out)
    assert again.exit_code == 2
    assert "holds a finished run" in again.stderr
    assert prune(out, "--overwrite", "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("asked", "limits", "met"),
    [
        (0.5, {"latency": 90}, ["above", "—", "—", "met"]),
        (0.2, {"latency": 90}, ["above", "—", "—", "above"]),
        (100, {"latency": 90}, ["above", "—", "—", "met"]),
        (300, {"latency": 90}, ["met", "—", "—", "met"]),
        (0.5, {"latency": 90, "macs": 50}, ["above", "above", "—", "met"]),
        (None, {"latency": 90}, ["—"] * 4),  # masks that were given: nothing was timed
        (None, {"macs": 50}, ["above", "above", "met", "met"]),
    ],
)
def test_the_table_says_of_times_what_was_measured(asked, limits, met):
    result = {"model": "m", "data": "d", "method": "x", "budget": {"macs": 0.5}, "limits": limits}
    for row, macs in (("dense", 100), ("soft", 55.5), ("hard", 50), ("compact", 50)):
        result[row] = {"accuracy": 1.0} | dict.fromkeys(("params", "macs", "volume", "channels"), macs)
    if asked is not None:
        result["latency"] = Landing(asked, 200.0, 80.0, 0.4, 0.3, 0.5, 0.1, 1, "cpu", 3).to_json()
    *_, last = summary(result).columns
    assert list(last.cells) == met


def test_the_demo_of_the_readme_runs_with_its_flags(tmp_path):
    done = prune(tmp_path, "--quick", **{"--model": "resnet8", "--budget": "macs=0.25", "--epochs": "1"})
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["compact"]["macs"] <= 0.25 * result["dense"]["macs"]
    assert result["dense"]["macs"] == 763_520
    small = chipnet.load(lambda: get_model("resnet8", 10, 1), tmp_path / "model.safetensors")
    assert sum(p.numel() for p in small.parameters()) == result["compact"]["params"]


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (
            ("--budget",),
            "error: --budget is missing. For example: chipnet prune --model tiny:tiny_net --data digits ",
        ),
        (
            ("--model", "--data"),
            "error: --model and --data are missing. For example: chipnet prune --model resnet8 ",
        ),
        (("--model", "--data", "--budget"), "error: --model, --data and --budget are missing. For example: "),
    ],
)
def test_model_data_and_budget_have_no_defaults(tmp_path, no_training, missing, said):
    done = prune(tmp_path / "run", **dict.fromkeys(missing))
    assert (done.exit_code, done.stderr[: len(said)]) == (2, said)
    for name in ("model", "data", "budget", "out"):
        assert f" --{name} " in done.stderr.split("For example: ")[1]
    (tmp_path / "c.yaml").write_text("model: tiny:tiny_net\ndata: digits\n")
    done = prune(
        tmp_path / "run",
        **dict.fromkeys(("--model", "--data", "--budget")),
        **{"--config": tmp_path / "c.yaml"},
    )
    assert done.stderr.startswith(
        "error: --budget is missing. For example: chipnet prune --model tiny:tiny_net "
    )
    assert not (tmp_path / "run").exists()


def test_all_mistakes_in_options_are_told_at_once(tmp_path, no_training):
    wrong = {
        "--seed": "x", "--threads": "0", "--lr": "-1", "--epochs": "two", "--budget": "macs=1.5", "--method": "foo",
        "--weights": "/nope.pt", "--precision": "3", "--model": "resnet9000", "--data": "digitz",
        "--batch-size": "1", "--checkpoint-steps": "0", "--round-to": "0", "--clip": "many",
        "--accelerator": "abacus",
    }  # fmt: skip
    (tmp_path / "file").write_text("")
    done = prune(tmp_path / "file", **wrong)
    assert done.exit_code == 2
    head, *lines = done.stderr.splitlines()
    assert head == f"error: {len(wrong) + 1} mistakes:"
    for flag in {*wrong, "--out"}:
        assert any(line.startswith(f"  - {flag}") for line in lines), flag
    alone = prune(tmp_path / "run", **{"--lr": "-1"})
    assert alone.stderr == "error: --lr must be above 0, not -1.0.\n"


def test_a_line_comes_before_pytorch(tmp_path):
    code = (
        "import os, sys\n"
        "def say(*a, **k): print(*a, flush=True); os._exit('torch' in sys.modules)\n"
        "from rich.console import Console; Console.print = lambda self, *a, **k: say(*a)\n"
        "from chipnet.lab.cli import main\n"
        "sys.argv = ['chipnet', *sys.argv[1:]]\n"
        "main()\n"
    )
    given = ("--model", "a", "--budget", "macs=0.5", "--out", str(tmp_path / "r"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, "prune", *given], env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"chipnet {chipnet.__version__}: a, budget macs=0.5, into {tmp_path}")
    assert done.returncode == 0, done.stderr


def test_a_run_is_repeated_from_its_config_and_flags_win(tmp_path, monkeypatch):
    first = tmp_path / "run"
    assert prune(first, "--label-smoothing", "0.1", "--quiet", **{"--budget": "params=0.5"}).exit_code == 0
    again = chipnet_("prune", "--config", first / "config.yaml", "--quiet")
    assert again.exit_code == 0, again.output
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("run", "run-2"))
    for result in (one, two):
        for key in ("seconds", "environment", "command"):
            del result[key]
    assert one == two
    assert one["recipe"]["label_smoothing"] == 0.1
    assert fingerprint(first) == fingerprint(tmp_path / "run-2")

    asked = []
    monkeypatch.setattr(loop, "prepare", lambda request, **_: asked.append(request) or stop())
    chipnet_("prune", "--config", first / "config.yaml", "--seed", "5", "--out", tmp_path / "x")
    assert (asked[0].seed, asked[0].budget, asked[0].recipe.label_smoothing) == (5, "params=0.5", 0.1)


def stop():
    raise ConfigError("enough")


def test_how_images_are_read_is_asked_for_kept_and_used_again(tmp_path):
    write_folders(tmp_path / "images", ("",), per_class=12)
    (tmp_path / "images" / "dog" / "0.jpg").write_bytes(b"no image")
    reading = (
        "--image-size",
        "16",
        "--mean",
        "0.5",
        "--std",
        "0.25,0.5,1",
        "--augment",
        "flip",
        "--workers",
        "0",
    )
    images = {"--data": "image-folder", "--data-dir": tmp_path / "images", "--model": "tiny:tiny_net"}
    refused = prune(tmp_path / "run", *reading, "--batch-size", "4", **images)
    assert refused.exit_code == 2 and not (tmp_path / "run").exists()
    assert "1 of 24 image files cannot be read" in refused.stderr and "--skip-broken" in refused.stderr
    done = prune(
        tmp_path / "run", *reading, "--batch-size", "4", "--skip-broken", "--optimizer", "adamw", **images
    )
    assert done.exit_code == 0, done.output
    for said in ("neither val nor test: 5 of its 24 images", "left out: 1 of 24 image files", "(validation)"):
        assert said in " ".join(done.output.split()), said
    run = Run.open(tmp_path / "run")
    assert (run.input["mean"], run.input["std"]) == ([0.5] * 3, [0.25, 0.5, 1.0])
    recipe = run.result["recipe"]
    assert (recipe["optimizer"], recipe["weight_decay"]) == ("adamw", 0.01)
    assert recipe["train_lr"] == pytest.approx(1e-3 * (4 / 128) ** 0.5)  # at the batch size that is suggested
    again = run.data()
    assert (again.mean, again.std, again.variation) == ((0.5,) * 3, (0.25, 0.5, 1.0), "flip")
    assert again.counts() == run.result["images"]
    assert again.split()["train"] == json.loads((tmp_path / "run" / "split.json").read_text())["train"]
    rows = json.loads(chipnet_("val", tmp_path / "run", "--json").stdout)
    assert rows["compact"]["accuracy"] == run.result["compact"]["accuracy"]
    moved = chipnet_("transfer", "--from", tmp_path / "run", "--data", "image-folder", "--data-dir",
                     tmp_path / "images", "--out", tmp_path / "moved", "--epochs", "1", "--quiet")  # fmt: skip
    assert moved.exit_code == 0, moved.output
    assert Run.open(tmp_path / "moved").input["std"] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {"epochs": (1, 1, 1), "batch_size": 32, "prune_lr": 0.05}),
        (("--epochs", "3,2,0"), {"epochs": (3, 2, 0)}),
        (("--batch-size", "64"), {"batch_size": 64, "train_lr": 0.1, "prune_lr": 0.1}),
        (("--batch-size", "64", "--lr", "0.02"), {"batch_size": 64, "train_lr": 0.02, "prune_lr": 0.02}),
        (("--optimizer", "adamw"), {"train_lr": 1e-3, "prune_lr": 1e-3, "weight_decay": 0.01}),
        (("--optimizer", "adamw", "--batch-size", "128"), {"train_lr": 2e-3, "prune_lr": 2e-3}),
        (
            ("--optimizer", "adamw", "--lr", "0.02", "--weight-decay", "0"),
            {"prune_lr": 0.02, "weight_decay": 0.0},
        ),
    ],
)
def test_options_change_the_recipe(tmp_path, monkeypatch, arguments, expected):
    asked = []
    monkeypatch.setattr(loop, "prepare", lambda request, **_: asked.append(request) or stop())
    prune(tmp_path, *arguments)
    assert {k: getattr(asked[0].recipe, k) for k in expected} == expected


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"--model": "resnet9000"}, "There is no network 'resnet9000'"),
        ({"--model": "nowhere:net"}, "there is no module 'nowhere'"),
        ({"--model": "tiny:not_exportable"}, "could not be captured"),
        ({"--model": "tiny:features"}, "this loop needs logits [1, 10]"),
        ({"--data": "digitz"}, "There is no data set 'digitz'"),
        ({"--data": "fashion-mnist"}, "fashion-mnist needs --data-dir"),
        ({"--data": "fashion-mnist", "--data-dir": "/nowhere"}, "--data-dir /nowhere does not exist"),
        ({"--method": "chip"}, "unknown method 'chip'; known: chipnet,"),
        ({"--budget": "macs=0"}, "nothing would remain"),
        ({"--budget": "macs=1.5"}, "above 1"),
        ({"--budget": "watts=0.5"}, "unknown kind 'watts'"),
        ({"--budget": "0.5"}, "does not say what it limits"),
        ({"--budget": "macs=0.0001"}, "smallest reachable"),
        ({"--epochs": "two"}, "--epochs 'two': give one whole number"),
        ({"--epochs": "1,2"}, "--epochs '1,2': give one whole number"),
        ({"--epochs": "-1"}, "--epochs '-1': give one whole number"),
        ({"--epochs": "1,0,1"}, "prune must be at least 1, not 0"),
        ({"--epochs": "0,1,1"}, "there is nothing to prune"),
        ({"--batch-size": "1"}, "--batch-size must be at least 2"),
        ({"--lr": "-0.1"}, "--lr must be above 0"),
        ({"--lr": "nan"}, "--lr must be finite, not nan"),
        ({"--config": "/nowhere.yaml"}, "there is no config file /nowhere.yaml"),
        ({"--label-smoothing": "1"}, "--label-smoothing must be below 1, not 1.0"),
        ({"--threads": "0"}, "threads must be at least 1"),
        ({"--weights": "/nowhere.pt"}, "/nowhere.pt does not exist"),
        ({"--realisation": "sparse"}, "'plain' or 'indexed'"),
        ({"--ignore": "layer9*"}, "matches no module"),
        ({"--accelerator": "abacus"}, "unknown accelerator 'abacus'"),
        ({"--validation": "1"}, "validation is a fraction"),
    ],
    ids=lambda value: "".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_refusals(tmp_path, no_training, changes, text):
    done = prune(tmp_path / "run", **changes)
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout.startswith(f"chipnet {chipnet.__version__}: ") and done.stdout.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_empty_data_folder_is_refused(tmp_path, no_training):
    (tmp_path / "data").mkdir()
    done = prune(tmp_path / "run", **{"--data": "fashion-mnist", "--data-dir": tmp_path / "data"})
    assert (done.exit_code, "is empty" in done.stderr) == (2, True)


def test_weights_that_do_not_fit_are_refused(tmp_path, no_training):
    save_weights(get_model("resnet8", 10, 1), tmp_path / "w.safetensors")
    done = prune(tmp_path / "run", **{"--weights": tmp_path / "w.safetensors"})
    assert (done.exit_code, "do not fit this TinyNet" in done.stderr) == (2, True)


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path, no_training):
    (tmp_path / "file").write_text("")
    done = prune(tmp_path / "file" / "run")
    assert (done.exit_code, "cannot write to the output folder" in done.stderr) == (2, True)
    done = prune(tmp_path / "new" / ("x" * 300))
    assert (done.exit_code, "(File name too long). Give another --out" in done.stderr) == (2, True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        done = prune(tmp_path / "locked")
        assert (done.exit_code, "Permission denied" in done.stderr) == (2, True)


def test_no_out_is_a_usage_error():
    assert chipnet_("prune").exit_code == 2


# -- stopped and broken runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_stopped_run_says_how_far_it_came_and_how_to_go_on(tmp_path, monkeypatch, number):
    monkeypatch.setattr(sys, "argv", ["chipnet", "prune", "as", "it", "began"])
    assert prune(tmp_path / "whole", "--quiet").exit_code == 0
    out, calls, real = tmp_path / "run", [], loop.train_step

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 100:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    monkeypatch.setattr("chipnet.lab.loop.train_step", stopped)
    before = signal.getsignal(number)
    done = prune(out)
    assert done.exit_code == 130
    assert len(calls) == 100
    assert "stopped in phase finetune, 0 of 1 epoch done" in done.stderr
    assert "dense.safetensors (dense weights); plan.json (the plan); masks.json" in done.stderr
    assert "model.safetensors (compact network, not fine-tuned)" in done.stderr
    assert f"Continue with: chipnet prune --resume {out}" in done.stderr
    assert signal.getsignal(number) is before
    assert not (out / "result.json").exists()
    small = chipnet.load(lambda: TinyNet(10, 1), out / "model.safetensors")
    assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

    monkeypatch.setattr(sys, "argv", ["chipnet", "prune", "--resume", "run"])
    assert chipnet_("prune", "--resume", out, "--quiet").exit_code == 0
    assert len(calls) == 123
    assert json.loads((out / "result.json").read_text())["command"] == "chipnet prune as it began"
    assert fingerprint(out) == fingerprint(tmp_path / "whole")
    assert "is finished already" in chipnet_("prune", "--resume", out).stdout


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not at once")

    monkeypatch.setattr("chipnet.lab.loop.train_step", stopped)
    done = prune(tmp_path)
    assert (done.exit_code, "stopped in phase train, 0 of 1 epoch" in done.stderr) == (130, True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "there is no run in"),
        (
            ("--seed", "1", "--batch-size", "8"),
            "keeps the options it began with: leave out --seed, --batch-size.",
        ),
    ],
)
def test_what_cannot_be_continued(tmp_path, no_training, arguments, text):
    done = chipnet_("prune", "--resume", tmp_path, *arguments)
    assert (done.exit_code, text in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "error", [chipnet.ChipNetError("the task loss is nan"), OSError(28, "No space left on device")]
)
def test_a_broken_run_is_one_line_too(tmp_path, monkeypatch, error):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr("chipnet.lab.loop.train_step", broken)
    done = prune(tmp_path)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == f"error: {error}"


# -- inspect and models -----------------------------------------------------------------------------------


def test_inspect_lists_sites_pins_and_costs():
    done = chipnet_("inspect", "resnet8", "--data", "digits", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["input"] == [1, 1, 8, 8]
    assert report["cost"] == {"channels": 346, "volume": 5386, "params": 77_754, "macs": 763_520}
    sites = {site["name"]: site for site in report["sites"]}
    assert len(sites) == len(report["sites"])
    assert sites["fc"]["gates"] == 0
    assert "output of the network" in sites["fc"]["reason"]
    assert report["gates"] > 0
    assert any("output of the network" in pin["reason"] for pin in report["pins"])

    text = chipnet_("inspect", "resnet8", "--data", "digits")
    assert text.exit_code == 0
    assert "macs 763,520" in text.stdout
    assert "Kept whole (sites × why):\n  1 × an output of the network\n" in text.stdout


def test_inspect_takes_an_input_shape_and_patterns():
    report = json.loads(chipnet_("inspect", "resnet8", "--input", "1,3,16,16", "--json").stdout)
    fewer = json.loads(
        chipnet_("inspect", "resnet8", "--input", "1,3,16,16", "--ignore", "stages*", "--json").stdout
    )
    assert report["input"] == [1, 3, 16, 16]
    assert fewer["gates"] < report["gates"]
    assert fewer["cost"] == report["cost"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("resnet9000",), "There is no network 'resnet9000'"),
        (("resnet8", "--input", "big"), "--input 'big': give the shape"),
        (("resnet8", "--input", "1,3,0,4"), "--input '1,3,0,4': give the shape"),
        (("resnet8", "--input", "1,3,8,8", "--data", "digits"), "--data or --input, not both"),
        (("resnet8", "--input", "1,3"), "could not be captured with example inputs of shape (1, 3)"),
    ],
)
def test_inspect_refuses_in_one_line(arguments, text):
    done = chipnet_("inspect", *arguments)
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_models_lists_names():
    assert tuple(chipnet_("models").stdout.split()) == list_models()


def test_the_help_names_every_stable_flag():
    text = chipnet_("prune", "--help").stdout
    flags = ("model", "data", "data-dir", "weights", "budget", "method", "seed", "epochs", "quick", "out")
    assert all(f"--{flag}" in text for flag in flags)


@pytest.mark.parametrize("name", ["val", "transfer", "bench", "inspect", "export", "latency", "report", "ls"])
def test_the_help_calls_values_the_same_in_all_commands(name):
    """As that of `prune` does, and not by their types in Python."""
    text = chipnet_(name, "--help").stdout
    assert [line for line in text.splitlines() if line.startswith("  --") and "<" in line] == []
    for option, value in (("data-dir", "DIR"), ("threads", "INTEGER"), ("ignore", "PATTERN")):
        assert f"--{option} " not in text or f"--{option} {value}" in text


# -- names of other people ---------------------------------------------------------------------------------


def test_only_one_module_makes_consoles():
    """Elsewhere a bracket in a name would be markup again."""
    own = Path(console.__file__)
    for file in own.parent.rglob("*.py"):
        found = {w for n in ast.walk(ast.parse(file.read_text())) for w in words(n)}
        if file != own:
            assert not found & {
                "rich",
                "rich.console",
                "rich.markup",
                "TextColumn",
                "markup",
                "from_markup",
            }, file
        else:
            assert {"rich.console", "markup"} <= found


def words(node):
    """What is imported, called by keyword or taken as an attribute."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names]
        return [*names, node.module] if isinstance(node, ast.ImportFrom) else names
    return [v for v in (getattr(node, "arg", None), getattr(node, "attr", None)) if isinstance(v, str)]


ASKED = ("--model", "resnet8", "--data", "digits", "--budget", "macs=0.5", "--out", "r")
ODD = "[b]o[/x] [red]:smile:"


def test_names_with_brackets_are_shown_as_they_are(run_folder, tmp_path):
    out = tmp_path / "[/b]" / ODD.replace("/", "")
    shutil.copytree(run_folder, out)
    result = json.loads((out / "result.json").read_text())
    result |= {"model": ODD, "data": ODD, "method": ODD, "start": {**result["dense"], "run": ODD}}
    (out / "result.json").write_text(json.dumps(result))
    shown = io.StringIO()
    console = Console(file=shown, width=400)
    show_result(console, result, out)
    console.print(sweep.table({ODD: result}))
    with Bars(Console(file=shown, width=400, force_terminal=True)) as bars:
        bars.start(ODD, 1)
        bars.tick(ODD)
    ls = chipnet_("ls", out)
    assert ls.exit_code == 0, ls.output
    text = " ".join(re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown.getvalue()).split())
    for line in (f"{ODD} on {ODD}, {ODD}, budget", f"start: the network of {ODD}", f"In {out}: ", ODD):
        assert line in text
    assert ls.stdout.count(ODD) == 3 and str(out) in ls.stdout


def test_folders_with_brackets_are_shown_as_they_are(run_folder, tmp_path):
    out = tmp_path / "[b]a[red]"
    shutil.copytree(run_folder, out)
    for command in (("inspect",), ("latency", "--runtime", "eager", "--seconds", "0.01")):
        done = chipnet_(*command, out)
        assert done.exit_code == 0, done.output
        assert "[b]a[red]" in "".join(done.stdout.split())  # a path may be wrapped anywhere


def test_control_characters_in_names_do_not_reach_the_terminal(run_folder, tmp_path):
    out = tmp_path / "a \x1b[2Jb"
    shutil.copytree(run_folder, out)
    shown = chipnet_("ls", out)
    assert "a \\x1b[2Jb" in shown.stdout and "\x1b" not in shown.stdout
    (out / "result.json").write_text("{}")
    refused = chipnet_("report", out)
    assert (
        f"prune --config '{tmp_path}/a \\x1b[2Jb/config.yaml'" in refused.stderr
        and "\x1b" not in refused.stderr
    )


# -- progress ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_bar_keeps_accuracy_and_time_left(width):
    screen = io.StringIO()
    with Bars(Console(file=screen, force_terminal=True, width=width)) as bars:
        bars.start("finetune", 100)
        bars.advance(40)
        bars.tick(
            "validation 97.22 %, 0:12:34 left, epoch 3/10, loss 0.1234, budget +0.0123, macs 27.1% soft"
        )
    last = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", screen.getvalue().split("\r")[-1]).strip()
    assert "finetune" in last and "━" in last and "validation 97.22 %, 0:12:34 left" in last
    assert len(last) <= width


def test_a_pipe_gets_a_line_an_epoch_and_no_control_characters(tmp_path):
    done = prune(tmp_path / "run", "--limit", "160", **{"--epochs": "2"})
    assert done.exit_code == 0, done.output
    for phase in ("train", "prune", "finetune"):
        for epoch in (1, 2):
            assert re.search(
                rf"^{phase} {epoch}/2: validation [\d.]+ %, \d:\d\d:\d\d left, loss", done.stdout, re.M
            )
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.output)
    assert "\n    network = chipnet.load(lambda: get_model('tiny:tiny_net', 10, 1), " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "resnet8", "--num-classes", "0"), "--num-classes must be at least 1, not 0."),
        (("latency", ".", "--seconds", "-1"), "--seconds must be above 0 and finite, not -1.0."),
        (("latency", ".", "--batch", "0"), "--batch must be at least 1, not 0."),
        (("prune", "--resume", "."), "there is no run in .: it has no config.yaml."),
        (
            ("inspect", "a", "--input", "1,3,99999,99999"),
            "--input '1,3,99999,99999' is of more than 1,000,000,000 numbers.",
        ),
        (
            ("latency", ".", "--batch", "0", "--threads", "9999"),
            "2 mistakes:\n  - --batch must be at least 1, not 0.\n  - --threads must be at most 1,024, not 9999.",
        ),
        (
            ("prune", *ASKED, "--threads", "9999", "--seed", str(2**63), "--min-channels", "-1"),
            "3 mistakes:\n  - --min-channels must be at least 0, not -1.\n"
            f"  - --seed must be at most 9,223,372,036,854,775,807, not {2**63}.\n"
            "  - --threads must be at most 1,024, not 9999.",
        ),
    ],
)
def test_every_command_names_the_flag(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = chipnet_(*arguments)
    assert (done.exit_code, done.stderr) == (2, f"error: {said}\n")


def test_every_whole_number_of_every_command_is_bounded(tmp_path, monkeypatch, no_training):
    """Nothing starts with a size that a slip of the pen made."""
    monkeypatch.chdir(tmp_path)
    kinds = {n: k for c in (Recipe, Request) for n, (k, *_) in options(c).items()}
    tried = set()
    for command in typer.main.get_command(cli.app).commands.values():
        needed = [p for p in command.params if p.required]
        given = [part for p in needed for part in ([p.opts[0]] if p.opts[0].startswith("-") else []) + ["x"]]
        for option in command.params:
            own = kinds if command.name == "prune" else typing.get_type_hints(command.callback)
            if own.get(option.name) in (int, int | None):
                more = ASKED if command.name == "prune" else given
                done = chipnet_(command.name, *more, option.opts[0], 10**20)
                assert done.exit_code == 2 and option.opts[0] in done.stderr, (command.name, done.stderr)
                assert "must be at most" in done.stderr and str(10**20) in done.stderr, done.stderr
                assert len(done.stderr.splitlines()) == 1
                tried.add((command.name, option.opts[0]))
    assert {("latency", "--threads"), ("inspect", "--num-classes"), ("prune", "--batch-size")} <= tried


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory: you tried")]
)
def test_too_little_memory_is_one_line(tmp_path, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    said = "error: there is not enough memory. Give smaller batches, smaller images or a smaller network: "
    monkeypatch.setattr("chipnet.lab.models.registry._from_callable", full)
    done = chipnet_("inspect", "a:b")
    assert (done.exit_code, done.stderr.startswith(said), done.stderr.count("\n")) == (2, True, 1)
    monkeypatch.undo()
    monkeypatch.setattr("chipnet.lab.loop.train_step", full)
    done = prune(tmp_path / "run")
    assert (done.exit_code, said in done.stderr) == (1, True)


def test_every_option_of_prune_is_in_a_group_of_its_help():
    text = chipnet_("prune", "--help").stdout
    assert text.split("\nOther:\n")[1].strip() == "--help  Show this message and exit."
    for title in ("What to prune", "Budget and method", "Data", "Training", "Hardware", "Output"):
        assert f"\n{title}:\n" in text
    assert "Exit codes: 0 done" in chipnet_("--help").stdout
    assert max(map(len, chipnet_("--help").stdout.splitlines())) <= 80
