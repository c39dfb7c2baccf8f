"""Pruning further: the compact network of a finished run is the network that another run prunes.

What the second run leaves is an ordinary run folder of the *first* network: masks of both are one mask of the
dense network, and so are their plans. Costs, budgets and accuracies are told against that network, and nothing
that reads run folders has to know that there were two steps.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chipnet import Budget, Masks, Plan, Structure, compact
from chipnet._util.text import amount
from chipnet.errors import BudgetError, ConfigError, PlanError
from chipnet.lab.config import CONFIG
from chipnet.lab.config_file import read_config
from chipnet.lab.models.registry import is_known
from chipnet.lab.runs.folder import Run
from chipnet.lab.runs.record import DENSE, RESULT


def run_named(model: str) -> Path | None:
    """The folder of a finished run that ``model`` names, if it does; of a network's name, only ``./NAME``.

    >>> run_named("resnet8") is None
    True
    """
    path = Path(os.path.expanduser(model))
    if not os.path.isfile(path / RESULT) or (os.sep not in model and is_known(model)):
        return None
    return path.resolve()


@dataclass(frozen=True)
class Start:
    """The compact network of a finished run, on its way to a smaller one.

    Attributes:
        run: the finished run.
        dense_structure: of its dense network.
        masks: what the run kept of it.
        dense: the trained dense network.
    """

    run: Run
    dense_structure: Structure
    masks: Masks
    dense: nn.Module

    @classmethod
    def of(cls, run: Run, example: Tensor) -> Start:
        """The start in a run folder. ``example``: what the networks are given, and costs are counted for.

        Raises:
            ChipNetError: the folder is damaged, or cannot be pruned further.
        """
        dense, masks = run.dense(), run.masks()
        config = read_config(run.folder / CONFIG) if (run.folder / CONFIG).exists() else {}
        chosen: dict[str, Any] = {name: config.get(name) or () for name in ("ignore", "only", "outputs")}
        chosen["heads"] = config.get("heads") or "narrow"
        dense_structure = Structure(dense, example, realisation=masks.realisation, **chosen)  # type: ignore[arg-type]
        return cls(run, dense_structure, masks, dense)

    def budget(self, target: Budget, structure: Structure) -> Budget:
        """``target`` in counts of the run's dense network, for the ``structure`` of its compact one.

        Raises:
            BudgetError: the compact network is within it already.
        """
        if "latency" in target.kinds:
            self.dense_structure.time(self.dense)
        limits, now = self.dense_structure.limits(target), structure.cost.dense_costs
        dense = self.dense_structure.cost.dense_costs
        if all(now[kind] <= limit for kind, limit in limits.items()):
            costs = ", ".join(f"{k} {now[k]:,} of {dense[k]:,}" for k in limits)
            raise BudgetError(
                f"the network of {self.run.folder} is within the budget {target} already ({costs}). A budget is "
                "counted from the dense network that run began with: ask for less."
            )
        return Budget(tuple(limits.items()))

    def plan(self, structure: Structure, mask: Tensor | tuple[bool, ...], budget: Budget) -> Plan:
        """What both runs cut from the dense network: a ``mask`` of the compact network's gates, composed."""
        second = Masks.of(structure, torch.as_tensor(mask))
        kept = {
            site: tuple(first[i] for i in second.kept[site]) if site in second.kept else first
            for site, first in self.masks.kept.items()
        }
        both = dataclasses.replace(self.masks, kept=kept)
        return self.dense_structure.plan(both.transfer(self.dense_structure), budget)

    def check(self, structure: Structure, network: nn.Module, budget: Budget) -> None:
        """Try on random masks that what is cut in two steps is what the composed plan cuts in one.

        Raises:
            ConfigError: it is not, with the first difference.
        """
        scores = torch.rand(structure.gates, generator=torch.Generator().manual_seed(0))
        mask = structure.harden(scores, budget)
        plan = dataclasses.replace(structure.plan(mask, budget), inputs=structure.analysis.inputs)
        small = compact(network, plan)
        if why := self._differs(structure, plan, small, mask, budget):
            weights = self.run.folder / DENSE
            raise ConfigError(
                f"the network of {self.run.folder} cannot be pruned further: {why}. Prune the dense network "
                f"to this budget: --model {self.run.result['model']} --weights {weights}"
            )

    def _differs(
        self, structure: Structure, plan: Plan, small: nn.Module, mask: Tensor, budget: Budget
    ) -> str:
        gated = {site.name for site in structure.sites if site.free}
        if more := gated - self.masks.kept.keys():
            return f"{', '.join(sorted(more)[:3])} can be pruned in it, and not in the dense network"
        widths = {site.name: site.channels for site in structure.sites}
        for name in gated:
            if widths[name] != len(self.masks.kept[name]):
                kept = len(self.masks.kept[name])
                return f"{name} has {amount(widths[name], 'channel')}, and the masks kept {kept}"
        try:
            both = self.plan(structure, mask, budget)
        except PlanError as error:
            return str(error)
        if both.compact != plan.compact:
            return f"it would cost {plan.compact}, and as one step {both.compact}"
        again = compact(self.dense, both, verify=False)
        here, there = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (small, again))
        for name in {*here, *there}:
            if here.get(name) != there.get(name):
                return f"{name} would have the shape {here.get(name)}, and as one step {there.get(name)}"
        return ""


def start_row(start: Start, accuracy: float, costs: Mapping[str, int]) -> dict[str, Any]:
    """What result.json says of where a run began."""
    result = start.run.result
    return {
        "run": str(start.run.folder.resolve()),
        "budget": dict(result["budget"]),
        "method": result["method"],
        "accuracy": accuracy,
        **costs,
    }
