"""What must the compact network equal, and does it? Masked networks, and comparisons with them."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.device import device_of
from chipnet._util.finite import check_finite
from chipnet._util.given import NETWORK
from chipnet._util.modes import plainly
from chipnet._util.torch_private import (
    TorchDispatchMode,
    tree_leaves,
)
from chipnet.errors import ChipNetError, PlanError
from chipnet.gates.hooks import add_gates, strip_gates
from chipnet.gates.values import Constants
from chipnet.program.inputs import Inputs
from chipnet.program.ready import check_runs, copied
from chipnet.program.spelling import unnested
from chipnet.surgery.plan import PLAN, Plan
from chipnet.surgery.verify import OutputComparison, compare_outputs, compare_training, outputs, repeatable

_log = logging.getLogger("chipnet")


@plainly
def masked(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the dense model with the shut gates' rows set to zero: what the compact one must equal. Norms over
    channels have the statistics of those that stay.

    Layers that compute their weight go on computing it; their shut channels are set to zero after each call, as are
    those of modules without affine parameters.

    Raises:
        PlanError: the plan is for another network.
    """
    PLAN.check("plan", plan)
    plan.check(model)
    out = unnested(strip_gates(copied(model)))
    zero(out, plan, {f"{f.module}.weight" for f in plan.frozen})
    for name, (axis, channels) in plan.shut.items():
        out.get_submodule(name).register_forward_hook(_Shut(axis, channels))
    values = Constants([live.channels for live in plan.live])
    values.set(torch.cat([torch.zeros(0), *(_ones(live.channels, live.kept) for live in plan.live)]))
    add_gates(out, [], values, norms=[live.norm for live in plan.live])
    return out


def _ones(size: int, at: Sequence[int]) -> Tensor:
    return torch.zeros(size).index_fill(0, torch.tensor(at, dtype=torch.int64), 1)


class _Shut:
    """Forward hook that sets channels of a layer's output to zero."""

    def __init__(self, axis: int, channels: tuple[int, ...]) -> None:
        self.axis, self.channels = axis, torch.tensor(channels, dtype=torch.int64)

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.index_fill(self.axis, self.channels.to(output.device), 0)


def agree(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    inputs: Inputs,
    blind: frozenset[int] = frozenset(),
) -> bool:
    """Do masked and compact networks compute the same? They do not where an output, but for those in ``blind``, has
    nothing that could be compared. Raises what their forwards raise."""
    return _same(_compared(model, small, plan, inputs), small, plan, inputs, blind=blind)


@plainly
def verify_compact(model: nn.Module, small: nn.Module, plan: Plan, inputs: Any) -> OutputComparison:
    """Largest difference between the masked and the compact outputs on ``inputs``, and the outputs' scale.

    Runs in eval mode and in float64 where both networks do. Numbers that are not finite must stand in the same
    places; where outputs have no others, or the inputs are constant, random inputs of the same shapes are used too.

    Returns:
        An `OutputComparison`, which unpacks as ``difference, scale`` and has the count of numbers compared. Where
        there are none, the difference is NaN: nothing is verified.

    Raises:
        PlanError: the plan is for another network, or neither it nor the caller has inputs.
        CaptureError: one of both is no network, or the model does not run on the inputs.
    """
    PLAN.check("plan", plan)
    plan.check(model)
    NETWORK.check("small", small)
    called = plan.called(inputs)
    if called is None:
        raise PlanError(
            "this plan was read from a file, which holds no inputs: give inputs to compare outputs on"
        )
    return _compared_for(model, small, plan, called)


def _compared_for(model: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> OutputComparison:
    """As `_compared`. Inputs that the model itself does not run on are refused in words."""
    try:
        return _compared(model, small, plan, inputs)
    except ChipNetError:
        raise
    except Exception:
        check_runs(copied(model).eval(), inputs.to(device_of(model)))
        raise


def _compared(model: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> OutputComparison:
    """What is compared, as `verify_compact` says. Raises what the forwards raise."""
    device = device_of(model)
    try:
        big, other = masked(model, plan).double(), copy.deepcopy(small).double()
        return compare_outputs(big, other, inputs.to(device, torch.float64))
    except (RuntimeError, TypeError):  # a forward that makes tensors of its own dtype: as it is, then
        return compare_outputs(masked(model, plan), copy.deepcopy(small), inputs.to(device))


def check_compact(model: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> None:
    """Raise `PlanError` unless the compact network has been seen to compute what the masked one does."""
    check_finite(model, kind=PlanError)
    found = _compared_for(model, small, plan, inputs)
    if any(size.value != size.was for size in plan.sizes):  # a number that follows may be a value in training
        _verify_training(model, small, plan, inputs.to(device_of(model)))
    blind = frozenset(found.unverified)
    same = found.compared == 0 or _same(found, small, plan, inputs, min_scale=1e-12, blind=blind)
    if found.difference == math.inf or not same:
        raise PlanError(
            f"the compact network does not compute what the masked one does: outputs differ by "
            f"{found.difference:.3g} at scale {found.scale:.3g}. This is a bug of chipnet's rules for one of the "
            "model's operators; please report it. Exclude the layers concerned with ignore=[...]."
        )
    if found.complete:
        if found.drawn:
            _log.info(
                "verified on random inputs too: example inputs or their outputs are constant or not finite"
            )
        return
    which = f"in output {', '.join(map(str, found.unverified))}" if found.unverified else "in any output"
    raise PlanError(
        f"the compact network cannot be verified: there is no finite number to compare {which} of this "
        f"{type(model).__name__}, neither on the example inputs nor on random ones. Give example_inputs on which "
        "its outputs are finite and not empty, or verify=False."
    )


def _verify_training(model: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> None:
    """Raise `PlanError` where the compact network computes something else in train mode, nothing random aside."""
    if plan.frozen or not repeatable(big := masked(model, plan), inputs):
        return
    found = compare_training(big, small, inputs)
    if not same_in_training(found, small):
        raise PlanError(
            "the compact network computes in train mode something else than the masked one: outputs differ by "
            f"{found.difference:.3g} at scale {found.scale:.3g}. A number of the model's that holds a width is "
            "used as a value in training: exclude the layers concerned with ignore=[...]."
        )


def same_in_training(found: OutputComparison, small: nn.Module) -> bool:
    """Is what was compared in train mode the same? Statistics of a batch blow rounding up."""
    return found.within(1e-6 if _is_double(small) else 1e-2, min_scale=1e-12)


def _same(found: OutputComparison, small: nn.Module, plan: Plan, inputs: Inputs, **known: Any) -> bool:
    """Is what was compared in eval mode the same, but for rounding?

    In float64 rounding is tiny. Where constants make up most of an output, a small difference may be all that shows
    of an error. It is rounding only where a forward computes in a smaller type, whatever its inputs are, or where
    surgery has rounded parameters.
    """
    if found.within(1e-9, **known):
        return True
    rounded = bool(plan.scales or plan.rows or plan.frozen) or not _computes_in_double(small, inputs)
    return rounded and found.within(_limit(small, plan), **known)


class _Narrow(TorchDispatchMode):
    """Notes whether an operator gives floating-point numbers that are no float64."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        floats = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
        self.found |= any(t.dtype != torch.float64 for t in floats)
        return out


@torch.no_grad()
def _computes_in_double(small: nn.Module, inputs: Inputs) -> bool:
    """Does a network in float64 compute in nothing smaller? False where it does not run so."""
    try:
        double, given = copy.deepcopy(small).double(), inputs.to(device_of(small), torch.float64)
        with _Narrow() as narrow:
            outputs(double, given)
    except Exception:  # a forward that makes tensors of its own dtype
        return False
    return not narrow.found


def _limit(small: nn.Module, plan: Plan) -> float:
    """How much outputs may differ, relative to their scale. Parameters that surgery multiplies are as exact as
    their type can hold them."""
    if _is_double(small):
        return 1e-9
    types = (
        {p.dtype for p in small.parameters() if p.is_floating_point()} if plan.scales or plan.rows else set()
    )
    return max(1e-4, *(4 * torch.finfo(t).eps for t in types), 0.0)


def _is_double(model: nn.Module) -> bool:
    return all(p.dtype == torch.float64 for p in model.parameters())


@torch.no_grad()
def zero(model: nn.Module, plan: Plan, skip: Set[str] = frozenset()) -> None:
    """Set the rows of shut gates to zero, but for parameters in ``skip``."""
    tensors = dict(model.named_parameters())
    for name in plan.zero.keys() - skip:
        axis, indices = plan.zero[name]
        p = tensors[name]
        p.index_fill_(axis, torch.tensor(indices, dtype=torch.int64, device=p.device), 0)
