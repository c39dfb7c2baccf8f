"""result.json of a run folder: what it must hold, one reader for all who read it, and the sums of its files.

Whether a run is finished is whether its folder has this file: `finished` says so, and refuses one that is damaged.
Nothing here imports PyTorch, so that the command line can look before it starts.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from chipnet._util.schema import DamagedError, decode, require
from chipnet._util.sizes import MAX, MAX_OF
from chipnet._util.text import shell_command
from chipnet.analysis.kinds import KIND, KINDS, LATENCY
from chipnet.budget.landing import Landing
from chipnet.errors import LoadError
from chipnet.lab.config import CONFIG

RESULT, PLAN, MASKS, SPLIT = "result.json", "plan.json", "masks.json", "split.json"
MODEL, DENSE = "model.safetensors", "dense.safetensors"
CSV, JSONL, REPORT = "metrics.csv", "metrics.jsonl", "report.html"
FILES = (RESULT, PLAN, MASKS, MODEL, DENSE, CSV, JSONL, SPLIT, CONFIG, REPORT)
"""What a finished run leaves in its folder."""
SUMMED = (PLAN, MASKS, MODEL, DENSE)
"""The files that a result describes: `file_sums` of them are in it."""
SHRINK = "shrink"
"""The method that a run without training has in its result, and the key of what it did there."""


class _Measured(TypedDict, total=False):
    loss: float | None


class _State(_Measured):
    """Accuracy in percent (None: never trained) and costs of a network."""

    accuracy: float | None
    params: float
    macs: float
    volume: float
    channels: float


class _Input(TypedDict):
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    data_dir: str | None


class _Recipe(TypedDict):
    batch_size: int
    limit: int | None
    limit_test: int | None


class _Environment(TypedDict):
    chipnet: str
    device: str
    date: str


class _Seconds(TypedDict):
    total: float


class _Verify(TypedDict):
    max_abs_difference: float
    output_scale: float


class _Start(_State):
    run: str


class _Layer(TypedDict):
    layer: str
    before: float | None
    after: float | None


class _Shrink(TypedDict):
    """Errors are squared ones, as parts of what they are errors of; None: not finite."""

    images: int
    cut: float | None
    refitted: float | None
    layers: tuple[_Layer, ...]


class _Known(TypedDict):
    """What every result says, a rival's too."""

    model: str
    data: str
    method: str
    seed: int
    budget: Mapping[str, float]
    limits: Mapping[str, int]
    realisation: str
    environment: _Environment
    command: str
    dense: _State
    compact: _State
    seconds: _Seconds


class Result(_Known, total=False):
    """The keys of result.json that anybody reads, and what their values are."""

    input: _Input
    images: Mapping[str, int]
    recipe: _Recipe
    soft: _State
    hard: _State
    start: _Start
    verify: _Verify
    warnings: tuple[str, ...]
    latency: Landing
    shrink: _Shrink
    files: Mapping[str, str]
    masks: str


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        LoadError: there is none; ``hint`` says what to give.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise LoadError(f"{path} does not exist. {hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict):
        raise LoadError(f"{path} holds no JSON object. {hint}")
    return data


def read_result(folder: Path) -> dict[str, Any]:
    """What the result.json of a run folder holds, of the right types.

    Raises:
        LoadError: there is none, or it is damaged.
    """
    path = folder / RESULT
    data = read_json(path, "Give the folder of a finished run: what chipnet prune --out wrote.")
    try:
        decode(Result, data, "it")
        _consistent(data)
    except DamagedError as error:
        raise LoadError(
            f"{path} is damaged: {error}. The networks beside it can be read (chipnet.load); to train them again: "
            + shell_command("prune", "--config", folder / CONFIG)
        ) from error
    return data


def _consistent(data: Mapping[str, Any]) -> None:
    for kind, value in data["budget"].items():
        require(kind in (*KINDS, LATENCY), "budget", f"is of {kind!r}, which nothing costs")
        require(value >= 0, f"budget.{kind}", f"is {value}")
    for kind, limit in data["limits"].items():
        require(kind in (*KINDS, LATENCY) and limit >= 0, f"limits.{kind}", f"is {limit}")
    for state in ("dense", "start", "soft", "hard", "compact"):
        for kind, value in data.get(state, {}).items():
            if kind in KINDS:
                require(value >= 0, f"{state}.{kind}", f"is {value}")
    if "latency" in data:
        require(data["latency"]["dense"] > 0, "latency.dense", "is no time")
    given = data.get("input")
    if given is not None:
        for name in ("num_classes", "in_channels", "image_size"):
            require(1 <= given[name] <= MAX_OF[name], f"input.{name}", f"is {given[name]:,}")
        require(
            given["in_channels"] * given["image_size"] ** 2 <= MAX,
            "input",
            "is of images of too many numbers",
        )
        for name in ("mean", "std"):
            require(len(given[name]) == given["in_channels"], f"input.{name}", "is not one number a channel")


def states(result: Mapping[str, Any]) -> dict[str, str]:
    """The networks that a result tells of, and what they are called."""
    names = {name: name for name in ("dense", "start", "soft", "hard", "compact") if name in result}
    return names | ({"hard": "as cut", "compact": "refitted"} if SHRINK in result else {})


def output_error(result: Mapping[str, Any]) -> str:
    """What the cut of a run without training did to the outputs, and what the refit left of it, for people.

    >>> output_error({"shrink": {"images": 512, "cut": 0.93, "refitted": None, "layers": []}})
    'output error: 93 % as cut, not finite after the refit, on 512 training images'
    """
    done = result[SHRINK]
    cut, refitted = (
        "not finite" if done[name] is None else f"{100 * done[name]:.3g} %" for name in ("cut", "refitted")
    )
    return f"output error: {cut} as cut, {refitted} after the refit, on {done['images']:,} training images"


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv, as text: numbers, or empty where a phase does not have a value.

    Raises:
        LoadError: there is none, or it is damaged.
    """
    path = folder / CSV
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            _check_row(row)
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise LoadError(f"{path} is damaged: {error}") from error
    return rows


def _check_row(row: Mapping[str, Any]) -> None:
    """A row of metrics.csv is a phase, whole numbers and finite ones.

    Raises:
        ValueError: it is not.
    """
    for name, text in row.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError("a row has more or fewer values than there are columns")
        if name == "gates":
            [int(n) for n in text.split()]
        elif name == "epoch":
            int(text)
        elif name != "phase" and text and not math.isfinite(float(text)):
            raise ValueError(f"{name} is {text}")


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of the run in a folder, or None where none is finished there.

    Raises:
        LoadError: it is damaged. A run that may be finished is not trained again unless that is asked for.
    """
    return read_result(folder) if os.path.lexists(folder / RESULT) else None


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a result describes, by name."""
    return {name: checksum(folder / name) for name in SUMMED if (folder / name).is_file()}


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        return digest.hexdigest()


def described(folder: Path, result: Mapping[str, Any], name: str) -> Path:
    """The path of a run's file, which is the one that the result describes.

    Raises:
        LoadError: it is another one: two runs wrote into the folder, or somebody changed it.
    """
    path, known = folder / name, result.get("files", {}).get(name)
    if known is not None and path.is_file() and checksum(path) != known:
        raise LoadError(
            f"{path} is not the file that {folder / RESULT} describes: something else was written or copied there "
            "after the run. Copy the whole folder again from its origin"
            + (", or read the network by itself with chipnet.load." if name.startswith("model") else ".")
        )
    return path


def budget_text(targets: Mapping[str, float | int]) -> str:
    """A result's budget, as people read it.

    Example:
        >>> budget_text({"macs": 0.25, "params": 2000000, "latency": 3500000})
        'macs 0.25, params 2,000,000, latency 3.5 ms'
    """

    def one(kind: str, value: float | int) -> str:
        return f"{kind} {value:.4g}" if isinstance(value, float) else f"{kind} {KIND[kind].show(value)}"

    return ", ".join(one(kind, value) for kind, value in targets.items())
