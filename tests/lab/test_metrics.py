"""What a run tells while it goes: metrics on disk, the line of the progress bar, TensorBoard."""

import json
import re
import time

import pytest
from tiny import TINY, rows

from chipnet import ConfigError
from chipnet.lab.data import Batches
from chipnet.lab.metrics import COLUMNS, CSV, JSONL, Metrics
from chipnet.lab.train import Silent, prepare, run


class Listening(Silent):
    def __init__(self):
        self.texts, self.steps = [], {}

    def start(self, phase, steps):
        self.phase, self.steps[phase] = phase, [steps, 0]

    def tick(self, text):
        self.texts.append((self.phase, text))

    def advance(self, steps):
        self.steps[self.phase][1] += steps


@pytest.mark.parametrize(
    ("method", "parts"), [("chipnet-2026a", True), ("chipnet-paper", True), ("magnitude", False)]
)
def test_losses_are_split_and_costs_are_shown(request_for, method, parts):
    job, heard = prepare(request_for(method=method)), Listening()
    run(job, heard)
    lines = [json.loads(line) for line in (job.out / JSONL).read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [
        ("train", 5), ("prune", 5), ("prune", 10), ("finetune", 5), ("finetune", 10),
    ]  # fmt: skip
    pruning = lines[1]
    assert ("budget" in pruning, "crispness" in pruning) == (parts, parts)
    assert 0 < pruning["soft_macs"] <= 1
    assert all(line["task"] > 0 and line["lr"] > 0 for line in lines)
    table = [row for row in rows(job.out / CSV) if row["phase"] == "prune"]
    if method == "chipnet-paper":  # it has no other part
        for row in table:
            both = float(row["budget_loss"]) + float(row["crispness_loss"])
            assert float(row["pruning_loss"]) == pytest.approx(both, rel=1e-4)
    assert all(float(row["data_seconds"]) < float(row["seconds"]) for row in table)

    assert heard.steps == {"train": [5, 5], "prune": [10, 10], "finetune": [10, 10]}
    text = [t for phase, t in heard.texts if phase == "prune"][5]  # the second epoch's first
    assert re.search(r"epoch 2/2, loss \d\.\d+", text)
    assert re.search(r"macs [\d.]+% soft, [\d.]+% exact", text)
    assert re.search(r"\d:\d\d:\d\d left, epoch ", text)
    assert ("budget" in text) == parts


def test_waiting_for_data_is_told(request_for, monkeypatch):
    real = Batches.__iter__

    def slow(self):
        for batch in real(self):
            time.sleep(0.05 if self.shuffle else 0)
            yield batch

    monkeypatch.setattr(Batches, "__iter__", slow)
    job, heard = prepare(request_for()), Listening()
    run(job, heard)
    assert re.search(r"[6-9]\d% of the time waiting for data", heard.texts[4][1])
    assert float(rows(job.out / CSV)[0]["data_seconds"]) > 5 * 0.05


def test_what_was_written_after_a_checkpoint_is_cut_off(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.epoch(phase="train", epoch=1, lr=0.1)
    metrics.step("train", 1, {"task": 1.0})
    position = metrics.position
    for _ in range(3):
        metrics.epoch(phase="train", epoch=2)
        metrics.step("train", 2, {"task": float("nan")})
    again = Metrics(tmp_path, position)
    assert again.position == position
    assert (tmp_path / CSV).read_text().splitlines() == [
        ",".join(COLUMNS),
        "train,1,0.1" + "," * (len(COLUMNS) - 3),
    ]
    assert (tmp_path / JSONL).read_text() == '{"phase": "train", "step": 1, "task": 1.0}\n'
    assert Metrics(tmp_path).position == {CSV: len(",".join(COLUMNS)) + 1, JSONL: 0}


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own imports
def test_tensorboard(request_for):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    job = prepare(request_for(tensorboard=True, method="chipnet-2026a"))
    run(job)
    found = events.EventAccumulator(str(job.out / "tensorboard"), {"histograms": 0})
    found.Reload()
    tags = found.Tags()
    assert {"train/task", "prune/budget", "prune/soft_macs", "finetune/lr"} <= set(tags["scalars"])
    assert tags["histograms"] == ["prune/gates"]
    assert [e.step for e in found.Histograms("prune/gates")] == [5, 10]


def test_tensorboard_that_is_not_installed_is_named(request_for, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"tensorboard.*pip install tensorboard"):
        prepare(request_for(tensorboard=True))


def test_nothing_is_told_by_default(request_for, capsys):
    run(prepare(request_for(recipe=TINY)))
    assert capsys.readouterr().out == ""
