"""Run folders: read back as they were written; folders in the Hub's style; what is missing is named."""

import json
import re
import shutil
import sys

import pytest
import torch
from command import chipnet_

import chipnet
from chipnet import ConfigError, LoadError
from chipnet._util.lock import RUN, only_writer
from chipnet.lab.runs.folder import Run, find_runs, from_pretrained
from chipnet.lab.train import Recipe, Request, prepare
from chipnet.lab.train import run as train


def test_a_run_gives_back_what_it_made(run_folder):
    run = Run.open(run_folder)
    small, dense = run.compact(), run.dense()
    assert not small.training and not dense.training
    assert (
        sum(p.numel() for p in small.parameters())
        == run.plan().compact.params
        == run.result["compact"]["params"]
    )
    assert sum(p.numel() for p in dense.parameters()) == run.result["dense"]["params"]
    assert [row["phase"] for row in run.metrics()] == ["train", "prune", "prune", "finetune", "finetune"]
    data = run.data()
    assert [len(data.train), len(data.test)] == [run.result["images"]["train"], run.result["images"]["test"]]
    accuracy = chipnet.lab.train.evaluate(small, data.loader("test", 60))
    assert accuracy == run.result["compact"]["accuracy"]
    assert run.images(7).shape == run.noise(7).shape == (7, 1, 8, 8)


def test_a_hub_folder_round_trips_without_the_run(run_folder, tmp_path):
    run, hub = Run.open(run_folder), tmp_path / "hub"
    run.save_pretrained(hub)
    x = run.noise(3)
    assert torch.equal(from_pretrained(hub)(x), run.compact()(x))
    assert torch.equal(from_pretrained(run_folder)(x), run.compact()(x))
    assert torch.equal(from_pretrained(hub, factory=run.build)(x), run.compact()(x))
    config = json.loads((hub / "config.json").read_text())
    assert config["id2label"]["7"] == "7"
    assert f"| macs | 763,520 | {run.result['compact']['macs']:,} |" in (hub / "README.md").read_text()


def test_what_is_missing_is_named(run_folder, tmp_path):
    with pytest.raises(LoadError, match=r"result.json does not exist. Give the folder of a finished run"):
        Run.open(tmp_path)
    with pytest.raises(LoadError, match="no finished run in"):
        list(find_runs(tmp_path))
    with pytest.raises(LoadError, match="there is no folder"):
        list(find_runs(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model": "resnet8"}')
    with pytest.raises(LoadError, match=r"lacks num_classes, in_channels\. Give a factory"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(LoadError, match="holds no JSON object"):
        from_pretrained(tmp_path)
    result = json.loads((run_folder / "result.json").read_text())
    del result["input"]
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(LoadError, match="an older chipnet wrote it"):
        Run.open(tmp_path).build()


def test_no_code_runs_because_a_folder_names_it(run_folder, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    Run.open(run_folder).save_pretrained(tmp_path / "hub")
    shutil.copytree(run_folder, tmp_path / "run")
    for file in (tmp_path / "hub" / "config.json", tmp_path / "run" / "result.json"):
        content = json.loads(file.read_text()) | {"model": "evil:net"}
        file.write_text(json.dumps(content))
        with pytest.raises(LoadError, match=r"network of its maker's own, 'evil:net'.*Give a factory"):
            from_pretrained(file.parent)
        assert from_pretrained(file.parent, Run.open(run_folder).build)


@pytest.fixture
def evil(run_folder, tmp_path, monkeypatch):
    """(a copy of a finished run, what changes its result to name code; whether the code ran)."""
    (tmp_path / "evil.py").write_text(
        "from pathlib import Path\nfrom chipnet.lab.data import load_data\n"
        "from chipnet.lab.models import get_model\n"
        "Path(__file__).with_name('ran').touch()\n"
        "def net(num_classes, in_channels): return get_model('resnet8', num_classes, in_channels)\n"
        "def data(**options): return load_data('digits', **options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("chipnet._util.imports.IMPORTED", set())
    monkeypatch.setattr("chipnet.lab.runs.folder.IMPORTED", set())
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)

    def names(**changes):
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(result | changes))
        if "data" in changes:
            config = (run / "config.yaml").read_text()
            (run / "config.yaml").write_text(config.replace("data: digits", f"data: {changes['data']}"))
        return run

    return names, (tmp_path / "ran").exists


EVIL_NET, EVIL_DATA = {"model": "evil:net"}, {"data": "evil:data"}


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        (EVIL_NET, "latency RUN --seconds 0.01 --runtime eager"),
        (EVIL_NET, "latency OTHER --against RUN --seconds 0.01 --runtime eager"),
        (EVIL_NET, "export RUN --format torch-export --images 2"),
        (EVIL_NET, "val RUN"),
        (EVIL_NET, "val RUN/model.safetensors"),
        (EVIL_NET, "inspect RUN"),
        (EVIL_NET, "transfer --from RUN --data digits --out OUT --epochs 1 --limit 40 --quiet"),
        (EVIL_NET, "prune --model RUN --data digits --budget macs=0.1 --epochs 1 --out OUT --dry-run"),
        (EVIL_DATA, "val RUN"),
        (EVIL_DATA, "export RUN --format torch-export --images 2"),
    ],
)
def test_commands_run_no_code_that_a_folder_names_unless_it_is_trusted(
    evil, run_folder, tmp_path, changes, command
):
    names, ran = evil
    run = names(**changes)
    places = {"RUN": str(run), "OUT": str(tmp_path / "out"), "OTHER": str(run_folder)}
    words = [places.get(w, w.replace("RUN/", f"{run}/")) for w in command.split()]
    done = chipnet_(*words)
    assert done.exit_code == 2, done.output
    assert "of its maker's own, 'evil:" in done.stderr and "--trust" in done.stderr
    assert not ran() and not (tmp_path / "out").exists()
    trusted = chipnet_(*words, "--trust")
    assert trusted.exit_code == 0, trusted.output
    assert ran()


@pytest.mark.parametrize("changes", [EVIL_NET, EVIL_DATA, {**EVIL_NET, "method": "evil:net"}])
def test_what_only_reads_leaves_out_what_is_not_trusted_and_says_so(evil, tmp_path, changes):
    names, ran = evil
    run = names(**changes)
    for words in (("report", run), ("report", run, run, "--output", tmp_path / "two.html"), ("ls", run)):
        done = chipnet_(*words)
        assert done.exit_code == 0, done.output
    assert ("code is not run because a folder names it" in (run / "report.html").read_text()) == (
        "model" in changes
    )
    assert chipnet_("prune", "--resume", run).exit_code == 0
    assert not ran()


def test_a_name_on_the_command_line_is_trusted(evil, tmp_path):
    names, ran = evil
    run = names(**EVIL_DATA)
    assert chipnet_("val", run, "--data", "evil:data").exit_code == 0
    assert ran()


def test_files_that_the_result_does_not_describe_are_refused(run_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    readers = {
        "plan.json": lambda r: r.plan(),
        "masks.json": lambda r: r.masks(),
        "model.safetensors": lambda r: r.compact(),
        "dense.safetensors": lambda r: r.dense(),
    }
    for name, read in readers.items():
        content = (run / name).read_bytes()
        (run / name).write_bytes(content + b" ")
        with pytest.raises(LoadError, match=f"{name} is not the file that .*result.json describes"):
            read(Run.open(run))
        (run / name).write_bytes(content)
        read(Run.open(run))
    result = json.loads((run / "result.json").read_text())
    for state in ("dense", "compact"):
        other = {**result, state: {**result[state], "params": 7}}
        (run / "result.json").write_text(json.dumps(other))
        with pytest.raises(LoadError, match=f"says params 7 of the {state} network, and its plan"):
            Run.open(run).plan()
    del result["files"]  # of an older chipnet
    (run / "result.json").write_text(json.dumps(result))
    assert Run.open(run).compact()


@pytest.mark.parametrize("text", ["{}", '{"model": "resnet8"', "[]", "\udcff", ""])
@pytest.mark.usefixtures("no_training")
def test_a_run_that_may_be_finished_is_not_trained_again(run_folder, tmp_path, text):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / "result.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    done = chipnet_("prune", "--resume", run)
    assert done.exit_code == 2
    assert re.search(
        r"result\.json (is damaged|holds no JSON object)|cannot read .*result\.json", done.stderr
    )
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_a_finished_run_cannot_be_prepared_to_go_on(run_folder):
    asked = Request("resnet8", "digits", "macs=0.25", run_folder)
    with pytest.raises(ConfigError, match=r"is finished .*: there is nothing to continue"):
        prepare(asked, resume=True)


def test_one_process_at_a_time_writes_a_run(tmp_path):
    recipe = Recipe(1, 1, 1, batch_size=8, limit=24, limit_test=10)
    asked = Request("resnet8", "digits", "macs=0.5", tmp_path / "run", recipe, accelerator="cpu")
    first, second = prepare(asked), prepare(asked)
    with only_writer(first.out):
        with pytest.raises(ConfigError, match="another process writes a run into"):
            prepare(asked)
        with pytest.raises(ConfigError, match="another process writes a run into"):
            train(second)
    train(first)
    with pytest.raises(ConfigError, match="holds a finished run"):  # since it was prepared
        train(second)
    assert Run.open(first.out).compact()
    assert not (first.out / RUN).exists()


def test_ls_lists_what_it_can_read(run_folder, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(run_folder, tmp_path / name)
    (tmp_path / "two" / "result.json").write_text('{"model": 3}')
    done = chipnet_("ls", tmp_path)
    assert done.exit_code == 0, done.output
    assert "/one " in done.stdout and "/two " not in done.stdout
    assert re.search(r"^left out: .*two/result\.json is damaged: it lacks data, method", done.stderr)
    assert len(json.loads(chipnet_("ls", tmp_path, "--json").stdout)) == 1
    assert chipnet_("ls", tmp_path / "two").exit_code == 2


def test_runs_are_found_in_folders_of_folders(run_folder, tmp_path):
    for name in ("b/two", "a/one"):
        shutil.copytree(run_folder, tmp_path / name)
    assert [run.name for run in find_runs(tmp_path)] == ["one", "two"]


def test_ls_lists_and_sorts(run_folder, tmp_path):
    for name, accuracy in (("one", 50.0), ("two", 70.0)):
        shutil.copytree(run_folder, tmp_path / name)
        result = json.loads((tmp_path / name / "result.json").read_text())
        result["compact"]["accuracy"] = accuracy
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    done = chipnet_("ls", tmp_path)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0].rpartition("/")[2] for line in lines[1:]] == ["one", "two"]
    assert lines[1][1:6] == ["resnet8", "digits", "chipnet", "macs", "0.25"]
    assert lines[1][7] == "50.00"
    best = json.loads(chipnet_("ls", tmp_path, "--sort", "accuracy", "--json").stdout)
    assert [run["compact"]["accuracy"] for run in best] == [70.0, 50.0]
    refused = chipnet_("ls", tmp_path, "--sort", "size")
    assert refused.exit_code == 2
    assert "--sort 'size': give one of name, accuracy" in refused.stderr
