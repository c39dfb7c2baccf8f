"""`chipnet bench CONFIG.yaml`: the runs of a grid, resumed where it stopped; what is done is what has a result.

A dense run is a transfer of masks that keep everything, and ``scratch`` one of a run's own: there is one loop.

Failures of a run are results too: they are written down and the grid goes on. `results.csv` has a row a run and is
written anew after each; tables and plots are made from it by `chipnet.lab.runs.tables`.

Any number of processes may work on one grid: a run belongs to the process that holds the lock of its folder, and
the system takes that back when the process ends, however it ends.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chipnet._util.files import write_json
from chipnet._util.imports import import_callable
from chipnet._util.lock import claimed
from chipnet._util.text import amount
from chipnet.errors import ConfigError, LoadError
from chipnet.lab import checkpoint
from chipnet.lab.runs.grid import DENSE, Grid, GridRun, grid_request, is_rival, noting, recipe_of, runs_of
from chipnet.lab.runs.record import MASKS, MODEL, RESULT
from chipnet.lab.runs.rows import ERROR, row, status, write_results

if TYPE_CHECKING:
    from chipnet.lab.config import Request
    from chipnet.lab.job import Job
    from chipnet.lab.train import Watcher

SETTINGS = "settings.json"


def request_of(grid: Grid, run: GridRun, data_dirs: Mapping[str, str], command: str) -> Request:
    """The request of one run; those that it needs have been made."""
    recipe = recipe_of(grid, run.data)
    masks = weights = None
    if run.method == DENSE:
        masks = str(grid.out / run.folder / "whole.json")
        # All epochs of a recipe go into a transfer: here those of dense training.
        recipe = dataclasses.replace(recipe, train=max(recipe.train - 1, 0), prune=1, finetune=0)
    else:
        if run.source is not None:
            masks = str(grid.out / run.source.folder / MASKS)
        if not run.anew:
            weights = str(grid.out / run.dense.folder / MODEL)
    return dataclasses.replace(
        grid_request(grid, run.data),
        model=run.model,
        budget=run.budget or "channels=1.0",
        out=grid.out / run.folder,
        recipe=recipe,
        data_dir=_folder(run.data, data_dirs),
        weights=weights,
        # Where masks are given it is a name, and a rival asks no method of ours for anything.
        method="uniform" if is_rival(run.method) else run.method,
        masks=masks,
        seed=run.seed,
        overwrite=True,
        command=command,
    )


def bench(
    grid: Grid,
    data_dirs: Mapping[str, str],
    *,
    command: str = "",
    retry: bool = False,
    watcher: Watcher | None = None,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[int, int, GridRun, str], None] = lambda number, total, run, text: None,
) -> list[dict[str, Any]]:
    """Run what is not done yet and nobody else is at; returns the rows of results.csv, once all runs are finished.

    Args:
        grid: from `read_grid`.
        data_dirs: data set -> its folder; "" for all that are not named.
        command: how it was started, for result.json.
        retry: run those that failed again.
        watcher, stop: of each run, as `chipnet.lab.train.run` takes them.
        told: called before and after each run with its number, how many there are, the run and how it stands.

    Raises:
        Interrupted: it was stopped; the next call goes on, from the middle of the run too.
    """
    from chipnet.lab.train import Interrupted

    todo = dict(enumerate(runs_of(grid), 1))
    total = len(todo)
    settings = _settings(grid, data_dirs)
    grid.out.mkdir(parents=True, exist_ok=True)
    write_json(grid.out / SETTINGS, settings)
    began = time.time()

    def finished(run: GridRun) -> str:
        """How a run ended, or "": it is open, or failed before and is to be run again."""
        was = status(grid, run)
        if was == "failed" and retry:
            try:
                if (grid.out / run.folder / ERROR).stat().st_mtime < began:
                    return ""
            except FileNotFoundError:  # another process has just begun to run it again
                return ""
        return "" if was == "open" else was

    while todo:
        before = len(todo)
        for number, run in list(todo.items()):
            if was := finished(run):
                told(number, total, run, f"{was} before")
            elif stop():  # a rival's run does not ask
                raise Interrupted(f"stopped; not finished: {len(todo)} of {amount(total, 'run')}")
            elif not all(finished(needed) for needed in run.needs):
                continue
            else:
                with claimed(grid.out / run.folder) as mine:
                    if not mine or finished(run):
                        continue
                    told(number, total, run, "starts")
                    try:
                        told(number, total, run, _one(grid, run, data_dirs, command, watcher, stop))
                    except Interrupted:
                        raise Interrupted(
                            f"stopped in {run.folder}; not finished: {len(todo)} of {amount(total, 'run')}. The "
                            "same command goes on, from the middle of this run too."
                        ) from None
                    write_results(grid)
            del todo[number]
        if len(todo) == before:  # others are at what is left, or at what it needs
            time.sleep(1)
    return write_results(grid)


def preflight(grid: Grid, data_dirs: Mapping[str, str], retry: bool = False) -> None:
    """What is known to fail is said before anything is trained or written.

    Args:
        grid, data_dirs, retry: as for `bench`.

    Raises:
        ConfigError: all that cannot be used: a network, a data set or its folder, a seed, an option of all runs, or
            a folder with runs of other settings.
    """
    import torch

    from chipnet.lab import job
    from chipnet.lab.data import load_data
    from chipnet.lab.layers import data_options
    from chipnet.lab.models import get_model

    _settings(grid, data_dirs)
    again = ("open", "failed") if retry else ("open",)
    runs = [run for run in runs_of(grid) if status(grid, run) in again]
    problems: list[str] = []

    def network(name: str) -> None:
        if ":" in name:  # it may do anything: the first run finds out
            import_callable(name)
            return
        try:
            with torch.device("meta"):
                get_model(name)
        except Exception:  # some read their weights while they are made
            get_model(name)

    def data_set(name: str, seed: int) -> None:
        request = grid_request(grid, name)
        recipe = recipe_of(grid, name)
        load_data(
            name,
            _folder(name, data_dirs),
            seed=seed,
            limit=recipe.limit,
            limit_test=recipe.limit_test,
            **data_options(request),
            batch_size=recipe.batch_size,
        )

    seeds = dict.fromkeys(run.seed for run in runs)
    every = dataclasses.replace(
        grid_request(grid, grid.data[0]), model=grid.models[0], budget="channels=1.0", out=grid.out
    )
    for seed in seeds:
        with noting(problems):
            job.check_request(dataclasses.replace(every, seed=seed))
    for name in dict.fromkeys(run.model for run in runs):
        with noting(problems):
            network(name)
    if not problems:  # of seeds, too
        for name in dict.fromkeys(run.data for run in runs):
            with noting(problems):
                data_set(name, next(iter(seeds)))
    if problems:
        raise ConfigError("nothing was run:\n" + "\n".join(f"  - {p}" for p in dict.fromkeys(problems)))


def _folder(data: str, data_dirs: Mapping[str, str]) -> str | None:
    """The folder of a data set."""
    return data_dirs.get(data, None if data == "digits" else data_dirs.get(""))


def _settings(grid: Grid, data_dirs: Mapping[str, str]) -> dict[str, Any]:
    """What settings.json is to hold: how all runs of the folder are made, those of other grids too. Runs of other
    settings must not be taken for this grid's; new networks, data sets, methods and seeds may come.

    Raises:
        ConfigError: the folder's runs were trained otherwise, or on other files.
    """
    from chipnet.lab.config import BEFORE
    from chipnet.lab.data.load import identity

    recipes = {d: dataclasses.asdict(recipe_of(grid, d)) for d in grid.data}
    folders = {d: f for d in grid.data if (f := identity(d, _folder(d, data_dirs))[1]) is not None}
    path = grid.out / SETTINGS
    try:
        was = json.loads(path.read_text()) if path.exists() else {"recipe": {}, "request": grid.request}
        before = {d: {**BEFORE, **recipe} for d, recipe in was["recipe"].items()}
        requests = [
            grid_request(dataclasses.replace(grid, request=r), grid.data[0])
            for r in (was["request"], grid.request)
        ]
        known = dict(was.get("data_dir", {}))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError) as error:
        raise ConfigError(
            f"cannot read {path}, which says how the runs there were made ({type(error).__name__}: {error}). "
            "Give another folder (out)."
        ) from error
    changed = [
        f"recipe.{k} of {d} was {before[d][k]!r}, is {v!r}"
        for d, recipe in recipes.items()
        for k, v in recipe.items()
        if d in before and before[d].get(k, v) != v
    ]
    then, now = map(dataclasses.asdict, requests)
    changed += [f"request.{k} was {then[k]!r}, is {now[k]!r}" for k in sorted(then) if then[k] != now[k]]
    changed += [
        f"the folder of {d} was {known[d]}, is {f}" for d, f in folders.items() if known.get(d, f) != f
    ]
    if changed:
        raise ConfigError(
            f"the runs in {grid.out} were made with other settings: {'; '.join(changed)}. "
            "Give another folder (out)."
        )
    return {"recipe": {**before, **recipes}, "request": dict(grid.request), "data_dir": {**known, **folders}}


def _one(
    grid: Grid,
    run: GridRun,
    data_dirs: Mapping[str, str],
    command: str,
    watcher: Watcher | None,
    stop: Callable[[], bool],
) -> str:
    """Run one, whose folder is claimed; how it went, as text."""
    from chipnet.lab import train

    folder = grid.out / run.folder
    (folder / ERROR).unlink(missing_ok=True)
    try:
        for needed in run.needs:
            if status(grid, needed) != "done":
                raise ConfigError(f"it needs the run {needed.folder}, which failed")
        request = request_of(grid, run, data_dirs, command)
        if run.method == DENSE:
            _write_dense_masks(request)
        job = train.prepare(request, resume=_goes_on(folder))
        if is_rival(run.method):
            _rivals(grid, run, job, watcher)
        else:
            train.run(job, watcher, stop)
    except Exception as error:  # a benchmark's finding, not its end
        said = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        write_json(folder / ERROR, said)
        return "failed: " + " ".join(said["error"].split())
    done = row(grid, run)
    return f"done: {done['final']:.2f} % in {done['seconds']:.0f} s"


def _rivals(grid: Grid, run: GridRun, job: Job, watcher: Watcher | None) -> None:
    """A rival's run; what is known without it is added to its result.

    Raises:
        LoadError: it left no result, or one that lacks something.
    """
    from chipnet.lab.outcome import facts

    path = grid.out / run.folder / RESULT
    import_callable(run.method)(job, watcher)
    try:
        result = json.loads(path.read_text())
        write_json(path, {**facts(job), "method": run.method, **result})
        if not math.isfinite(row(grid, run)["final"]):
            raise ValueError("its accuracy is not finite")
    except (OSError, ValueError, TypeError, LoadError) as error:
        if path.exists():
            path.replace(path.with_name(f"unreadable-{RESULT}"))
        raise LoadError(f"{path} is not what a rival leaves ({error}); see docs/bench.md") from error


def _goes_on(folder: Path) -> bool:
    """Is there a state of the run to go on from? One that cannot be read is set aside: the run begins anew."""
    try:
        return checkpoint.read(folder) is not None
    except LoadError:
        checkpoint.set_aside(folder)
        return False


def _write_dense_masks(request: Request) -> None:
    """Masks that keep everything, where the dense run will look for them."""
    import torch

    from chipnet import Masks
    from chipnet.lab.data import load_data
    from chipnet.lab.job import example_images, structure_for
    from chipnet.lab.models import get_model

    assert request.masks is not None
    data = load_data(request.data, request.data_dir, seed=request.seed)
    network = get_model(request.model, data.num_classes, data.in_channels)
    structure = structure_for(request, network, example_images(data))
    Masks.of(structure, torch.ones(structure.gates, dtype=torch.bool)).save(request.masks)
