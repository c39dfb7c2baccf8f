"""Gates folded into affine parameters: per-channel arithmetic instead of a pass over activations.

(Layers that compute their weight have no parameter that a gate could multiply: there it multiplies the output.)

While a gated module's forward runs, its attributes ``weight`` (and ``bias``) are ``weight * z``. They hide the
parameters of the same names and replace nothing: `parameters()`, the state dict and the optimiser see the
parameters themselves at any time, and what an interrupted forward leaves is hidden anew by the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from chipnet._util.torch_private import hooks_after, hooks_before, hooks_called_always, parameters_of
from chipnet.analysis.liveness import Site
from chipnet.gates.values import Constants

Values = Callable[[], Sequence[Tensor]]


class Hook:
    """What chipnet hangs on the modules of a network that it prunes. Nothing of it works in a copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return object.__new__(type(self))

    def __getstate__(self) -> dict[str, Any]:
        return {}


class GateHook(Hook):
    """One hook object for a module's pre-forward (fold) and forward (restore) calls.

    Args:
        site: whose gates, and where they go.
        number: which of the sites.
        constants: the values that copies see.
        own: makes the values that the network itself sees, differentiable where they are learnt; None: as copies.
    """

    def __init__(self, site: Site, number: int, constants: Constants, own: Values | None = None) -> None:
        self.constants, self.own, self.number = constants, own, number
        self.axis, self.output = site.host.axis, site.host.output
        self.weight = site.host.weight.rpartition(".")[2]
        self.bias = site.host.bias.rpartition(".")[2] if site.host.bias is not None else None
        self._running: list[nn.Module] = []
        """Modules whose forward runs, the innermost last. Replicas of a module are others."""
        self._handles: list[RemovableHandle] = []

    def hang(self, module: nn.Module) -> None:
        """On the module of the site."""
        if self.output is not None:
            self._handles.append(module.register_forward_hook(self.multiply))
        else:
            self._handles.append(module.register_forward_pre_hook(self.fold))
            self._handles.append(module.register_forward_hook(self.restore, always_call=True))

    def remove(self) -> None:
        """From its module, whose parameters are seen again."""
        self.clear()
        while self._handles:
            self._handles.pop().remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> GateHook:
        """The hook of a copy: the same gates, as constants."""
        for module in self._running:  # of an interrupted forward: hide parameters of the copy by themselves
            for name, p in self._parameters(module):
                if name in module.__dict__:
                    memo[id(module.__dict__[name])] = memo.get(id(p), p)
        copied: GateHook = object.__new__(type(self))
        copied.__dict__.update(self.__getstate__())
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "own": None, "_running": [], "_handles": []}

    def z(self, like: Tensor) -> Tensor:
        """Gate values ``[channels]``, where and of what type ``like`` is."""
        values = self.constants.on(like.device) if self.own is None else self.own()
        return values[self.number].to(like.device, like.dtype)

    def multiply(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Where the weight is computed: the gates multiply the output."""
        assert self.output is not None
        return output * self.z(output).reshape([-1] + [1] * (-1 - self.output))

    def fold(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)
        for name, p in self._parameters(module):
            z = self.z(p)
            if name == self.weight and p.dim() > 1:
                z = z.reshape([-1 if a == self.axis else 1 for a in range(p.dim())])
            module.__dict__[name] = p * z

    def restore(self, module: nn.Module, args: Any = None, output: Any = None) -> None:
        if self._running:
            self._running.pop()
        if not any(m is module for m in self._running):  # a forward may call itself
            for name, _ in self._parameters(module):
                module.__dict__.pop(name, None)

    def clear(self) -> None:
        """Forget forwards that something other than an error ended: Ctrl-C runs no hooks."""
        while self._running:
            self.restore(self._running[-1])

    def _parameters(self, module: nn.Module) -> list[tuple[str, Tensor]]:
        found = [(n, parameters_of(module).get(n)) for n in (self.weight, self.bias) if n is not None]
        return [(name, p) for name, p in found if p is not None]


def add_gates(
    model: nn.Module, sites: Sequence[Site], constants: Constants, own: Values | None = None
) -> list[GateHook]:
    """Fold gate values into every site; returns the hooks, which can be removed again.

    Args:
        model: is given hooks.
        sites: those with gates.
        constants: values that copies of the model see.
        own: makes the values that the model itself sees, by site ``[channels]``; None: ``constants``.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = [GateHook(site, number, constants, own) for number, site in enumerate(sites)]
    for site, hook in zip(sites, found, strict=True):
        hook.hang(modules[site.host.module])
    return found


def hooks(model: nn.Module) -> Iterator[tuple[nn.Module, dict[int, Any], int, Hook]]:
    """Every hook of chipnet's in a network: its module, the module's hooks, its key among them, its object."""
    for module in model.modules():
        for found in (hooks_before(module), hooks_after(module)):
            for key, hook in list(found.items()):
                owner = getattr(hook, "__self__", None)
                if isinstance(owner, Hook):
                    yield module, found, key, owner


def has_gates(model: nn.Module) -> bool:
    """Are gates folded into ``model``?"""
    return any(isinstance(hook, GateHook) for *_, hook in hooks(model))


@contextlib.contextmanager
def untouched_by_failure(model: nn.Module) -> Iterator[None]:
    """Where what is inside fails, hooks that it has put on the network are removed."""
    found = [d for m in model.modules() for d in (hooks_before(m), hooks_after(m))]
    before = [set(d) for d in found]
    try:
        yield
    except BaseException:
        for keys, then in zip(found, before, strict=True):
            for key in keys.keys() - then:
                del keys[key]
        for module in model.modules():
            for key in hooks_called_always(module).keys() - hooks_after(module).keys():
                del hooks_called_always(module)[key]
        raise


def strip_gates(model: nn.Module) -> nn.Module:
    """Remove gates, and all else that chipnet hung on a network."""
    for module, found, key, hook in hooks(model):
        if isinstance(hook, GateHook):
            hook.clear()
            hook.restore(module)
        del found[key]
        hooks_called_always(module).pop(key, None)
    return model


def detach(model: nn.Module) -> nn.Module:
    """Remove a pruner's gates: the network computes with its own weights, as they are now.

    `Pruner.detach` does so for the network that it prunes. This is for copies of such a network, which compute
    with its gates (a moving average of the weights, a network in another process, one that was saved whole and
    loaded), and for a network whose pruner is out of reach.

    Args:
        model: changed in place: weights stay, gates go. One without gates stays as it is.

    Returns:
        ``model``.

    Example:
        >>> import chipnet, copy, torch
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> pruner = chipnet.Pruner(net, torch.ones(1, 2), "macs=0.5", steps=1, method="uniform")
        >>> average, x = copy.deepcopy(net), torch.ones(1, 2)
        >>> with pruner.hardened():
        ...     torch.equal(average(x), net(x))
        True
        >>> dense = chipnet.detach(average)(x)
        >>> with pruner.hardened():
        ...     torch.equal(average(x), dense), torch.equal(average(x), net(x))
        (True, False)
    """
    return strip_gates(model)
