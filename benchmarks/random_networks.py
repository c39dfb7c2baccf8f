"""Many random networks: is every compact network exact, and does it cost what was predicted?

    python -m benchmarks.random_networks --cases 10000 --seed 0 --jobs 2

Draws recipes with the generator of the tests (`tests/random_networks.py`) and runs its check on each. A failure
prints the seed that draws it, the exception and the shrunk recipe, as a line to paste; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import chipnet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from random_networks import Recipe, check, random_recipe, shrunk, vocabulary

COUNTS = ("networks", "gated", "no gates", "masks", "budget refused")


def signature(error: BaseException) -> tuple[str, str]:
    """Failures of one kind: the exception's type and the innermost line of ours."""
    frames = [
        f"{Path(f.filename).name}:{f.lineno}"
        for f in traceback.extract_tb(error.__traceback__)
        if "chipnet" in Path(f.filename).parts
        or Path(f.filename).name in ("random_networks.py", "harness.py")
    ]
    return type(error).__name__, frames[-1]


def one(seed: str) -> tuple[str, Counter[str], tuple[str, str] | None, str]:
    """Check the recipe of a seed: counts, and on failure its kind and what was said."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    try:
        return seed, check(random_recipe(random.Random(seed).randint)), None, ""
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        return seed, Counter({"networks": 1, "failed": 1}), signature(error), said


def minimal(seed: str, kind: tuple[str, str]) -> Recipe:
    """The recipe of ``seed``, shrunk while it fails in the same way."""

    def fails(recipe: Recipe) -> bool:
        try:
            check(recipe)
        except Exception as error:
            return signature(error) == kind
        return False

    warnings.simplefilter("error")
    return shrunk(random_recipe(random.Random(seed).randint), fails)


def results(seeds: list[str], jobs: int) -> Iterator[tuple[str, Counter[str], tuple[str, str] | None, str]]:
    if jobs == 1:
        yield from map(one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=500) as pool:
        yield from pool.imap_unordered(one, seeds, chunksize=4)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(1)
    start, total = time.perf_counter(), Counter[str]()
    failures: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for done, (seed, counts, kind, said) in enumerate(
        results([f"{a.seed}-{i}" for i in range(a.cases)], a.jobs), start=1
    ):
        total += counts
        if kind is not None:
            failures.setdefault(kind, []).append((seed, said))
            print(f"seed {seed}: {said} at {kind[1]}", flush=True)
        if done % 100 == 0:
            seconds = time.perf_counter() - start
            print(f"{done} of {a.cases}, {total['failed']} failed, {seconds:.0f} s", flush=True)
    for kind, found in failures.items():
        seed, said = found[0]
        print(f"\n{len(found)} x {said} at {kind[1]}; seed {seed}, shrunk:\ncheck({minimal(seed, kind)})")
    print("\noperators:", ", ".join(f"{name} {total[name]}" for name in sorted(set(vocabulary()))))
    print(", ".join(f"{total[k]} {k}" for k in (*COUNTS, "failed")))
    print(
        f"{time.perf_counter() - start:.0f} s, {a.jobs} processes, {platform.processor() or platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, chipnet {chipnet.__version__}, "
        f"{date.today()}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
