"""`chipnet bench CONFIG.yaml`: a grid of runs (networks, data, budgets, methods, seeds), resumed where it stopped.

Every run is one of `chipnet.lab.train`, in a folder of its own; what is done is what has a result there. For each
network, data set and seed one *dense* run comes first: all methods start from its weights, see the images in the
same order and have the same epochs. An entry of `methods` is

==========================  ===============================================================================
``chipnet:floor=0``         a method, as `chipnet.Pruner` takes it
``scratch(chipnet)``        the masks of that method's run, trained from new weights for as many epochs in all
``transfer(chipnet, D)``    masks that the method learnt on the data set D, on the dense network of this one
``package.module:rival``    a function of somebody's own that does a whole run, as `chipnet.lab.train.run` does
==========================  ===============================================================================

A dense run is a transfer of masks that keep everything, and ``scratch`` one of a run's own: there is one loop.

Failures of a run are results too: they are written down and the grid goes on. `results.csv` has a row a run and is
written anew after each; tables and plots are made from it by `chipnet.lab.runs.tables`.

Any number of processes may work on one grid: a run belongs to the process that holds the lock of its folder, and
the system takes that back when the process ends, however it ends.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chipnet._util.files import write_atomically, write_json
from chipnet._util.imports import REFERENCE, import_callable
from chipnet._util.lock import claimed
from chipnet._util.text import did_you_mean
from chipnet.analysis.kinds import KINDS, LATENCY
from chipnet.budget.budget import Budget
from chipnet.budget.landing import Landing
from chipnet.errors import ChipNetError, ConfigError, LoadError
from chipnet.lab import checkpoint
from chipnet.lab.runs.record import MASKS, MODEL, RESULT, read_json, read_metrics

if TYPE_CHECKING:
    from chipnet.lab.config import Recipe, Request
    from chipnet.lab.job import Job
    from chipnet.lab.train import Watcher

RESULTS, ERROR, SETTINGS = "results.csv", "error.json", "settings.json"
RECOVERY = (0, 1, 2, 5, 10)
"""Epochs of fine-tuning after which the accuracy is reported."""
DENSE = "dense"

_LONGEST = 180
"""Of a run folder's name, in bytes; file systems take 255, with what is written beside it."""
_FIXED = (
    "model", "data", "budget", "method", "seed", "out", "weights", "masks", "data_dir", "overwrite",
    "recipe", "quick",
)  # fmt: skip
"""Options of a run that the grid decides."""
_CALL = re.compile(r"(scratch|transfer)\(\s*([^,()]+(?:,[^()]*)?)\s*\)")


@dataclass(frozen=True)
class Grid:
    """What a configuration asks for.

    Attributes:
        models, data, budgets, methods, seeds: the axes; every combination is a run.
        recipe: changes to each data set's default recipe, by field of `chipnet.lab.train.Recipe`.
        request: other options of every run, by field of `chipnet.lab.train.Request`.
        out: folder of all runs.
        about: what the grid is for.
    """

    models: tuple[str, ...]
    data: tuple[str, ...]
    budgets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: Mapping[str, Any]
    request: Mapping[str, Any]
    out: Path
    about: str = ""


@dataclass(frozen=True)
class Run:
    """One cell of the grid. ``source``: the run whose masks it is given."""

    model: str
    data: str
    budget: str
    method: str
    seed: int
    source: Run | None = None

    @property
    def folder(self) -> str:
        """Name of its folder, the same for the same run in every grid of one folder."""
        parts = (self.model, self.data, self.budget, self.method, f"seed{self.seed}")
        name = "_".join(re.sub(r"[^\w=.,-]+", "-", p).strip("-") for p in parts if p)
        if len(name.encode()) <= _LONGEST:
            return name
        number = hashlib.sha256(name.encode()).hexdigest()[:12]
        return f"{name.encode()[:_LONGEST].decode(errors='ignore')}-{number}"

    @property
    def dense(self) -> Run:
        """The run that trains its dense network."""
        return Run(self.model, self.data, "", DENSE, self.seed)

    @property
    def anew(self) -> bool:
        """Does it begin with new weights?"""
        return self.method == DENSE or self.method.startswith("scratch(")

    @property
    def needs(self) -> tuple[Run, ...]:
        """The runs that come before it: their results are its input."""
        found = (self.dense if self.method != DENSE else None, self.source)
        return tuple(run for run in found if run is not None)


# -- reading ----------------------------------------------------------------------------------------------


def read_grid(path: str | Path, out: str | Path | None = None) -> Grid:
    """Read and check a configuration; ``out`` is another folder than its own.

    Raises:
        ConfigError: all that is wrong: keys that do not exist, with the one that was probably meant; values of
            another kind; methods and budgets that cannot be read.
    """
    from chipnet.lab.config import read_config

    path = Path(path)
    found = read_config(path)
    return grid_from(found | ({"out": out} if out else {}), str(path), Path("runs") / path.stem)


def grid_from(found: Mapping[str, Any], name: str, out: str | Path) -> Grid:
    """A grid from plain values; ``name`` is what errors call them, ``out`` the folder where none is given.

    Raises:
        ConfigError: see `read_grid`.
    """
    problems: list[str] = []
    axes: dict[str, Any] = {}
    known = [f.name for f in dataclasses.fields(Grid)]
    for key in (str(k) for k in found if k not in known):
        meant = did_you_mean(key, known, 0.5) or f"known: {', '.join(known)}"
        problems.append(f"there is no key '{key}'; {meant}")
    for axis, kind in (("models", str), ("data", str), ("budgets", str), ("methods", str), ("seeds", int)):
        values = found.get(axis, [0] if axis == "seeds" else None)
        values = [values] if isinstance(values, (str, int)) else values
        if not isinstance(values, list) or not values or not all(type(v) is kind for v in values):
            what = "whole numbers" if kind is int else "texts"
            problems.append(f"{axis} must be a list of {what}, not {found.get(axis)!r}")
            values = []
        if len(set(values)) < len(values):
            problems.append(f"{axis} names something twice: {values}")
        axes[axis] = tuple(values)
    parts: dict[str, Any] = {"recipe": found.get("recipe") or {}, "request": found.get("request") or {}}
    problems += [f"{k} must be a mapping, not {v!r}" for k, v in parts.items() if not isinstance(v, Mapping)]
    parts = {k: v if isinstance(v, Mapping) else {} for k, v in parts.items()}
    problems += [
        f"request.{k} is what the grid decides; leave it out" for k in parts["request"] if k in _FIXED
    ]
    where = found.get("out") or out
    if not isinstance(where, (str, os.PathLike)):
        problems.append(f"out must be the name of a folder, not {where!r}")
        where = out
    grid = Grid(**axes, **parts, out=Path(where).expanduser(), about=str(found.get("about", "")).strip())

    # Written in one way, so that what is the same has the same folder, and what is not has another.
    budgets: list[str] = []
    methods: list[str] = []
    for budget in grid.budgets:
        with _noting(problems):
            budgets.append(str(Budget.parse(budget)))
    for method in grid.methods:
        with _noting(problems):
            methods.append(_method(method, grid.data).text)
    for data in grid.data or ("digits",):
        with _noting(problems):
            if recipe_of(grid, data).train < 1:
                raise ConfigError(
                    "recipe.train must be at least 1: methods start from a dense network that is trained first"
                )
    for axis, read, given in (("budgets", budgets, grid.budgets), ("methods", methods, grid.methods)):
        same = [t for t in dict.fromkeys(read) if read.count(t) > 1]
        if same and len(set(given)) == len(given):
            problems.append(f"{axis} has {' and '.join(same)} twice, written in two ways: {list(given)}")
    problems = list(dict.fromkeys(problems))  # what is wrong for all data sets is said once
    if problems:
        raise ConfigError(f"cannot use {name}:\n" + "\n".join(f"  - {p}" for p in problems))
    grid = dataclasses.replace(grid, budgets=tuple(budgets), methods=tuple(methods))
    runs = runs_of(grid)
    if not any(run.method != DENSE for run in runs):
        raise ConfigError(
            f"cannot use {name}: it has no run; a transfer needs a second data set to carry masks to"
        )
    folders: dict[str, Run] = {}
    for run in runs:
        if (other := folders.setdefault(run.folder.lower(), run)) != run:
            raise ConfigError(
                f"cannot use {name}: two runs have the folder {run.folder!r}: {other.model}, {other.data} and "
                f"{run.model}, {run.data}. Rename one."
            )
    return grid


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """What is refused while the block lasts is a problem; of a list of reasons each is."""
    try:
        yield
    except ChipNetError as error:
        lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
        problems += lines[1:] if lines[0].endswith(":") and len(lines) > 1 else [" ".join(lines)]


class _Method(NamedTuple):
    """An entry of ``methods``: its kind (prune, scratch, transfer or rival), itself, written in one way, the method
    that decides on masks, and the data set that it does so on, if that is another."""

    kind: str
    text: str
    method: str
    source: str = ""


def _method(text: str, data: Sequence[str]) -> _Method:
    """Read an entry of ``methods``.

    Raises:
        ConfigError: it cannot be read, or what it names does not exist.
    """
    from chipnet.methods import method_text

    text = text.strip()
    match = _CALL.fullmatch(text)
    if match is None and is_rival(text):
        return _Method("rival", text, text)
    if match is None:
        text = method_text(text)
        return _Method("prune", text, text)
    kind, inside = match.groups()
    method, source = inside.strip(), ""
    if kind == "transfer":
        method, comma, source = (part.strip() for part in inside.rpartition(","))
        if not comma or not method or not source:
            raise ConfigError(
                f"{text!r}: write transfer(METHOD, DATA), with the data that masks are learnt on"
            )
        if source not in data:
            raise ConfigError(f"{text!r}: {source!r} must be one of data: {', '.join(data)}")
    if is_rival(method):
        raise ConfigError(f"{text!r}: {method} leaves no masks; give a method, such as {kind}(chipnet)")
    method = method_text(method)
    return _Method(kind, f"{kind}({method}, {source})" if source else f"{kind}({method})", method, source)


@cache
def is_rival(text: str) -> bool:
    """Is this ``module:function`` of a whole run, and not a method?

    Raises:
        ConfigError: it looks like one, and there is nothing of that name, or a class that is no method.
    """
    from chipnet.methods import METHODS, is_method

    if REFERENCE.fullmatch(text) is None or text.partition(":")[0] in METHODS:
        return False
    found = import_callable(text)
    if isinstance(found, type) and not is_method(found):
        raise ConfigError(f"{text} is a class, and no method: extend chipnet.methods.Method or Gradual")
    return not is_method(found)


def _asked(grid: Grid, data: str) -> Request:
    """What all runs on a data set have in common."""
    from chipnet.lab.config import request_from

    options = {k: v for k, v in grid.request.items() if k not in _FIXED}
    return request_from({**options, "data": data, "recipe": grid.recipe}, source="the request and the recipe")


def recipe_of(grid: Grid, data: str) -> Recipe:
    """How a data set is trained in this grid."""
    recipe = _asked(grid, data).recipe
    assert recipe is not None
    return dataclasses.replace(recipe)  # as it is: nothing of it is fitted to the data, so that runs compare


def smoke(grid: Grid) -> Grid:
    """The same grid, as short as can be: does everything in it run? First seed, first budget, one epoch a phase."""
    short = {"train": 1, "prune": 1, "finetune": 1, "batch_size": 16, "limit": 64, "limit_test": 64}
    return dataclasses.replace(
        grid,
        budgets=grid.budgets[:1],
        seeds=grid.seeds[:1],
        recipe={**grid.recipe, **short},
        out=grid.out.with_name(grid.out.name + "-smoke"),
    )


def data_dir(text: str, data: Sequence[str]) -> tuple[str, str]:
    """(data set, folder) of ``NAME=DIR``, or ("", DIR) for all data sets.

    Raises:
        ConfigError: the name is none of the grid's.

    Examples:
        >>> data_dir("svhn=/data/svhn", ["svhn", "cifar10"]), data_dir("/data", ["svhn"])
        (('svhn', '/data/svhn'), ('', '/data'))
    """
    name, equals, folder = text.partition("=")
    if not equals or "/" in name:
        return "", text
    if name not in data:
        raise ConfigError(f"--data-dir {text}: {name!r} is none of the data sets: {', '.join(data)}")
    return name, folder


# -- the runs ---------------------------------------------------------------------------------------------


def runs_of(grid: Grid) -> list[Run]:
    """Every run, in an order in which each comes after those that it needs. Seeds are the outermost loop: after the
    first, all of the grid has been seen once."""
    found: dict[Run, None] = {}

    def add(run: Run) -> None:
        for needed in reversed(run.needs):
            add(needed)
        found.setdefault(run)

    entries = [_method(text, grid.data) for text in grid.methods]
    for seed in grid.seeds:
        for model in grid.models:
            for data in grid.data:
                for budget in grid.budgets:
                    for kind, text, method, source in entries:
                        if source == data:
                            continue  # nothing to carry: the method's own run on this data set is that
                        run = Run(model, data, budget, text, seed)
                        learnt = Run(model, source or data, budget, method, seed)
                        add(run if kind in ("prune", "rival") else dataclasses.replace(run, source=learnt))
    return list(found)


def request_of(grid: Grid, run: Run, data_dirs: Mapping[str, str], command: str) -> Request:
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
        _asked(grid, run.data),
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


def status(grid: Grid, run: Run) -> str:
    """``done``, ``failed`` or ``open``."""
    folder = grid.out / run.folder
    return "done" if (folder / RESULT).exists() else "failed" if (folder / ERROR).exists() else "open"


def bench(
    grid: Grid,
    data_dirs: Mapping[str, str],
    *,
    command: str = "",
    retry: bool = False,
    watcher: Watcher | None = None,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[int, int, Run, str], None] = lambda number, total, run, text: None,
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

    def finished(run: Run) -> str:
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
                raise Interrupted(f"stopped: {len(todo)} of {total} runs are not finished")
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
                            f"stopped in {run.folder}; {len(todo)} of {total} runs are not finished. The same "
                            "command goes on, from the middle of this run too."
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
    from chipnet.lab.config import data_options
    from chipnet.lab.data import load_data
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
        request = _asked(grid, name)
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
    asked = dataclasses.replace(
        _asked(grid, grid.data[0]), model=grid.models[0], budget="channels=1.0", out=grid.out
    )
    for seed in seeds:
        with _noting(problems):
            job.check(dataclasses.replace(asked, seed=seed))
    for name in dict.fromkeys(run.model for run in runs):
        with _noting(problems):
            network(name)
    if not problems:  # of seeds, too
        for name in dict.fromkeys(run.data for run in runs):
            with _noting(problems):
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
            _asked(dataclasses.replace(grid, request=r), grid.data[0]) for r in (was["request"], grid.request)
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
    run: Run,
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
            _whole(request)
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


def _rivals(grid: Grid, run: Run, job: Job, watcher: Watcher | None) -> None:
    """A rival's run; what is known without it is added to its result.

    Raises:
        LoadError: it left no result, or one that lacks something.
    """
    from chipnet.lab import train

    path = grid.out / run.folder / RESULT
    import_callable(run.method)(job, watcher)
    try:
        result = json.loads(path.read_text())
        write_json(path, {**train.facts(job), "method": run.method, **result})
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


def _whole(request: Request) -> None:
    """Masks that keep everything, where the dense run will look for them."""
    import torch

    from chipnet import Masks, Structure
    from chipnet.lab.data import load_data
    from chipnet.lab.job import example_images
    from chipnet.lab.models import get_model

    assert request.masks is not None
    data = load_data(request.data, request.data_dir, seed=request.seed)
    structure = Structure(
        get_model(request.model, data.num_classes, data.in_channels),
        example_images(data),
        realisation=request.realisation,
        ignore=request.ignore,
        only=request.only,
        outputs=request.outputs,
        min_channels=request.min_channels,
        round_to=request.round_to,
    )
    Masks.of(structure, torch.ones(structure.gates, dtype=torch.bool)).save(request.masks)


# -- results ----------------------------------------------------------------------------------------------

COLUMNS = (
    "model", "data", "budget", "method", "seed", "status", "dense", "soft", "hard", "final",
    *KINDS, LATENCY, "above", *(f"after_{n}" for n in RECOVERY), "epochs", "seconds", "folder", "error",
)  # fmt: skip
"""Of results.csv: accuracies in percent on the test images (`hard` as cut, `final` after fine-tuning), what remains
of each cost as a fraction (of time, as measured, where that is the budget), the kinds in which it is more than the
budget (masks of another data set may be), validation accuracies after so many epochs of fine-tuning."""


def write_results(grid: Grid) -> list[dict[str, Any]]:
    """Write results.csv anew from the run folders; returns its rows. Runs that are still open have none."""
    rows = []
    for run in runs_of(grid):
        try:
            rows.append(row(grid, run))
        except FileNotFoundError:
            if status(grid, run) != "open":  # or is open again: another process took it for a retry just now
                raise
        except LoadError:
            if not is_rival(run.method):  # of a rival's another process has not judged yet
                raise
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    write_atomically(grid.out / RESULTS, text.getvalue().encode())
    return rows


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a results.csv, numbers as numbers."""
    texts = {"model", "data", "budget", "method", "status", "above", "folder", "error"}
    with open(path, newline="") as file:
        return [
            {k: v if k in texts or v == "" else int(v) if k == "seed" else float(v) for k, v in r.items()}
            for r in csv.DictReader(file)
        ]


def row(grid: Grid, run: Run) -> dict[str, Any]:
    """One row of results.csv, from the run's folder."""
    folder = grid.out / run.folder
    values: dict[str, Any] = {c: "" for c in COLUMNS}
    values |= {k: getattr(run, k) for k in ("model", "data", "budget", "method", "seed", "folder")}
    values["status"] = status(grid, run)
    if values["status"] == "failed":
        said = read_json(folder / ERROR, "Try the run again: --retry.").get("error")
        values["error"] = " ".join(str(said).split())
        return values
    try:
        result = json.loads((folder / RESULT).read_text())
        for name, part in (("dense", "dense"), ("soft", "soft"), ("hard", "hard"), ("final", "compact")):
            values[name] = "" if (known := result[part]["accuracy"]) is None else float(known)
        values |= {k: result["compact"][k] / max(result["dense"][k], 1) for k in KINDS}
        values["seconds"] = float(result["seconds"]["total"])
        limits = Budget.parse(run.budget).limits({**result["dense"], LATENCY: 0}) if run.budget else {}
        values["above"] = " ".join(k for k in KINDS if result["compact"][k] > limits.get(k, math.inf))
        values[LATENCY] = Landing(**landed).left if (landed := result.get(LATENCY)) is not None else ""
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise LoadError(
            f"{folder / RESULT} is damaged ({said}); remove it, and the run is done anew"
        ) from error
    if run.anew:
        values |= {"dense": "", "soft": "", "hard": ""}
    rows = read_metrics(folder)
    tuned = {int(r["epoch"]): r for r in rows if r["phase"] == "finetune"}
    for epoch in RECOVERY:
        if epoch in tuned:
            values[f"after_{epoch}"] = float(tuned[epoch]["validation_accuracy"])
    values["epochs"] = sum(1 for r in rows if int(r["epoch"]) > 0)
    return values
