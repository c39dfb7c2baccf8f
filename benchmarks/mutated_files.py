"""Files that are damaged in every way, and the readers of them: only errors of the library may come out, quickly.

    python -m benchmarks.mutated_files --count 1000

Valid files are changed value by value (types, lengths, keys, numbers), cut off, and flipped byte by byte; checksums
are made anew for half of them, so that what is inside is read. A reader passes where every file gives what it held,
or one `ChipNetError`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import nn

import chipnet
from chipnet.analysis.kinds import KINDS
from chipnet.lab import checkpoint
from chipnet.lab.cli.show import summary
from chipnet.lab.cli.sweep import table
from chipnet.lab.config_file import read_config
from chipnet.lab.layers import request_from
from chipnet.lab.models import get_model, load_weights
from chipnet.lab.runs.folder import Run, from_pretrained
from chipnet.lab.runs.report import report
from chipnet.lab.train import Recipe, Request, prepare
from chipnet.lab.train import run as train
from chipnet.surgery.storage import _digest
from chipnet.timing.tables import LatencyModel, _Cache

ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 10**6, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "0", "1", "fc", "weight", "\ud800", "x" * 1000, "é", [], {}, [[]], [0], [-1], [1, 1],
    ["a"], [None], {"0": []}, {"a": 1}, {"": {"": {}}}, [[0, [1]]], list(range(50)),
]  # fmt: skip


class Net(nn.Module):
    """conv0 3>7 - [a 7>11 - pool - b 11>7] + - fc: a branch that can die, a norm, a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7)
        self.a, self.norm = nn.Conv2d(7, 11, 3, padding=1), nn.BatchNorm2d(11)
        self.b, self.fc = nn.Conv2d(11, 7, 1), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm0(self.conv0(x)))
        x = x + self.b(torch.relu(self.norm(self.a(x))))
        return self.fc(x.mean((2, 3)))


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in a JSON value."""
    found = [path]
    for key, value in (
        data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    ):
        found += places(value, (*path, key))
    return found


def changed(data: Any, chance: random.Random) -> Any:
    """A copy with one to three values changed, removed, added, swapped or renamed."""
    data = copy.deepcopy(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        path = chance.choice(places(data))
        if not path:
            if chance.random() < 0.05:
                return copy.deepcopy(chance.choice(ODD))
            continue
        owner = data
        for key in path[:-1]:
            owner = owner[key]
        key, value = path[-1], owner[path[-1]]
        how = chance.randrange(6)
        if how == 0:
            del owner[key]
        elif how == 1 and isinstance(owner, dict):
            owner[chance.choice(["", "0", "9", "-1", "b.weight", "Ω", key + "x"])] = owner.pop(key)
        elif how == 1:
            owner.insert(key, copy.deepcopy(value))
        elif how == 2 and isinstance(value, (int, float)) and not isinstance(value, bool):
            owner[key] = chance.choice(
                [-value, value + 1, value - 1, value * 10**12, value / 7, str(value), [value]]
            )
        elif how == 3 and isinstance(value, list):
            owner[key] = chance.choice([value[::-1], value * 2, value[:-1], [value], dict(enumerate(value))])
            owner[key] = (
                {str(k): v for k, v in owner[key].items()} if isinstance(owner[key], dict) else owner[key]
            )
        elif how == 4 and isinstance(value, str):
            owner[key] = chance.choice(
                [value[:-1], value * 2, value.upper(), value.encode("utf-8", "surrogatepass").hex()]
            )
        else:
            owner[key] = copy.deepcopy(chance.choice(ODD))
    return data


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Cut off, lengthened, or with some bytes changed."""
    how, at = chance.randrange(4), chance.randrange(len(content))
    if how == 0:
        return content[:at]
    if how == 1:
        return content + chance.randbytes(chance.randint(1, 40))
    out = bytearray(content)
    for _ in range(1 if how == 2 else 20):
        out[chance.randrange(min(len(out), 600) if chance.random() < 0.5 else len(out))] = chance.randrange(
            256
        )
    return bytes(out)


def json_file(data: Any, chance: random.Random) -> bytes:
    """A JSON file, changed in its values or in its bytes."""
    if chance.random() < 0.15:
        return damaged(json.dumps(data).encode(), chance)
    new = changed(data, chance)
    if isinstance(new, dict) and "sites" in new and "fingerprint" in new and chance.random() < 0.7:
        try:
            widths = [[n, s["channels"]] for n, s in new["sites"].items()]
            new["fingerprint"] = hashlib.sha256(json.dumps(widths).encode()).hexdigest()
        except (AttributeError, KeyError, TypeError):
            pass
    return json.dumps(new).encode()


def tensors_file(content: bytes, chance: random.Random) -> bytes:
    """A compact network's file with another plan, tensors or header; mostly with a right checksum."""
    if chance.random() < 0.25:
        return damaged(content, chance)
    size = int.from_bytes(content[:8], "little")
    header = dict(json.loads(content[8 : 8 + size])["__metadata__"])
    tensors = safetensors.torch.load(content)
    if chance.random() < 0.7:
        text = json.dumps(changed(json.loads(header["plan"]), chance))
        header["plan"] = damaged(text.encode(), chance).decode("latin1") if chance.random() < 0.1 else text
    else:
        name = chance.choice(list(tensors))
        t = tensors.pop(name)
        dtype = chance.choice(
            [torch.int64, torch.bool, torch.float16, torch.complex64, torch.uint8, torch.float64]
        )
        new = chance.choice(
            [None, t.to(dtype), t.flatten()[:1], t[None], t.new_zeros(0), torch.full_like(t, 0)]
        )
        if new is not None:
            tensors[chance.choice([name, name + "x"])] = new.contiguous()
    header["sha256"] = _digest(tensors, header["plan"])
    if chance.random() < 0.1:
        header[chance.choice(list(header))] = chance.choice(["", "1", "x", "chipnet-compact"])
    return safetensors.torch.save(tensors, header)


def table_file(content: bytes, chance: random.Random) -> bytes:
    """A CSV file with other values, more or fewer of them, or changed in its bytes."""
    if chance.random() < 0.5:
        return damaged(content, chance)
    lines = [line.split(",") for line in content.decode().splitlines()]
    line = chance.choice(lines)
    how = chance.randrange(4)
    if how == 0:
        line.pop()
    elif how == 1:
        line.append("1")
    elif how == 2:
        lines.remove(line)
    else:
        values = ["", "x", "-1", "nan", "inf", "1e999", "9" * 400, "-", "1 2", '"', "train"]
        line[chance.randrange(len(line))] = chance.choice(values)
    return "\n".join(",".join(line) for line in lines).encode()


def yaml_file(data: Any, chance: random.Random) -> bytes:
    """A YAML file, changed in its values or in its bytes."""
    text = yaml.safe_dump(changed(data, chance)).encode("utf-8", "surrogatepass")
    return damaged(text, chance) if chance.random() < 0.3 else text


def chance_of(path: Path, one_in: int) -> bool:
    """Whether a file is one of those that slow readers see."""
    return int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:4], "big") % one_in == 0


def finished_run(folder: Path) -> Path:
    """A finished run, as short as can be."""
    recipe = Recipe(1, 1, 1, batch_size=8, limit=24, limit_test=10)
    train(prepare(Request("resnet8", "digits", "macs=0.5", folder, recipe, accelerator="cpu")))
    return folder


def readers(folder: Path) -> dict[str, tuple[Callable[[random.Random], bytes], Callable[[Path], Any]]]:
    """Name -> how a file of it is made by chance, and how it is read (and used, where that takes no training)."""
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 3, 5, 5)
    plans = []
    for realisation in ("plain", "indexed"):
        s = chipnet.Structure(net, x, realisation=realisation)
        for part in (0.5, 0.2):
            plans.append(
                s.plan(s.harden(torch.rand(s.gates), {"macs": part}), chipnet.Budget.parse("macs=0.5"))
            )
        dead = torch.ones(s.gates, dtype=torch.bool)
        dead[s.analysis.site_gates[[site.name for site in s.sites].index("norm")]] = False
        plans.append(s.plan(s.canonical(dead)))
    masks = chipnet.Masks.of(s, s.canonical(dead), "macs=0.5").to_json()
    records = [json.loads(json.dumps(p.to_json())) for p in plans]
    files = []
    for plan in plans:
        chipnet.save(chipnet.compact(net, plan), plan, folder / "net.safetensors")
        files.append((folder / "net.safetensors").read_bytes())

    def load_plan(path: Path) -> None:
        chipnet.compact(net, chipnet.Plan.load(path), x, verify=False)

    def load_masks(path: Path) -> None:
        found = chipnet.Masks.load(path)
        assert found.fingerprint
        found.transfer(s)

    run = finished_run(folder / "run")
    result = json.loads((run / "result.json").read_text())
    rows = (run / "metrics.csv").read_bytes()

    def read_result(path: Path) -> None:
        shutil.copyfile(path, run / "result.json")
        found = Run.open(run)
        found.card()
        summary(found.result)
        table({"a": found.result})
        found.noise(1)
        [found.left(kind) for kind in KINDS]
        if chance_of(path, 20):
            report(found)
        if chance_of(path, 10):
            found.compact()

    def read_metrics(path: Path) -> None:
        (run / "result.json").write_text(json.dumps(result))
        shutil.copyfile(path, run / "metrics.csv")
        Run.open(run).metrics()
        if chance_of(path, 20):
            report(run)

    config = yaml.safe_load((run / "config.yaml").read_text())
    Run.open(run).save_pretrained(folder / "hub")
    hub = json.loads((folder / "hub" / "config.json").read_text())
    network = get_model("resnet8", 10, 1)
    weights = (run / "dense.safetensors").read_bytes()
    stopped = folder / "stopped"
    stopped.mkdir()
    checkpoint.write(stopped, {"state": {"phase": "prune"}, "network": network.state_dict()})
    saved = (stopped / "checkpoint.pt").read_bytes()

    def read_hub(path: Path) -> None:
        shutil.copyfile(path, folder / "hub" / "config.json")
        from_pretrained(folder / "hub")

    def read_checkpoint(path: Path) -> None:
        shutil.copyfile(path, stopped / "checkpoint.pt")
        checkpoint.read(stopped)

    layer, cache = nn.Linear(3, 2), _Cache(torch.device("cpu"))
    cache.table(layer, (1, 3))
    tables = json.loads(json.dumps(cache.tables))

    def read_table(path: Path) -> None:
        again = _Cache(torch.device("cpu"))
        again.path = path
        with again:
            found = again.table(layer, (1, 3))  # a damaged one is measured anew
        LatencyModel([(0, 1, 2, 0, 1)], [found], (0.0, 0.0, 1.0))
        assert again.new or json.loads(path.read_text()) == again.tables

    return {
        "read_config": (
            lambda c: yaml_file(config, c),
            lambda p: request_from(read_config(p), source=str(p)),
        ),
        "from_pretrained": (lambda c: json_file(hub, c), read_hub),
        "load_weights": (lambda c: damaged(weights, c), lambda p: load_weights(network, p)),
        "latency tables": (lambda c: json_file(tables, c), read_table),
        "checkpoint": (lambda c: damaged(saved, c), read_checkpoint),
        "Run.open": (lambda c: json_file(result, c), read_result),
        "Run.metrics": (lambda c: table_file(rows, c), read_metrics),
        "Plan.load": (lambda c: json_file(c.choice(records), c), load_plan),
        "Masks.load": (lambda c: json_file(masks, c), load_masks),
        "chipnet.load": (lambda c: tensors_file(c.choice(files), c), lambda p: chipnet.load(Net, p)),
    }


def run(count: int, seed: int = 0) -> dict[str, Counter[str]]:
    """Per reader: how many files were refused, read, and ended in something else (by its name, with an example)."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        for name, (make, read) in readers(Path(folder)).items():
            outcomes: Counter[str] = Counter()
            for i in range(count):
                content = make(random.Random(f"{seed} {name} {i}"))
                path.write_bytes(content)
                begun = time.perf_counter()
                try:
                    read(path)
                    outcome = "read"
                except chipnet.ChipNetError:
                    outcome = "refused"
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    outcome = f"{type(error).__name__}: {str(error)[:80]}"
                took = time.perf_counter() - begun
                outcomes[outcome if took < 5 else f"took {took:.0f} s"] += 1
            results[name] = outcomes
    return results


def wrong(outcomes: Counter[str]) -> list[str]:
    """What should not have come out."""
    return [f"{text} ({n} times)" for text, n in outcomes.items() if text not in ("read", "refused")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="files per reader")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = False
    for name, outcomes in run(options.count, options.seed).items():
        print(f"{name}: {outcomes['refused']} refused, {outcomes['read']} read")
        for text in wrong(outcomes):
            failed = True
            print(f"  {text}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
