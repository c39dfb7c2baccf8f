"""`chipnet transfer`: masks of one run on another network of the same architecture, trained there.

The data set, its number of classes and its input channels may differ; sites may not. Nothing is pruned: the compact
network that the masks leave is trained for all the epochs of the recipe, which is the effort that learning masks
on the target takes. It starts from new weights, or from dense ones of the target. With the data of the run itself,
its recipe and new weights this is the usual control: *the same architecture trained from scratch*.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chipnet import Budget, Masks
from chipnet.errors import BudgetError, ConfigError, LoadError
from chipnet.lab.config import BEFORE, CONFIG, Recipe, Request, recipe_for
from chipnet.lab.config_file import read_config
from chipnet.lab.layers import data_options, request_from
from chipnet.lab.runs.folder import refuse_code
from chipnet.lab.runs.record import MASKS, described, finished

if TYPE_CHECKING:
    from chipnet.lab.job import Job


def request_for(
    source: str,
    data: str,
    *,
    model: str | None = None,
    budget: Sequence[str] | None = None,
    trust: bool = False,
    **options: Any,
) -> Request:
    """The request of a transfer. What is not given is as in the run that the masks come from.

    Args:
        source: a run folder, or a file of masks.
        data: the data set to train on.
        model: the architecture; needed where ``source`` is a file.
        budget: as for a run; only compared with, since masks are given. By default the run's own.
        trust: whether the run may name code (``module:callable``) as its network.
        options: other fields of `chipnet.lab.train.Request`; None is the default.

    Raises:
        ConfigError, LoadError: the source cannot be used, or names code and is not trusted.
    """
    path = Path(os.path.expanduser(source))
    result: dict[str, Any] = {}
    if os.path.isdir(path):  # of a name that cannot be, Masks.load tells
        run, result = path, _result(path)
        path = described(run, result, MASKS)
        if model is None and "model" in result:
            model = result["model"]
            if not trust:
                refuse_code(model, "network", run)
    masks = Masks.load(path)
    if model is None:
        raise ConfigError(f"{path} does not say how to build the network. Give --model.")
    given = {k: v for k, v in options.items() if v is not None}
    # A hand-made mask has no budget of its own; every network is within all of its channels.
    target = list(budget or ()) or masks.budget or "channels=1.0"
    defaults = {"realisation": masks.realisation, "method": result.get("method", "chipnet")}
    return Request(model=model, data=data, budget=target, masks=str(path), **{**defaults, **given})


def recipe_like(
    source: str, data: str, data_dir: str | None = None, quick: bool = False
) -> tuple[Recipe, dict[str, Any], str]:
    """How to train where nothing else is said, how images are read, and whose recipe that is, for people.

    The run's own recipe where ``source`` is a run folder and ``data`` the run's own data set: a control has the
    effort of what it is compared with. Else the data set's.

    Args:
        source, data, data_dir: as for `request_for`.
        quick: the short one of the data set, in any case.

    Raises:
        ConfigError, LoadError: the run's files cannot be read.
    """
    run = Path(os.path.expanduser(source))
    config = run / CONFIG
    if not quick and os.path.isfile(config):
        from chipnet.lab.data.load import identity

        values = read_config(config)
        folder = values.get("data_dir")
        if not str(folder).startswith("~"):  # of a relative one, result.json knows where that was
            folder = _result(run).get("input", {}).get("data_dir", folder)
        if identity(str(values.get("data", Request.data)), folder) == identity(data, data_dir):
            trained = not values.get("no_train")  # or else it has no recipe to train by
            values["recipe"] = (BEFORE if trained else {}) | dict(values.get("recipe") or {})
            own = request_from(values, source=str(config))
            assert own.recipe is not None
            return (
                own.recipe,
                data_options(own),
                "the run's own recipe" if trained else f"the recipe of {data}",
            )
    return recipe_for(data, quick), {}, f"the {'quick ' if quick else ''}recipe of {data}"


def prepare_transfer(request: Request, strict: bool) -> Job:
    """`chipnet.lab.train.prepare`, and the budget checked on the target.

    Args:
        strict: refuse masks that cost more than the budget. (The same masks are another fraction of a network
            with another output layer: a run's budget, missed by a little, is not asked for here by anybody.)

    Raises:
        PlanError: the masks do not fit, with all reasons.
        BudgetError: ``strict``, and they cost too much.
    """
    from chipnet.lab import job as jobs

    job = jobs.read_job(request)
    assert job.mask is not None
    cost, dense, limits = job.structure.cost.exact(job.mask), job.dense, job.structure.limits(job.budget)
    above = [
        f"{k}: {cost[k]:,} ({cost[k] / dense[k]:.2%} of {dense[k]:,}), asked {limit:,}"
        for k, limit in limits.items()
        if cost[k] > limit
    ]
    if strict and above:
        raise BudgetError(
            f"on {request.data} the masks cost more than the budget: {'; '.join(above)}. Ask for more, or learn "
            f"masks with a smaller budget. Without --budget they are taken as they are."
        )
    jobs.make_folder(job.out)
    return job


def _result(run: Path) -> dict[str, Any]:
    if not (run / MASKS).exists():
        raise LoadError(
            f"{run} holds no {MASKS}: give a finished run of `chipnet prune`, or a file of masks."
        )
    return finished(run) or {}  # none, where it was stopped while fine-tuning: the masks are final


def reached(job: Job) -> str:
    """What the masks cost on the target, for people."""
    assert job.mask is not None
    cost = job.structure.cost.exact(job.mask)
    parts = [f"{k} {cost[k]:,} ({cost[k] / job.dense[k]:.2%})" for k in Budget.parse(job.budget).kinds]
    return ", ".join(parts)
