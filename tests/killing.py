"""Runs that are killed: what they leave must be the bits of a run that was left alone."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import safetensors

ROOT = Path(__file__).resolve().parents[1]


def fingerprint(out: Path) -> dict[str, Any]:
    """All that a run leaves, but for times, places and how it was started; tensors as bytes."""
    found: dict[str, Any] = {}
    for name in ("dense.safetensors", "model.safetensors"):
        with safetensors.safe_open(out / name, framework="pt") as file:
            found[name] = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}  # noqa: SIM118
            found[name]["metadata"] = file.metadata()
    found["plan.json"] = json.loads((out / "plan.json").read_text())
    result = json.loads((out / "result.json").read_text())
    found["result.json"] = {
        k: v for k, v in result.items() if k not in ("seconds", "environment", "command", "input")
    }
    with open(out / "metrics.csv", newline="") as file:
        found["metrics.csv"] = [
            {k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)
        ]
    found["metrics.jsonl"] = (out / "metrics.jsonl").read_text()
    return found


_PROGRAM = """
import gc, chipnet.lab.train, torch._dynamo
gc.freeze()  # what is imported is no garbage, and takes long to look through
from chipnet.lab.cli import main
main()
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    """`chipnet prune ARGUMENTS` in a process of its own, on one thread."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("src", "tests")),
    }
    command = [sys.executable, "-c", _PROGRAM, "prune", "--quiet", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def killed(out: Path, phase: str, generator: random.Random, *arguments: str) -> str:
    """Start a run (or continue the one in `out`), kill it at a random moment of `phase`; where that was, or ""
    where the run was over before.

    The moment is a random time after the phase's first line of metrics or its first checkpoint, so that steps,
    evaluations, checkpoints being written and the cut itself are all met.
    """
    process = start(*(arguments if not (out / "config.yaml").exists() else ("--resume", str(out))))
    try:
        while process.poll() is None and not _reached(out, phase):
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    if process.returncode != -signal.SIGKILL:
        return ""
    lines = _read(out / "metrics.jsonl").splitlines()
    return lines[-1] if lines else "before the first line of metrics"


def finished(out: Path) -> None:
    """Continue the run in `out` to its end."""
    process = start("--resume", str(out))
    _, errors = process.communicate()
    if process.returncode:
        raise AssertionError(f"the run could not be continued: {errors}")


def _reached(out: Path, phase: str) -> bool:
    if phase == "train":
        return (out / "checkpoint.pt").exists()
    return f'"phase": "{phase}"' in _read(out / "metrics.jsonl")


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
