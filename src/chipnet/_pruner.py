"""The user's handle: five lines in any training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from chipnet._budget import LATENCY, Budget
from chipnet._cost import KINDS
from chipnet._distributed import Group, first_, mean_, world
from chipnet._errors import ConfigError
from chipnet._gates import add_gates
from chipnet._latency import Landing, land
from chipnet._plan import Plan
from chipnet._structure import Patterns, Structure, check_whole
from chipnet._trace import Realisation
from chipnet._vectors import read_mask

if TYPE_CHECKING:
    from chipnet.methods import Method


class Pruner:
    """Learns which channels to keep while you train, in your own loop.

    Gates are folded into the affine parameters of the model's layers around their forward calls. The model keeps
    its class, its state-dict keys and its parameters; your optimiser, precision and data stay yours.

    Args:
        model: a trained network, any ``nn.Module`` that ``torch.export`` captures.
        example_inputs: a tensor, a tuple of forward's arguments or a dict of its keyword arguments, as the network
            will see them; or the `chipnet.Structure` of this model, with its options.
        budget: what remains: ``{"macs": 0.25}``, ``"params=2M"``, several kinds at once; see `chipnet.Budget`.
        steps: optimiser steps that pruning will take. All schedules are functions of step / steps.
        method: a name from ``chipnet.methods.METHODS``, or ``module:Class`` of your own; with other values for its
            settings as ``"chipnet:floor=0,travel=16"``. Or the class itself.
        realisation, share, ignore, only, min_channels, round_to, outputs: see `chipnet.Structure`.
        seed: of everything random in the method.
        group: the processes that train this model together, each with a pruner of its own: a process group, None
            for the default one (if there is one), or False for none. `step` averages the gates' gradients over
            them, so masks and plans are the same on each; nothing else communicates.

    Raises:
        BudgetError: no connected network meets the budget (with the smallest cost that can be reached). With a
            latency budget also later, when final masks are measured and none that was built is fast enough.
        CaptureError: the model cannot be captured or has nothing to prune.
        ConfigError: unknown method or setting, no steps, or an option that is no number or pattern where one is
            needed.

    Example:
        >>> import chipnet, torch
        >>> from torch import nn
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> net = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> x, y = torch.randn(64, 6), torch.randint(3, (64,))
        >>> pruner = chipnet.Pruner(net, x[:1], {"macs": 0.25}, steps=20)
        >>> for _ in range(20):
        ...     loss = nn.functional.cross_entropy(net(x), y) + pruner.loss()
        ...     loss.backward()
        ...     optimizer.step()
        ...     pruner.step()
        ...     optimizer.zero_grad()
        >>> plan = pruner.harden()
        >>> chipnet.compact(net, plan)[0].out_features
        8
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        budget: Budget | Mapping[str, Any] | str,
        *,
        steps: int,
        method: str | type[Method] = "chipnet",
        realisation: Realisation = "plain",
        share: bool | None = None,
        ignore: Patterns = (),
        only: Patterns = (),
        min_channels: int = 0,
        round_to: int = 1,
        outputs: Any = None,
        seed: int = 0,
        group: Group = None,
    ) -> None:
        from chipnet.methods import read_method

        made, options = read_method(method)
        check_whole("steps", steps, 1, ": the optimiser steps of the pruning phase")
        check_whole("seed", seed, 0)
        if seed >= 2**63:
            raise ConfigError(f"seed must be below 2**63, got {seed}")
        self.model, self.group = model, group
        self.budget = Budget.parse(budget)
        self.structure = (
            example_inputs
            if isinstance(example_inputs, Structure)
            else Structure(
                model,
                example_inputs,
                realisation=realisation,
                share=share,
                ignore=ignore,
                only=only,
                min_channels=min_channels,
                round_to=round_to,
                outputs=outputs,
            )
        )
        if LATENCY in self.budget.kinds:
            self.structure.time(model)
        self.structure.check(self.budget)
        device = next(model.parameters()).device
        self.method = made(
            model,
            self.structure,
            self.structure.limits(self.budget),
            steps=steps,
            seed=seed,
            device=device,
            options=options,
        )
        self.method.group = group
        self.landing: Landing | None = None
        """With a latency budget, once final masks are known: what their compact network takes, as measured."""
        self._landed: Tensor | None = None
        if LATENCY in self.budget.kinds:
            self.method.settle = self._settle  # type: ignore[method-assign]
        self.steps, self.taken = steps, 0
        self._gated = [(site.gates >= 0).any() for site in self.structure.sites]
        sites = [site for site, gated in zip(self.structure.sites, self._gated, strict=True) if gated]
        gates = np.concatenate([site.gates for site in sites])
        self._index = torch.from_numpy(np.where(gates < 0, self.structure.gates, gates)).to(device)
        self._values: Tensor | None = None
        self._leaves: tuple[Tensor, ...] = ()
        self._with_grad = False
        self._apart = False
        self._forced: tuple[Tensor, ...] | None = None
        self._sizes = [site.channels for site in sites]
        self._handles = add_gates(model, sites, self._channel_values)

    def __repr__(self) -> str:
        method = type(self.method).__name__
        return f"Pruner({method}, {self.budget}, step {self.taken} of {self.steps}, {self.structure!r})"

    @property
    def progress(self) -> float:
        """Steps taken / steps, in [0, 1]."""
        return min(self.taken / self.steps, 1.0)

    def loss(self) -> Tensor:
        """The method's loss (crispness, budget): add it to the task's. A scalar on the model's device.

        Under ``torch.compile`` call it before the model: it makes the step's gate values, and a forward that finds
        them made is one graph.
        """
        self._make_values()
        return self.method.loss(self.progress)

    def backward(self) -> None:
        """The gradients of ``loss()``, apart from the task's: for loops whose loss is out of reach.

        Call it in place of adding ``loss()``, once a step: after the task's backward passes and the scaler's
        ``unscale_``, before ``optimizer.step()``.
        """
        loss = self.loss()
        if loss.requires_grad:
            loss.backward()
        self._apart = True

    def losses(self) -> dict[str, Tensor]:
        """``loss()`` by part: add their sum instead, and show them."""
        self._make_values()
        return self.method.losses(self.progress)

    def step(self, loss_scale: float = 1.0) -> None:
        """Advance masks and schedules: call once after every ``optimizer.step()``, on every process.

        Args:
            loss_scale: what the loss was multiplied with before ``backward`` (float16: ``scaler.get_scale()``
                before ``scaler.update()``). A step whose gradients overflowed teaches the method nothing.
        """
        self._collect(loss_scale)
        before = self.progress
        self.taken += 1
        self.method.step(before, self.progress)
        for p in self.method.learnt():  # the same bits everywhere, even on machines that round differently
            first_(p.data, self.group)

    def soft_cost(self) -> dict[str, float]:
        """Cost of the gates as the forward uses them now, as fractions of the dense costs."""
        with torch.no_grad():
            values = self.method.values(self.progress).detach().double().cpu()
            costs = self.structure.cost(values).tolist()
        dense = self.structure.cost.dense
        return {k: c / max(dense[k], 1) for k, c in zip(KINDS, costs, strict=False)}  # latency apart

    def histogram(self, bins: int = 10) -> list[int]:
        """How many gates have values in each of ``bins`` equal parts of [0, 1], as they are learnt now."""
        with torch.no_grad():
            values = self.method.relaxed(self.progress).detach().float().cpu()
        return [int(n) for n in torch.histc(values, bins, 0.0, 1.0)]

    @property
    def mask(self) -> Tensor:
        """Boolean hard masks ``[gates]`` that meet the budget exactly, as of now."""
        return self.method.mask()

    @contextlib.contextmanager
    def hardened(self, mask: Tensor | None = None) -> Iterator[Tensor]:
        """Inside, the model computes with hard masks (by default those that meet the budget now)."""
        mask = self._force(mask)
        try:
            yield mask
        finally:
            self._forced = None

    def harden(self, mask: Tensor | None = None) -> Plan:
        """The plan of the hard masks. The model keeps computing with them until ``detach()``.

        Raises:
            PlanError: a mask of another length or with other values than 0 and 1, or weights that are not finite.
        """
        if mask is None:
            mask = self.method.settle(self.method.mask)
        mask = read_mask(mask, self.structure.gates)
        plan = self.structure.plan(mask, self.budget)
        self._force(mask)
        if self.landing is None or self._landed is None or not torch.equal(mask, self._landed):
            return plan
        return replace(plan, latency=self.landing.to_json())

    def _settle(self, solve: Callable[[], Tensor]) -> Tensor:
        """The mask of ``solve`` whose compact network, as measured, is within the latency budget."""
        if self._landed is not None and torch.equal(solve(), self._landed):
            return self._landed
        limits = self.method.limits

        def within(tighter: Mapping[str, int]) -> Tensor:
            self.method.limits = dict(tighter)
            try:
                return solve()
            finally:
                self.method.limits = limits

        value = dict(self.budget.targets)[LATENCY]
        asked = float(value) if isinstance(value, Fraction) else value
        self._landed, self.landing = land(self.model, self.structure, limits, asked, within)
        return self._landed

    def _force(self, mask: Tensor | None) -> Tensor:
        """Compute with a mask as its compact network does: an open gate that the input does not reach, such as
        that of a residual stream behind a dead branch, is shut, where a norm would emit a constant."""
        mask = read_mask(self.mask if mask is None else mask, self.structure.gates)
        opened = self.structure.open(mask).to(self._index.device, torch.float32)
        parts = opened.split([site.channels for site in self.structure.sites])
        self._forced = tuple(part for part, gated in zip(parts, self._gated, strict=True) if gated)
        return mask

    def detach(self) -> None:
        """Remove the gates: the model is as it was, with the weights it has now."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.method.detach()

    def state_dict(self) -> dict[str, Any]:
        """Progress and the method's state."""
        own = {"taken": self.taken, "steps": self.steps, "method": self.method.state_dict()}
        return (
            own
            if self.landing is None
            else {**own, "landing": self.landing.to_json(), "landed": self._landed}
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()`` of a pruner of the same model, budget and method."""
        if state["steps"] != self.steps:
            raise ConfigError(f"the saved pruner runs {state['steps']} steps, this one {self.steps}")
        self.taken = state["taken"]
        self.method.load_state_dict(state["method"])
        self.landing = Landing(**state["landing"]) if "landing" in state else None
        self._landed = state.get("landed")
        self._values, self._leaves, self._forced = None, (), None

    def _make_values(self) -> None:
        if torch.is_grad_enabled() and self._handles:
            self._channel_values()

    def _channel_values(self) -> tuple[Tensor, ...]:
        """Gate values of every channel of every site with gates, by site, computed once a step.

        Forwards get detached leaves, so any number of backward passes may run between two steps; ``step`` hands the
        gradient that has gathered in them on to the method. One for every site: the gradient of a slice would be
        a zero for every gate of the network.
        """
        if self._forced is None and self.method.final:
            self._force(None)
        if self._forced is not None:
            return self._forced
        if not self._leaves or (torch.is_grad_enabled() and not self._with_grad):
            self._with_grad = torch.is_grad_enabled()
            gates = self.method.values(self.progress)
            self._values = torch.cat([gates, gates.new_ones(1)]).index_select(0, self._index)
            parts = self._values.detach().split(self._sizes)
            self._leaves = tuple(part.requires_grad_(self._values.requires_grad) for part in parts)
        return self._leaves

    def _collect(self, loss_scale: float) -> None:
        """Hand the gradient of the gate values on to what the method learns.

        Gates are no parameters of the model, so DistributedDataParallel does not average their gradients. This is
        the one place that all of them pass: averaged here, what the method learns and observes is that of the
        whole batch. Its own losses depend on nothing but its own state, which is then the same on every process.
        """
        learnt = self.method.learnt()
        if self._values is not None and self._values.requires_grad:
            grads = [leaf.grad for leaf in self._leaves]
            # A process without a backward must still take part.
            if world(self.group) > 1 or any(grad is not None for grad in grads):
                whole = [
                    torch.zeros_like(leaf) if grad is None else grad
                    for leaf, grad in zip(self._leaves, grads, strict=True)
                ]
                grad = mean_(torch.cat(whole), self.group)
                if loss_scale != 1.0:
                    grad = grad / loss_scale
                    for p in learnt if not self._apart else []:
                        if p.grad is not None:
                            p.grad /= loss_scale
                if loss_scale == 1.0 or bool(torch.isfinite(grad).all()):
                    self._values.backward(grad)
        if loss_scale != 1.0:
            for p in learnt:
                if p.grad is not None and not bool(torch.isfinite(p.grad).all()):
                    p.grad = None
        self._apart = False
        self._values, self._leaves = None, ()
