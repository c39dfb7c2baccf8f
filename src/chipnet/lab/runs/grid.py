"""What a configuration asks for: networks, data, budgets, methods, seeds, and every run of that grid, in order.

Each run is one of `chipnet.lab.train`, in a folder of its own. For each network, data set and seed one *dense* run
comes first: all methods start from its weights, see the images in the same order and have the same epochs. An entry
of `methods` is

==========================  ===============================================================================
``chipnet:law=1``           a method, as `chipnet.Pruner` takes it
``scratch(chipnet)``        the masks of that method's run, trained from new weights for as many epochs in all
``transfer(chipnet, D)``    masks that the method learnt on the data set D, on the dense network of this one
``package.module:rival``    a function of somebody's own that does a whole run, as `chipnet.lab.train.run` does
==========================  ===============================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chipnet import Budget
from chipnet._util.imports import REFERENCE, import_callable
from chipnet._util.text import did_you_mean
from chipnet.errors import ChipNetError, ConfigError

if TYPE_CHECKING:
    from chipnet.lab.config import Recipe, Request

DENSE = "dense"

_LONGEST = 180
"""The longest name of a run folder, in bytes; file systems take 255, with what is written beside it."""
FIXED = (
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
class GridRun:
    """One cell of the grid. ``source``: the run whose masks it is given."""

    model: str
    data: str
    budget: str
    method: str
    seed: int
    source: GridRun | None = None

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
    def dense(self) -> GridRun:
        """The run that trains its dense network."""
        return GridRun(self.model, self.data, "", DENSE, self.seed)

    @property
    def anew(self) -> bool:
        """Does it begin with new weights?"""
        return self.method == DENSE or masks_from(self.method) == "scratch"

    @property
    def needs(self) -> tuple[GridRun, ...]:
        """The runs that come before it: their results are its input."""
        found = (self.dense if self.method != DENSE else None, self.source)
        return tuple(run for run in found if run is not None)


def read_grid(path: str | Path, out: str | Path | None = None) -> Grid:
    """Read and check a configuration; ``out`` is another folder than its own.

    Raises:
        ConfigError: all that is wrong: keys that do not exist, with the one that was probably meant; values of
            another kind; methods and budgets that cannot be read.
    """
    from chipnet.lab.config_file import read_config

    path = Path(path)
    found = read_config(path)
    return grid_from(found | ({"out": out} if out else {}), str(path), Path("runs") / path.stem)


def grid_from(found: Mapping[str, Any], name: str, out: str | Path) -> Grid:
    """A grid from plain values; ``name`` is what errors call them, ``out`` the folder where none is given.

    Raises:
        ConfigError: see `read_grid`.
    """
    problems: list[str] = []
    grid = _values(found, out, problems)
    # Written in one way, so that what is the same has the same folder, and what is not has another.
    budgets: list[str] = []
    methods: list[str] = []
    for budget in grid.budgets:
        with noting(problems):
            budgets.append(str(Budget.parse(budget)))
    for method in grid.methods:
        with noting(problems):
            methods.append(_method(method, grid.data).text)
    for data in grid.data or ("digits",):
        with noting(problems):
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
    _check_folders(runs, name)
    return grid


def _values(found: Mapping[str, Any], out: str | Path, problems: list[str]) -> Grid:
    """The values as they stand, where they are of the right types; what is wrong with the others is noted."""
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
        f"request.{k} is what the grid decides; leave it out" for k in parts["request"] if k in FIXED
    ]
    where = found.get("out") or out
    if not isinstance(where, (str, os.PathLike)):
        problems.append(f"out must be the name of a folder, not {where!r}")
        where = out
    return Grid(**axes, **parts, out=Path(where).expanduser(), about=str(found.get("about", "")).strip())


def _check_folders(runs: Sequence[GridRun], name: str) -> None:
    folders: dict[str, GridRun] = {}
    for run in runs:
        if (other := folders.setdefault(run.folder.lower(), run)) != run:
            raise ConfigError(
                f"cannot use {name}: two runs have the folder {run.folder!r}: {other.model}, {other.data} and "
                f"{run.model}, {run.data}. Rename one."
            )


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
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


def masks_from(method: str) -> str:
    """``"scratch"`` or ``"transfer"`` for a method whose masks another run decides on; empty for others.

    Example:
        >>> masks_from("scratch(chipnet)"), masks_from("chipnet")
        ('scratch', '')
    """
    match = _CALL.fullmatch(method)
    return match[1] if match else ""


@cache
def is_rival(text: str) -> bool:
    """Is this ``module:function`` of a whole run, and not a method?

    Raises:
        ConfigError: it looks like one, and there is nothing of that name, or a class that is no method.
    """
    from chipnet.methods import METHODS, Method

    if REFERENCE.fullmatch(text) is None or text.partition(":")[0] in METHODS:
        return False
    found = import_callable(text)
    if not isinstance(found, type):
        return True
    if not issubclass(found, Method):
        raise ConfigError(f"{text} is a class, and no method: extend chipnet.methods.Method or Gradual")
    return False


def grid_request(grid: Grid, data: str) -> Request:
    """What all runs on a data set have in common."""
    from chipnet.lab.layers import request_from

    options = {k: v for k, v in grid.request.items() if k not in FIXED}
    return request_from({**options, "data": data, "recipe": grid.recipe}, source="the request and the recipe")


def recipe_of(grid: Grid, data: str) -> Recipe:
    """How a data set is trained in this grid."""
    recipe = grid_request(grid, data).recipe
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


def runs_of(grid: Grid) -> list[GridRun]:
    """Every run, in an order in which each comes after those that it needs. Seeds are the outermost loop: after the
    first, all of the grid has been seen once."""
    found: dict[GridRun, None] = {}

    def add(run: GridRun) -> None:
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
                        run = GridRun(model, data, budget, text, seed)
                        learnt = GridRun(model, source or data, budget, method, seed)
                        add(run if kind in ("prune", "rival") else dataclasses.replace(run, source=learnt))
    return list(found)
