"""`chipnet prune` to several budgets in one command: one run each, one dense training.

separate    dense ──> 0.5        nested      dense ──> 0.5 ──> 0.25 ──> 0.125
            dense ──> 0.25       (each arrow is a run; a later one has half of the epochs)
            dense ──> 0.125
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from chipnet.errors import BudgetError, ConfigError, Problems
from chipnet.lab import config
from chipnet.lab.cli import runs
from chipnet.lab.cli.console import Console
from chipnet.lab.cli.errors import failures, first, refusals, stop_signals
from chipnet.lab.cli.show import Bars, said
from chipnet.lab.config_file import read_config
from chipnet.lab.layers import plain, request_from
from chipnet.lab.runs.record import DENSE, SHRINK, finished

if TYPE_CHECKING:
    from chipnet.lab.job import Job


def several(spec: Any) -> dict[str, str]:
    """Budgets of a text in which one kind has several values: value -> budget. Empty where none has.

    Raises:
        BudgetError: several kinds have several values, or a value is given twice.

    >>> several("macs=0.5,0.25, params=2M")
    {'0.5': 'macs=0.5,params=2M', '0.25': 'macs=0.25,params=2M'}
    >>> several(["macs=0.5", "params=2M"])
    {}
    """
    if not isinstance(spec, str) and not (
        isinstance(spec, (list, tuple)) and all(isinstance(text, str) for text in spec)
    ):
        return {}
    text = spec if isinstance(spec, str) else ",".join(spec)
    values: dict[str, list[str]] = {}
    kind = ""
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        kind = name.strip() if equals else kind
        values.setdefault(kind, []).append((value if equals else part).strip())
    repeated = [kind for kind, listed in values.items() if kind and len(listed) > 1]
    if not repeated or "" in values:
        return {}  # of a value without a kind, `Budget.parse` tells
    if len(repeated) > 1:
        raise BudgetError(
            f"several values of {' and of '.join(repeated)}: one kind can have several, for one run each; the "
            "others hold for all of these."
        )
    found = values[repeated[0]]
    if len(set(found)) < len(found):
        raise BudgetError(f"{repeated[0]}={','.join(found)} has a value twice; keep one")
    others = [f"{kind}={listed[0]}" for kind, listed in values.items() if kind != repeated[0]]
    return {value: ",".join([f"{repeated[0]}={value}", *others]) for value in found}


def sweep(
    console: Console,
    request: config.Request,
    budgets: Mapping[str, str],
    problems: Problems,
    flags: Mapping[str, str],
    nested: bool = False,
) -> None:
    """One run for each of ``budgets`` (name of its folder -> budget), in folders below the request's. Where they
    are ``nested``, each prunes the network of the next larger one."""
    with said(console), refusals(flags):
        job, requests = _requests(request, budgets, problems)
        if nested and not request.no_train:  # without training they always are
            requests = _nested(job, requests)
    results = (
        _family(console, job, requests, flags) if request.no_train else _one_by_one(console, requests, flags)
    )
    console.print(table({name: results[name] for name in budgets}))
    folders = [Path(r.out) for r in requests.values()]
    if page := runs.report_after(*folders):
        console.tell(f"Runs in {request.out}: {', '.join(budgets)}. Side by side: {page}")


def _family(
    console: Console, job: Job, requests: Mapping[str, config.Request], flags: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Runs without training: all from one measurement, each network within the next larger one."""
    from chipnet.lab.shrinking import family, run_untrained

    with said(console), refusals(flags):
        done = {name: _finished(Path(one.out), one) for name, one in requests.items()}
        if all(done.values()):
            return {name: result for name, result in done.items() if result is not None}
        jobs = family(job, list(requests.values()))
    with said(console), failures(), stop_signals() as stop, Bars(console) as bars:
        found = {one.out: result for one, result in zip(jobs, run_untrained(jobs, bars, stop), strict=True)}
    for folder in found:
        runs.report_after(folder)
    return {name: found[Path(one.out)] for name, one in requests.items()}


def _one_by_one(
    console: Console, requests: Mapping[str, config.Request], flags: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The first trains the dense network, unless there are weights; the others begin with what it has trained. The
    same command again goes on where it stopped."""
    from chipnet.lab import train

    results = {}
    for number, (name, request) in enumerate(requests.items(), 1):
        folder = Path(request.out)
        console.tell(f"{number}/{len(requests)}: budget {request.budget}, into {folder}")
        with said(console), refusals(flags):
            done = _finished(folder, request)
            if done is None:
                goes_on = not request.overwrite and (folder / config.CONFIG).is_file()
                job = train.prepare(request, resume=goes_on)
        if done is None:
            more = ". For the other budgets: the same command again"
            with said(console), failures(more), stop_signals() as stop, Bars(console) as bars:
                done = train.run(job, bars, stop)
            if first():
                runs.report_after(folder)
        results[name] = done
    return results


def _requests(
    request: config.Request, budgets: Mapping[str, str], problems: Problems
) -> tuple[Job, dict[str, config.Request]]:
    """The first run, read and checked, and the request of every run by name. Every budget can be reached."""
    from chipnet import Budget
    from chipnet.lab.devices import torchruns
    from chipnet.lab.job import read_job

    if request.devices != 1 or request.num_nodes != 1 or torchruns() > 1:
        problems.add("several in one command are for one process: give one, or --devices 1.", "budget")
    if request.masks is not None:
        problems.add("with --masks nothing is pruned: give one budget.", "budget")
    out = Path(os.path.expanduser(request.out))
    folders = {name: out / name for name in budgets}
    for text in budgets.values():
        with problems.collected("budget"):
            Budget.parse(text)
    name, text = next(iter(budgets.items()))
    # Folders of runs that are done or stopped are looked at one by one, later.
    job = read_job(
        dataclasses.replace(request, budget=text, out=folders[name] if request.out else ""),
        resume=not request.overwrite,
        problems=problems,
    )
    for text in budgets.values():
        budget = Budget.parse(text)
        if "latency" in budget.kinds:
            job.structure.time(job.network)
        with problems.collected("budget"):
            job.structure.check(job.start.budget(budget, job.structure) if job.start else budget)
    problems.tell()
    weights = job.request.weights
    if weights is None and job.start is None and not request.no_train:
        weights = str(folders[name] / DENSE)
    requests = {
        n: dataclasses.replace(job.request, budget=budgets[n], out=folders[n], weights=weights)
        for n in budgets
    }
    requests[name] = dataclasses.replace(requests[name], weights=job.request.weights)
    return job, requests


def _nested(job: Job, requests: Mapping[str, config.Request]) -> dict[str, config.Request]:
    """The requests from the largest network to the smallest; each but the first prunes the network of the one
    before it, which is trained already, in half of the epochs."""
    from chipnet import Budget
    from chipnet.lab.shrinking import size_of

    names = sorted(requests, key=lambda name: -size_of(job.structure, Budget.parse(requests[name].budget)))
    shorter = {name: math.ceil(getattr(job.recipe, name) / 2) for name in ("prune", "finetune")}
    # The largest trains the dense network, unless weights are given.
    ordered = {names[0]: dataclasses.replace(requests[names[0]], weights=job.request.weights)}
    for wide, thin in itertools.pairwise(names):
        ordered[thin] = dataclasses.replace(
            requests[thin],
            model=str(Path(ordered[wide].out).resolve()),
            weights=None,
            trust=True,  # of the runs that this command makes
            recipe=job.recipe.changed(shorter),
        )
    return ordered


def _finished(folder: Path, request: config.Request) -> dict[str, Any] | None:
    """What the finished run in ``folder`` came to, if there is one.

    Raises:
        ConfigError: the run there is of another request.
    """
    path = folder / config.CONFIG
    if request.overwrite or not path.is_file():
        return None
    there = plain(request_from(read_config(path), source=str(path)))
    here = plain(request)
    other = [name for name in here if here[name] != there.get(name) and name not in ("out", "recipe")]
    other += [
        f"recipe.{n}" for n, v in here["recipe"].items() if v != there["recipe"].get(n) and n != "train"
    ]
    if other:
        raise ConfigError(
            f"{folder} holds a run with other options ({', '.join(other)}). Give another --out, or --overwrite."
        )
    return finished(folder)


def table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """The runs of a sweep below each other, under the dense network."""
    from chipnet.lab.runs.folder import percent

    any_result = next(iter(results.values()))
    title = f"{any_result['model']} on {any_result['data']}, {any_result['method']}"
    rows = Table("budget", title=title, title_justify="left")
    refitted = ["as cut", "refitted"] if SHRINK in any_result else ["accuracy"]
    for name in (*refitted, "params", "MACs", "volume", "channels"):
        rows.add_column(name, justify="right")
    dense = any_result["dense"]
    for name, values in {"dense": dense, **{n: r["compact"] for n, r in results.items()}}.items():
        parts = (
            f"{100 * values[k] / max(dense[k], 1):.2f} %" for k in ("params", "macs", "volume", "channels")
        )
        cut = [results[name]["hard"]["accuracy"] if name in results else None] * (len(refitted) - 1)
        rows.add_row(name, *map(percent, [*cut, values["accuracy"]]), *parts)
    return rows
