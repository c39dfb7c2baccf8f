"""The user's handle: five lines in any training loop."""

from __future__ import annotations

import contextlib
import copy
import math
import numbers
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.device import device_of
from chipnet._util.distributed import Group, first_
from chipnet._util.finite import Flags, all_finite, check_finite
from chipnet._util.given import NETWORK
from chipnet._util.modes import plainly
from chipnet._util.text import amount, value_text
from chipnet.analysis.kinds import KINDS, LATENCY
from chipnet.analysis.options import Options, Patterns, check_whole
from chipnet.analysis.vectors import read_mask
from chipnet.budget.budget import Budget
from chipnet.budget.landing import Landing
from chipnet.budget.ranking import Solution, counting_solver
from chipnet.errors import CaptureError, ConfigError
from chipnet.gates.hooks import add_gates, untouched_by_failure
from chipnet.gates.state import made_for, refuse_other
from chipnet.gates.values import GateValues
from chipnet.graph.facts import Heads, Realisation
from chipnet.methods import Method, read_method, reference
from chipnet.structure import Structure, structure_of
from chipnet.surgery.plan import Plan
from chipnet.timing.landing import measuring


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
            settings as ``"chipnet:law=1,every=1"``. Or the class itself.
        realisation, share, ignore, only, min_channels, round_to, outputs, heads: see `chipnet.Structure`.
        seed: of everything random in the method.
        group: the processes that train this model together, each with a pruner of its own: a process group, None
            for the default one (if there is one), or False for none. `step` averages the gates' gradients over
            them, so masks and plans are the same on each; nothing else communicates.

    Raises:
        BudgetError: no connected network meets the budget (with the smallest cost that can be reached). With a
            latency budget also later, when final masks are measured and no network is fast enough.
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

    @plainly
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
        heads: Heads = "narrow",
        seed: int = 0,
        group: Group = None,
    ) -> None:
        kind, settings = read_method(method)
        check_whole("steps", steps, 1, ": the optimiser steps of the pruning phase")
        check_whole("seed", seed, 0)
        NETWORK.check("model", model)
        model = getattr(model, "_orig_mod", model)  # what torch.compile was given
        self.model, self.group = model, group
        self.budget, self.steps, self.taken = Budget.parse(budget), steps, 0
        options = Options(realisation, share, ignore, only, min_channels, round_to, outputs, heads)
        self.structure = _structure(model, example_inputs, options)
        self._infinite = check_finite(model)
        timed = LATENCY in self.budget.kinds
        if timed:
            self.structure.time(model)
        self.structure.check(self.budget)
        analysis, limits = self.structure.analysis, self.structure.limits(self.budget)
        self._solver = measuring(model, analysis, self.budget) if timed else counting_solver(analysis)
        self._measured: Solution | None = None
        """The mask that was measured last, with a latency budget."""
        self._made_for = made_for(
            reference(kind), {**kind.settings(), **settings}, self.budget, steps, analysis
        )
        device = device_of(model)
        sites = [site for site in analysis.sites if site.free]
        self._gated = torch.cat([torch.full((site.channels,), site.free > 0) for site in analysis.sites])
        """Per channel of every site: is the site gated?"""
        counted = analysis.norm_channels, analysis.counted
        self._values = GateValues([site.gates for site in sites], analysis.gates, self._soft, device, counted)
        self._own_backward = False
        """The gradients of ``loss()`` have come by ``backward()``, without the task's scale."""
        self._flags = Flags()
        with untouched_by_failure(model):
            self.method = kind(
                model, analysis, limits, steps=steps, seed=seed, device=device, options=settings, group=group
            )
            self._hooks = add_gates(
                model, sites, self._values.constants, self._values.by_site, analysis.norms
            )
            self._publish()

    def __repr__(self) -> str:
        method = type(self.method).__name__
        return f"Pruner({method}, {self.budget}, step {self.taken} of {self.steps}, {self.structure!r})"

    @property
    def progress(self) -> float:
        """Steps taken / steps, in [0, 1]."""
        return min(self.taken / self.steps, 1.0)

    @property
    def landing(self) -> Landing | None:
        """What the compact network that was measured last takes; None until one is, or with no latency budget."""
        return self._measured.landing if self._measured is not None else None

    @plainly
    def loss(self) -> Tensor:
        """The method's loss (crispness, budget): add it to the task's. A scalar on the model's device.

        It can always be differentiated, also where neither the network nor the method learns anything any more.
        Under ``torch.compile`` call it before the model: it makes the step's gate values, and a forward that finds
        them made is one graph.
        """
        self._make_values()
        return _differentiable(self.method.loss(self.progress))

    def backward(self) -> None:
        """Compute the gradients of ``loss()`` alone: for loops that compute the task's loss out of your reach.

        Call it once a step instead of adding ``loss()``: after the task's backward passes and the scaler's
        ``unscale_``, before ``optimizer.step()``.
        """
        loss = self.loss()
        if loss.requires_grad:
            loss.backward()
        self._own_backward = True

    @plainly
    def losses(self) -> dict[str, Tensor]:
        """The parts of ``loss()`` by name, to show them. Their sum may be added in its place."""
        self._make_values()
        found = self.method.losses(self.progress) or {"pruning": self.method.loss(self.progress)}
        return {part: _differentiable(loss) for part, loss in found.items()}

    @plainly
    def step(self, loss_scale: float = 1.0) -> None:
        """Advance masks and schedules: call once after every ``optimizer.step()``, on every process.

        If gradients of the gates are not finite, the method does not learn from this step, and a warning says so.

        Args:
            loss_scale: the factor by which the loss was multiplied before ``backward`` (float16:
                ``scaler.get_scale()`` before ``scaler.update()``).

        Raises:
            ConfigError: ``loss_scale`` is no number above 0. Nothing has changed then.
            ChipNetError: weights of the network are NaN or infinite. On a GPU this is noticed some steps later.
        """
        if not (isinstance(loss_scale, numbers.Real) and 0 < loss_scale < math.inf):
            raise ConfigError(
                f"loss_scale must be a number above 0, got {value_text(loss_scale)}: scaler.get_scale() before "
                "scaler.update(), or nothing where the loss is not scaled"
            )
        for hook in self._hooks:
            hook.clear()
        sound = self._values.pass_gradient_on(
            self.method.learnt(), loss_scale, self.group, own_scaled=not self._own_backward
        )
        self._own_backward = False
        if loss_scale == 1.0:
            sound = sound & all_finite(self.method.observed())
        self._flags.send(self.taken + 1, [sound, all_finite(self._weights())])
        self._notice()
        before = self.progress
        self.taken += 1
        self.method.loss_scale = loss_scale
        self.method.step(before, self.progress)
        if not self.method.final and self.method.freezes(self.progress):
            self.method.fix(self._solve())
        for p in self.method.learnt():  # the same bits everywhere, even on machines that round differently
            first_(p.data, self.group)
        self._publish()

    @plainly
    def soft_cost(self) -> dict[str, float]:
        """Cost of the gates as the forward uses them now, as fractions of the dense costs."""
        with torch.no_grad():
            values = self.method.values(self.progress).detach().double().cpu()
            costs = self.structure.cost(values).tolist()
        dense = self.structure.cost.dense
        counted = zip(KINDS, costs, strict=False)  # what is measured comes after them
        return {kind: cost / max(dense[kind], 1) for kind, cost in counted}

    @plainly
    def histogram(self, bins: int = 10) -> list[int]:
        """How many gates have values in each of ``bins`` equal parts of [0, 1], as they are learnt now."""
        check_whole("bins", bins, 1)
        with torch.no_grad():
            values = self.method.relaxed(self.progress).detach().float().cpu()
        return [int(n) for n in torch.histc(values, bins, 0.0, 1.0)]

    @property
    @plainly
    def mask(self) -> Tensor:
        """The hard mask ``[gates]``, Booleans, that meets the budget exactly as of now."""
        return self.method.mask()

    @contextlib.contextmanager
    def hardened(self, mask: Tensor | None = None) -> Iterator[Tensor]:
        """Inside, the model and its copies compute with hard masks, by default those that meet the budget now."""
        before = self._values.hard
        mask = self._fix(mask)
        try:
            yield mask
        finally:
            self._values.hard = before
            self._publish()

    @plainly
    def harden(self, mask: Tensor | None = None, *, early: bool = False) -> Plan:
        """The plan of the hard mask. The model and its copies go on computing with that mask until ``detach()``.

        Args:
            mask: Boolean ``[gates]``; None: the mask that the scores of now give.
            early: do not warn where this is before the last step.

        Raises:
            PlanError: a mask of another length or with other values than 0 and 1.
            ChipNetError: weights of the network, or the method's scores, are not finite.
        """
        check_finite(self.model, self._infinite, f"after {self.taken} of {amount(self.steps, 'step')} ")
        if mask is None and self.taken < self.steps and not early:
            warnings.warn(
                f"hardened after {self.taken} of {amount(self.steps, 'step')}: schedules are functions of "
                "progress, and the masks are not those of the last step. Train to the end, give the Pruner the "
                "steps that you take, or say that it is meant: harden(early=True)",
                stacklevel=3,  # `plainly` is between
            )
        mask = read_mask(self._solve() if mask is None else mask, self.structure.gates)
        plan = self.structure.plan(mask, self.budget)
        self._fix(mask)
        found = self._measured
        if found is None or found.landing is None or not torch.equal(mask, found.mask):
            return plan
        return replace(plan, latency=found.landing.to_json())

    def _solve(self) -> Tensor:
        """The mask that ships if training ends now. With a latency budget its network has been measured."""
        if self.method.final:
            return self.method.mask()
        if self._measured is not None and torch.equal(self.method.mask(), self._measured.mask):
            return self._measured.mask
        found = self._solver(self.method.limits, self.method.ranking())
        if found.landing is not None:
            self._measured = found
        return found.mask

    @plainly
    def _fix(self, mask: Tensor | None) -> Tensor:
        """Compute with a mask as its compact network does.

        An open gate that the input does not reach, such as that of a stream behind a dead branch, is shut: its norm
        would emit a constant.
        """
        mask = read_mask(self.method.mask() if mask is None else mask, self.structure.gates)
        analysis = self.structure.analysis
        counted = analysis.counted(mask.double()) > 0.5
        self._values.fix(torch.cat([analysis.open(mask)[self._gated], counted]))
        return mask

    def detach(self) -> None:
        """Remove the gates: the model is as it was, with the weights it has now.

        Copies of it keep the gates' last values, until `chipnet.detach` removes those too.
        """
        while self._hooks:
            self._hooks.pop().remove()
        self.method.detach()

    def state_dict(self) -> dict[str, Any]:
        """Progress, the method's state, and what it is for: plain values and tensors."""
        own = {
            "for": self._made_for,
            "taken": self.taken,
            "steps": self.steps,
            "method": self.method.state_dict(),
        }
        found = self._measured
        if found is not None and found.landing is not None:
            own |= {"landing": found.landing.to_json(), "landed": found.mask}
        return own

    @plainly
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the ``state_dict()`` of a pruner of the same model, budget, method and steps.

        The seed may be another one.

        Raises:
            ConfigError: it is the state of another pruner, or damaged. Nothing has changed then.
        """
        refuse_other(state, self._made_for, self.steps, self.method.state_dict())
        before = copy.deepcopy(self.method.state_dict())
        try:
            measured = Solution(state["landed"], Landing(**state["landing"])) if "landing" in state else None
            self.method.load_state_dict(state["method"])
        except Exception as error:
            self.method.load_state_dict(before)
            raise ConfigError(
                f"this state of a pruner cannot be read ({type(error).__name__}: {error}); it is as it was before"
            ) from error
        self.taken, self._measured = state["taken"], measured
        self._values.forget()
        self._publish()

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruner:
        """A copy of a module that holds its pruner holds the same one: it prunes one network."""
        return self

    def __reduce__(self) -> Any:
        raise ConfigError(
            "a Pruner cannot be pickled: save its state_dict() beside the model's, make a new one of the loaded "
            "model, and give that load_state_dict()"
        )

    def _make_values(self) -> None:
        if torch.is_grad_enabled() and self._hooks:
            self._values.by_site()

    def _publish(self) -> None:
        """Give the model and its copies the gate values of now."""
        if self._values.hard is None and self.method.final:
            self._fix(None)
        else:
            self._values.publish()

    def _soft(self) -> Tensor:
        return self.method.values(self.progress)

    def _weights(self) -> list[Tensor]:
        return [p for name, p in self.model.named_parameters() if name not in self._infinite]

    def _notice(self) -> None:
        """Warn of gradients that were not finite, in steps whose flags have arrived.

        Raises:
            ChipNetError: weights or statistics are not.
        """
        for step, (gradient, weights) in self._flags.arrived():
            if gradient and weights:
                continue
            check_finite(self.model, self._infinite, f"in step {step} of {self.steps} ")
            warnings.warn(
                f"in step {step} of {self.steps} the gradient of the gates was not finite; the masks learnt "
                "nothing from it. Look for NaN in the data and for steps that are too long; with a float16 scaler, "
                "give step() its scale",
                stacklevel=4,
            )


def _differentiable(loss: Tensor) -> Tensor:
    """The same scalar, as a leaf of its own where it depends on nothing that is learnt."""
    return loss if loss.requires_grad or not torch.is_grad_enabled() else loss.detach().requires_grad_()


def _structure(model: nn.Module, given: Any, options: Options) -> Structure:
    """The structure that was given for ``model``, or one of the example inputs and options that were.

    Raises:
        ConfigError: a structure with options that it has already, or that of another network.
        CaptureError: see `Structure`; or the network has gates already.
    """
    if (empty := next((n for n, t in model.named_parameters() if t.is_meta), None)) is not None:
        raise CaptureError(
            f"'{empty}' holds no numbers (it is on the meta device), and masks are learnt by training. Give the "
            "network memory and weights before: model.to_empty(device='cpu'), then load_state_dict"
        )
    return structure_of(model, given, options)
