"""A trained network, unlabelled inputs and a budget in; a smaller network out. Nothing is trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from chipnet._util.finite import check_finite
from chipnet._util.given import FUNCTION, NETWORK
from chipnet._util.modes import plainly
from chipnet._util.text import value_text
from chipnet.analysis.kinds import LATENCY
from chipnet.analysis.options import Options, Patterns
from chipnet.budget.budget import Budget
from chipnet.budget.ranking import Ranking, counting_solver
from chipnet.errors import ConfigError
from chipnet.graph.facts import Heads, Realisation
from chipnet.program.inputs import Inputs
from chipnet.program.ready import copied
from chipnet.repair.batches import read_batches
from chipnet.repair.refit import LayerRefit, refit
from chipnet.structure import Structure, structure_of
from chipnet.surgery.apply import compact
from chipnet.surgery.plan import Plan
from chipnet.timing.landing import measuring
from chipnet.widths.curves import measure_curves
from chipnet.widths.distance import Distance, between
from chipnet.widths.knapsack import rankings

Progress = Callable[[str, int, int], None]
"""A function that is called with the name of the current part, its steps done, and all of its steps."""


@dataclass(frozen=True, eq=False)
class Shrunk:
    """What `shrink` made. Unpacks as ``model, plan``.

    Attributes:
        model: the compact network, refitted.
        plan: what was cut.
        layers: what the refit did, layer by layer.
        cut, refitted: squared error of the outputs, divided by the sum of their squares, on the inputs that were
            used: before and after the refit.
    """

    model: nn.Module
    plan: Plan
    layers: tuple[LayerRefit, ...]
    cut: float
    refitted: float

    def __iter__(self) -> Iterator[Any]:
        yield from (self.model, self.plan)


@plainly
def shrink(
    model: nn.Module,
    inputs: Any,
    budget: Budget | Mapping[str, Any] | str,
    *,
    images: int = 512,
    distance: Distance = "error",
    example_inputs: Any = None,
    realisation: Realisation = "plain",
    ignore: Patterns = (),
    only: Patterns = (),
    min_channels: int = 0,
    round_to: int = 1,
    outputs: Any = None,
    norms: Literal["live", "dense"] = "live",
    heads: Heads = "narrow",
    progress: Progress | None = None,
) -> Shrunk:
    """A smaller network within a budget, without training and without labels.

    1. Curves: each site is narrowed alone, and the outputs are compared with the dense network's. The channels that
       go first are those that the next layers can best replace when they are refitted.
    2. Widths within the budget: those with the smallest sum of losses, even ones, and widths halfway between. Costs
       are the exact ones of the network.
    3. The cut: `compact`, verified against the masked network.
    4. The refit: `chipnet.refit`, layer by layer. The network whose outputs are nearest to the dense network's is
       returned.

    Args:
        model: a trained network; it is not changed.
        inputs: unlabelled inputs, as for `chipnet.refit`: a tensor of images, a loader, any iterable of what the
            network takes.
        budget: see `chipnet.Budget`.
        images: how many of the inputs are used, at most.
        distance: between outputs. ``"error"``: squared error, for any task; ``"kl"``: Kullback-Leibler
            divergence, for logits with classes along axis 1.
        example_inputs: what costs are counted for, or a `Structure` of the network; the first of the inputs if it
            is not given.
        realisation, ignore, only, min_channels, round_to, outputs, heads, norms: as for `chipnet.Structure`.
        progress: see `Progress`.

    Raises:
        CaptureError: nothing can be pruned, or the network cannot be captured.
        BudgetError: no network meets the budget.
        ConfigError: there are no inputs, or the network does not take them.

    Example:
        >>> import chipnet
        >>> net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
        >>> small, plan = chipnet.shrink(net, torch.randn(128, 6), "macs=0.25")
        >>> small[0].out_features
        8
    """
    (only_one,) = shrink_family(
        model,
        inputs,
        [budget],
        images=images,
        distance=distance,
        example_inputs=example_inputs,
        realisation=realisation,
        ignore=ignore,
        only=only,
        min_channels=min_channels,
        round_to=round_to,
        outputs=outputs,
        norms=norms,
        heads=heads,
        progress=progress,
    )
    return only_one


@plainly
def shrink_family(
    model: nn.Module,
    inputs: Any,
    budgets: Sequence[Budget | Mapping[str, Any] | str],
    *,
    images: int = 512,
    distance: Distance = "error",
    example_inputs: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Shrunk]:
    """Networks for several budgets from one measurement, each within the one before it.

    Args:
        budgets: from the largest network to the smallest; each network keeps only channels that the one before it
            keeps.
        model, inputs, images, distance, example_inputs, progress, options: as for `shrink`.

    Returns:
        One result for each budget, in their order. Raises as `shrink`.
    """
    if isinstance(budgets, str) or not isinstance(budgets, Sequence) or not budgets:
        raise ConfigError(
            f"budgets={value_text(budgets)}: give at least one, in a list such as ['macs=0.5', 'macs=0.25']"
        )
    NETWORK.check("model", model)
    if progress is not None:
        FUNCTION.check("progress", progress)
    wanted = [Budget.parse(budget) for budget in budgets]
    if not isinstance(distance, str) or distance not in get_args(Distance):
        raise ConfigError(
            f"distance must be one of {', '.join(map(repr, get_args(Distance)))}, not {value_text(distance)}"
        )
    tell = progress or (lambda what, done, of: None)
    check_finite(model)
    dense, choices = copied(model).eval(), Options(**options)
    own = None if example_inputs is None else structure_of(model, example_inputs, choices)
    batches = read_batches(dense, inputs, None if own is None else own.analysis.inputs, images)
    structure = structure_of(model, batches[0].part(slice(1)), choices) if own is None else own
    if any(LATENCY in budget.kinds for budget in wanted):
        structure.time(model)
    _check(structure, wanted, dense)
    batches = [replace(batch, outputs=structure.analysis.inputs.outputs) for batch in batches]
    curves = measure_curves(dense, structure.analysis, batches, distance, lambda *n: tell("curves", *n))
    found: list[Shrunk] = []
    within = torch.ones(structure.gates, dtype=torch.bool)
    for budget in wanted:
        tried: dict[tuple[bool, ...], tuple[float, Shrunk]] = {}
        for ranking in rankings(structure.analysis, curves, structure.limits(budget), within):
            plan = _plan(model, structure, ranking, budget, within)
            if plan.mask not in tried:
                tried[plan.mask] = _shrunk(
                    model, dense, plan, batches, distance, lambda *n: tell("refit", *n)
                )
        found.append(min(tried.values(), key=lambda pair: pair[0])[1])
        within = torch.tensor(found[-1].plan.mask)
    return found


@torch.no_grad()
def _check(structure: Structure, budgets: Sequence[Budget], dense: nn.Module) -> None:
    """Refuse before anything takes long: budgets that no network meets or that grow, outputs that nothing tells
    apart."""
    for budget in budgets:
        structure.check(budget)
    limits = [structure.limits(budget) for budget in budgets]
    for wide, thin in itertools.pairwise(limits):
        if more := [kind for kind, limit in thin.items() if limit > wide.get(kind, limit)]:
            raise ConfigError(f"budgets: {more[0]} grows; name them from the largest network to the smallest")
    if not any(x.is_floating_point() or x.is_complex() for x in structure.analysis.inputs.read(dense)):
        raise ConfigError(
            "no output of the network is a floating-point number, so networks cannot be compared: give the network "
            "without the step that makes classes of its outputs (argmax)"
        )


def _shrunk(
    model: nn.Module,
    dense: nn.Module,
    plan: Plan,
    batches: Sequence[Inputs],
    distance: Distance,
    progress: Callable[[int, int], None],
) -> tuple[float, Shrunk]:
    """The network of a plan, refitted, after its distance. ``dense``: the model in eval mode."""
    small = compact(model, plan)
    cut = copied(small).eval()
    images = sum(batch.size or 1 for batch in batches)
    layers = refit(model, small, plan, batches, images=images, progress=progress)
    refitted = copied(small).eval()
    errors = between(dense, [cut, refitted], batches)
    loss = errors[1] if distance == "error" else between(dense, [refitted], batches, distance)[0]
    return loss, Shrunk(small, plan, tuple(layers), *errors)


def _plan(model: nn.Module, structure: Structure, ranking: Ranking, budget: Budget, within: Tensor) -> Plan:
    """The plan of the gates that rank highest within the budget, of the gates ``within``."""
    analysis, limits = structure.analysis, structure.limits(budget)
    solver = measuring(model, analysis, budget) if LATENCY in budget.kinds else counting_solver(analysis)
    solution = solver(limits, ranking)
    mask = analysis.canonical(solution.mask & within)
    if not analysis.connected(mask):
        mask = solution.mask
    plan = structure.plan(mask, budget)
    if solution.landing is None or not torch.equal(mask, solution.mask):
        return plan
    return replace(plan, latency=solution.landing.to_json())
