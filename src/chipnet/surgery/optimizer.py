"""An optimiser's state through the cut: every running average loses the rows and columns that its weight loses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.given import NETWORK, OPTIMIZER, STATES
from chipnet.surgery.apply import kept
from chipnet.surgery.plan import PLAN, Plan

States = dict[str, dict[str, Any]]


def cut_state(optimizer: torch.optim.Optimizer, network: nn.Module, plan: Plan) -> States:
    """Parameter name -> its state, as it is after the plan. Take it before the network goes.

    Args:
        optimizer: of the dense network's parameters.
        network: the dense network.
        plan: of the cut.

    Raises:
        ConfigError, CaptureError, PlanError: one of them is something else.

    Example:
        >>> import chipnet
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> net(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> plan = chipnet.Structure(net, torch.ones(1, 3)).plan(torch.tensor([True, False, True, True]))
        >>> small = chipnet.compact(net, plan)
        >>> new = torch.optim.Adam(small.parameters())
        >>> set_state(new, small, cut_state(optimizer, net, plan))
        >>> new.state[small[0].weight]["exp_avg"].shape
        torch.Size([3, 3])
    """
    OPTIMIZER.check("optimizer", optimizer)
    PLAN.check("plan", plan)
    plan.check(network)
    found = {}
    for name, parameter in network.named_parameters():
        state = optimizer.state.get(parameter)
        if state:
            found[name] = {k: _cut(v, parameter, plan.keep.get(name, {})) for k, v in state.items()}
    return found


def set_state(optimizer: torch.optim.Optimizer, network: nn.Module, states: Mapping[str, Any]) -> None:
    """Give the compact network's optimiser what `cut_state` took; parameters that changed otherwise start anew.

    Raises:
        ConfigError, CaptureError: one of them is something else.
    """
    OPTIMIZER.check("optimizer", optimizer)
    NETWORK.check("network", network)
    STATES.check("states", states)
    for name, parameter in network.named_parameters():
        state = states.get(name, {})
        if state and all(v.shape in (parameter.shape, ()) for v in state.values() if isinstance(v, Tensor)):
            optimizer.state[parameter] = dict(state)


def _cut(value: Any, parameter: Tensor, keep: Mapping[int, tuple[int, ...]]) -> Any:
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return kept(value, keep).clone()
