"""What the callbacks share: soft pruning in a loop whose loss is out of reach, and the cut at its end."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import chipnet
from chipnet import Budget, ChipNetError, ConfigError, Plan, Pruner, Structure
from chipnet._util.given import ATTRIBUTE
from chipnet._util.text import amount
from chipnet.program.inputs import Inputs
from chipnet.surgery.optimizer import States, cut_state, set_state


class Pruned:
    """What a callback gives after the training: the plan and the compact network."""

    pruning: Pruning

    @property
    def plan(self) -> Plan | None:
        """What was cut; None before the end of the training."""
        return self.pruning.plan

    @property
    def compact(self) -> nn.Module | None:
        """The compact network; None before the end of the training."""
        return self.pruning.compact


class Pruning:
    """One soft pruning of a network that somebody else trains, then compaction.

    Args:
        budget: what remains; see `chipnet.Budget`.
        example_inputs: as for `chipnet.Pruner`.
        network: attribute path of the network in the trained module; None: the module itself.
        options: other arguments of `chipnet.Pruner`.

    Raises:
        BudgetError, CaptureError, ConfigError: the budget, the inputs or the path are none.

    Attributes:
        pruner: while the network is trained.
        plan: once it has been cut.
        compact: the small network, then.
    """

    def __init__(
        self, budget: Any, example_inputs: Any, *, network: str | None = None, **options: Any
    ) -> None:
        self.budget, self.path, self.options = Budget.parse(budget), network, options
        given = example_inputs
        self.example_inputs = given if isinstance(given, Structure) else Inputs.of(given)
        if network is not None:
            ATTRIBUTE.check("network", network)
        self.pruner: Pruner | None = None
        self.plan: Plan | None = None
        self.compact: nn.Module | None = None
        self.saved: dict[str, Any] | None = None
        self.carried: States = {}
        self.scale = 1.0

    def network(self, module: nn.Module) -> nn.Module:
        """The network in `module`."""
        if self.path is None:
            return module
        try:
            return module.get_submodule(self.path)
        except AttributeError:
            raise ConfigError(
                f"{type(module).__name__} has no module {self.path!r}; it has "
                f"{', '.join(name for name, _ in module.named_children())}."
            ) from None

    def begin(self, module: nn.Module, steps: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """Training begins: gates come on; in a later training, the optimisers get what went through the cut."""
        if self.plan is not None:
            for optimizer in optimizers:
                mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
                network = self.network(module)
                named = dict(network.named_parameters())
                set_state(
                    optimizer,
                    network,
                    {n: s for n, s in self.carried.items() if n in named and id(named[n]) in mine},
                )
            self.carried = {}
            return
        network = self.network(module)
        pruner = Pruner(network, self.example_inputs, self.budget, steps=steps, **self.options)
        if self.saved is not None:
            try:
                pruner.load_state_dict(self.saved)
            except ConfigError:  # the network is left as it was given
                pruner.detach()
                raise
            self.saved = None
        self.pruner = pruner

    def before_step(self, scale: float = 1.0) -> None:
        """What is done between the backward passes and the optimiser's step."""
        if self.pruner is not None:
            self.scale = scale
            self.pruner.backward()

    def after_step(self) -> None:
        """What is done after the optimiser's step."""
        if self.pruner is not None:
            self.pruner.step(self.scale)

    def end(self, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Training is over: harden and cut. A network that is a part of `module` is replaced there."""
        if self.pruner is None:
            return
        if self.pruner.taken < self.pruner.steps:
            raise ChipNetError(
                f"training stopped after {self.pruner.taken} of the {amount(self.pruner.steps, 'step')} of soft "
                "pruning: the masks are not final. Train to the end, or give the number of steps that are taken."
            )
        network = self.network(module)
        self.plan = self.pruner.harden()
        self.pruner.detach()
        self.pruner = None
        for optimizer in optimizers:
            self.carried |= cut_state(optimizer, network, self.plan)
        self.compact = chipnet.compact(network, self.plan)
        if self.path is not None:
            parent, _, name = self.path.rpartition(".")
            setattr(module.get_submodule(parent), name, self.compact)
