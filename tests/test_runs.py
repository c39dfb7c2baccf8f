"""Run folders: read back as they were written; folders in the Hub's style; what is missing is named."""

import json
import shutil

import pytest
import torch
from test_cli import chipnet_

import chipnet
from chipnet import LoadError
from chipnet.runs import Run, find_runs, from_pretrained


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
    accuracy = chipnet.train.evaluate(small, data.loader("test", 60))
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
