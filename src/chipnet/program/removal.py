"""Which computed weights can be replaced by plain ones in their layer?

A parametrisation or a hook computes them before the layer's forward. When it is removed, the layer keeps its class
and its forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.utils.prune
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from chipnet._util.torch_private import hooks_before, hooks_of_loading, parameters_of, pruned_name
from chipnet.program.ready import copied

_REMOVALS: dict[type, Callable[[nn.Module, str], Any]] = {
    WeightNorm: torch.nn.utils.remove_weight_norm,
    SpectralNorm: torch.nn.utils.remove_spectral_norm,
}
"""Hooks that compute a layer's weight before every call, and how PyTorch puts that weight in their place."""


def removable(layer: nn.Module) -> bool:
    """Is the weight of a layer computed by something that can be removed?"""
    return is_parametrized(layer, "weight") or any(name == "weight" for _, name in _hooks(layer))


def removed(layer: nn.Module) -> nn.Module:
    """A copy of such a layer, with the weight that it computes in eval mode as a parameter. Its other parameters
    are the layer's own, since other modules may hold them too."""
    learns = next(layer.parameters()).requires_grad
    new = copied(layer).eval()
    if is_parametrized(layer):
        _unparametrise(new)
    for hook, name in _hooks(new):
        _REMOVALS.get(type(hook), torch.nn.utils.prune.remove)(new, name)
    for key, hook in list(hooks_of_loading(new).items()):  # PyTorch wraps it, and forgets it so
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del hooks_of_loading(new)[key]
    for name, made in parameters_of(new).items():
        own = parameters_of(layer).get(name)
        if own is not None:
            parameters_of(new)[name] = own
        elif made is not None:
            made.requires_grad_(learns)
    return new.train(layer.training)


def _hooks(layer: nn.Module) -> list[tuple[Any, str]]:
    """Hooks that compute tensors of the layer, each with the tensor's name."""
    hooks = list(hooks_before(layer).values())
    pruning = [(h, pruned_name(h)) for h in hooks if isinstance(h, torch.nn.utils.prune.BasePruningMethod)]
    return [*((h, h.name) for h in hooks if isinstance(h, (WeightNorm, SpectralNorm))), *pruning]


def _unparametrise(layer: nn.Module) -> None:
    """Remove parametrisations by hand: PyTorch's own removal changes a class that all copies of the layer share."""
    with torch.no_grad():
        values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # type: ignore[union-attr]
    layer.__class__ = type(layer).__bases__[0]
    del layer.parametrizations
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(value))
