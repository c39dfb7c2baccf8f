"""Damaged plans, masks and compact networks: one error of the library, or what the file held."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

import chipnet
from chipnet import LoadError, Plan
from chipnet._util.schema import DamagedError, decode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import mutated_files


@pytest.fixture(scope="module")
def outcomes():
    warnings.filterwarnings("ignore", "Detected pickle protocol")  # PyTorch's, of a pickle that it refuses
    return mutated_files.run(30, seed=7)


READERS = {"latency tables": 0, "from_pretrained": 3, "Run.metrics": 10, "Run.open": 10, "read_config": 10}
READERS |= {"Plan.load": 15, "Masks.load": 15, "chipnet.load": 15, "load_weights": 25, "checkpoint": 15}
"""Reader -> how many of the files at least it must refuse."""


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("reader", READERS)
def test_only_errors_of_the_library_come_out(outcomes, reader):
    assert set(outcomes) == set(READERS)
    assert not mutated_files.wrong(outcomes[reader])
    assert outcomes[reader]["refused"] >= READERS[reader]


@pytest.fixture(scope="module")
def record():
    net = mutated_files.Net()
    s = chipnet.Structure(net, torch.randn(2, 3, 5, 5))
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[s.analysis.site_gates[[site.name for site in s.sites].index("norm")]] = False
    return json.loads(json.dumps(s.plan(s.canonical(mask)).to_json()))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("keep", "a.weight", "0"), [0, 99], r"keep\['a.weight'\] has indices that are not those of 11"),
        (("keep", "a.weight", "0"), [-1], r"keep\['a.weight'\] has indices"),
        (("keep", "a.weight", "0"), [1, 1], r"keep\['a.weight'\] has indices"),
        (("keep", "a.weight", "0"), ["a"], "is 'a', and must be a whole number"),
        (("keep", "a.weight", "7"), [0], "has axis 7, of 4"),
        (("keep", "a.weight", "x"), [0], "has the key 'x', which is no whole number"),
        (("keep", "no.weight"), {"0": [0]}, "is no tensor of the network"),
        (("zero", "norm.weight"), [0, [True]], "is True, and must be a whole number"),
        (("stand_ins", 0, "kind"), "gone", "must be one of constant, dead, norm, pool"),
        (("stand_ins", 0, "channels"), -1, "has -1 channels"),
        (("stand_ins", 0), ["a"], "must be a record of module, kind, channels"),
        (("sites", 0, "kept"), 10**9, "keeps 1000000000 of"),
        (("dense", "macs"), 0.5, r"dense\.macs is 0\.5, and must be a whole number"),
        (("dense",), {"macs": 3}, "dense lacks channels, volume, params"),
        (("mask",), "012", "mask must be a text of 0 and 1"),
        (("shapes", "a.weight", 0), 10**30, "a number of very many digits"),
        (("realisation",), "other", "realisation is 'other'"),
        (("budget",), "hello", "cannot use the budget 'hello'"),
        (("scales",), [["a", "b", float("nan")]], "is nan, and must be a finite number"),
        (("latency",), {"asked": 1}, "latency lacks dense, compact"),
    ],
)
def test_what_is_wrong_is_named(record, path, value, said):
    data = json.loads(json.dumps(record))
    owner = data
    for key in path[:-1]:
        owner = owner.setdefault(key, {}) if isinstance(owner, dict) else owner[key]
    owner[path[-1]] = value
    with pytest.raises(LoadError, match=f"the plan is damaged: .*{said}"):
        Plan.from_json(data)


def test_deep_and_long_json_is_refused(tmp_path):
    for text in ("[" * 100_000, '{"version": ' + "9" * 5000 + "}", "NaN", "\x00", ""):
        (tmp_path / "x.json").write_text(text)
        for read in (Plan.load, chipnet.Masks.load):
            with pytest.raises(LoadError):
                read(tmp_path / "x.json")


def test_stand_ins_that_do_not_fit_are_refused(record):
    net = mutated_files.Net()
    for name, value, said in (
        ("channels", 3, "nothing of 3 channels can stand in"),
        ("module", "no", "no: no such module"),
    ):
        data = json.loads(json.dumps(record))
        data["stand_ins"][0][name] = value
        with pytest.raises(chipnet.PlanError, match=said):
            chipnet.compact(net, Plan.from_json(data), verify=False)


def test_values_by_type():
    assert decode(tuple[int, ...] | None, [1, 2], "x") == (1, 2)
    assert decode(tuple[str, int], ["a", 2], "x") == ("a", 2)
    assert decode(float, 3, "x") == 3.0
    for kind, value in (
        (int, True),
        (float, "1"),
        (float, 10**400),
        (str, 1),
        (bool, 1),
        (tuple[int, int], [1]),
    ):
        with pytest.raises(DamagedError):
            decode(kind, value, "x")
