"""Kill runs at random moments in every phase: each must end with the bits of a run that was left alone.

    python -m benchmarks.kill --kills 20 --seed 0

A kill is SIGKILL to `chipnet prune`, then `chipnet prune --resume`; what is compared is every bit of the dense
and the compact weights, the plan, the metrics and the result (times aside).
"""

from __future__ import annotations

import argparse
import platform
import random
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from killing import fingerprint, finished, killed, start

PHASES = ("train", "prune", "finetune")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--method", default="chipnet")
    a = parser.parse_args()
    generator = random.Random(a.seed)
    arguments = (
        "--model", a.model, "--method", a.method, "--data", "digits", "--epochs", "4,6,8", "--limit", "320",
        "--limit-test", "60", "--checkpoint-steps", "3", "--accelerator", "cpu",
    )  # fmt: skip
    began, same = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        process = start(*arguments, "--out", str(whole))
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(errors)
        expected = fingerprint(whole)
        for n in range(a.kills):
            out, phase, where = Path(folder) / str(n), PHASES[n % len(PHASES)], ""
            while not where:  # a run that was over before it could be killed is started anew
                shutil.rmtree(out, ignore_errors=True)
                where = killed(out, phase, generator, *arguments, "--out", str(out))
            finished(out)
            equal = fingerprint(out) == expected
            same += equal
            print(
                f"{n + 1:3} killed in {phase}, last line {where}: {'same' if equal else 'DIFFERENT'}",
                flush=True,
            )
    print(
        f"{same} of {a.kills} runs ended with the same bits; {a.model}, {a.method}, seed {a.seed}; "
        f"{platform.machine()}, torch {torch.__version__}, 1 thread, {date.today().isoformat()}; "
        f"{time.perf_counter() - began:.0f} s"
    )
    raise SystemExit(same != a.kills)


if __name__ == "__main__":
    main()
