"""Gates folded into affine parameters: per-channel arithmetic instead of a pass over activations.

(Layers that compute their weight have no parameter that a gate could multiply: there it multiplies the output.)

While a gated module's forward runs, its attributes ``weight`` (and ``bias``) are ``weight * z``. They hide the
parameters of the same names and replace nothing: `parameters()`, the state dict and the optimiser see the
parameters themselves at any time, and what an interrupted forward leaves is hidden anew by the next one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from chipnet._util.given import NETWORK
from chipnet._util.torch_private import hooks_after, hooks_before, hooks_called_always, parameters_of
from chipnet.analysis.sites import Site
from chipnet.gates.values import Constants
from chipnet.graph.facts import LiveNorm
from chipnet.program.names import within

Values = Callable[[], Sequence[Tensor]]


class Hook:
    """What chipnet hangs on the modules of a network that it prunes. Nothing of it works in a copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return object.__new__(type(self))

    def __getstate__(self) -> dict[str, Any]:
        return {}


class FoldHook(Hook):
    """One hook object for a module's pre-forward (fold) and forward (restore) calls.

    Args:
        number: which of the vectors of values is the module's.
        constants: the values that copies see.
        own: makes the values that the network itself sees, differentiable where they are learnt; None: as copies.
        names: of the parameters that values are folded into, as the module knows them: ``weight``, or
            ``proj.weight`` where it reads that of a module inside.
    """

    def __init__(
        self, number: int, constants: Constants, own: Values | None, names: Sequence[str | None]
    ) -> None:
        self.constants, self.own, self.number = constants, own, number
        self.names = [name for name in names if name is not None]
        self._running: list[nn.Module] = []
        """Modules whose forward runs, the innermost last. Replicas of a module are others."""
        self._handles: list[RemovableHandle] = []

    def hang(self, module: nn.Module) -> None:
        """Put the hooks on the module of the parameters."""
        self._handles.append(module.register_forward_pre_hook(self.fold))
        self._handles.append(module.register_forward_hook(self.restore, always_call=True))

    def remove(self) -> None:
        """Take the hooks from their module, whose parameters are seen again."""
        self.clear()
        while self._handles:
            self._handles.pop().remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> FoldHook:
        """The hook of a copy: the same gates, as constants."""
        for module in self._running:  # of an interrupted forward: hide parameters of the copy by themselves
            for _, owner, key, p in self._parameters(module):
                if key in owner.__dict__:
                    memo[id(owner.__dict__[key])] = memo.get(id(p), p)
        copied: FoldHook = object.__new__(type(self))
        copied.__dict__.update(self.__getstate__())
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "own": None, "_running": [], "_handles": []}

    def z(self, like: Tensor) -> Tensor:
        """The values ``[channels]``, where and of what type ``like`` is."""
        values = self.constants.on(like.device) if self.own is None else self.own()
        return values[self.number].to(like.device, like.dtype)

    def factor(self, name: str, p: Tensor) -> Tensor:
        """What a parameter is multiplied with: along its axis of channels."""
        raise NotImplementedError

    def fold(self, module: nn.Module, args: Any) -> None:
        inner = any(m is module for m in self._running)  # a forward may call itself: it is folded already
        self._running.append(module)
        for name, owner, key, p in [] if inner else self._parameters(module):
            p = owner.__dict__.get(key, p)  # gates of several sites on one weight
            owner.__dict__[key] = p * self.factor(name, p)

    def restore(self, module: nn.Module, args: Any = None, output: Any = None) -> None:
        if self._running:
            self._running.pop()
        if not any(m is module for m in self._running):  # a forward may call itself
            for _, owner, key, _ in self._parameters(module):
                owner.__dict__.pop(key, None)

    def clear(self) -> None:
        """Forget forwards that something other than an error ended: Ctrl-C runs no hooks."""
        while self._running:
            self.restore(self._running[-1])

    def _parameters(self, module: nn.Module) -> list[tuple[str, nn.Module, str, Tensor]]:
        """Each parameter: its name, the module that owns it, its key there, and itself."""
        found = []
        for name in self.names:
            path, _, key = name.rpartition(".")
            owner = module.get_submodule(path)
            if (p := parameters_of(owner).get(key)) is not None:
                found.append((name, owner, key, p))
        return found


class GateHook(FoldHook):
    """Multiplies a site's affine parameters, or where these are computed its output, by the values of its gates."""

    def __init__(self, site: Site, number: int, constants: Constants, own: Values | None = None) -> None:
        host = site.host
        known = [None if n is None else within(n, host.module) for n in (host.weight, host.bias)]
        super().__init__(number, constants, own, known)
        self.axis, self.output = site.host.axis, site.host.output

    def hang(self, module: nn.Module) -> None:
        if self.output is None:
            super().hang(module)
        else:
            self._handles.append(module.register_forward_hook(self.multiply))

    def multiply(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Multiply the output by the gates, where the weight is computed."""
        assert self.output is not None
        return output * self.z(output).reshape([-1] + [1] * (-1 - self.output))

    def factor(self, name: str, p: Tensor) -> Tensor:
        z = self.z(p)
        if name == self.names[0] and p.dim() > 1:
            z = z.reshape([-1 if a == self.axis else 1 for a in range(p.dim())])
        return z


class UnnestedHook(FoldHook):
    """Keeps ``nn.TransformerEncoder`` from making nested tensors, which only layers without hooks take."""

    def __init__(self, constants: Constants) -> None:
        super().__init__(0, constants, None, [])

    def fold(self, module: nn.Module, args: Any) -> None:
        if not any(m is module for m in self._running):
            vars(module).update(_chipnet_nested=module.use_nested_tensor, use_nested_tensor=False)
        self._running.append(module)

    def restore(self, module: nn.Module, args: Any = None, output: Any = None) -> None:
        super().restore(module)
        if not any(m is module for m in self._running) and "_chipnet_nested" in module.__dict__:
            vars(module)["use_nested_tensor"] = vars(module).pop("_chipnet_nested")


class LiveHook(FoldHook):
    """Gives a norm over channels the statistics of those that exist: the masked network's meaning.

    Where a channel does not exist (p = 0) x is zero. With m = sum x / sum p, and r^2 = sum p^2 / n of n channels,
    the norm is given ``(x - p m) / r`` to read. That has the mean 0 and, over n channels, the variance
    ``sum (x - p m)^2 / sum p^2``. So what the module computes, times r, is ``(x - p m) / sigma``: r goes into its
    weight, and p into its bias. Where all channels exist (p = 1, r = 1) m stays, and every bit is as before.

    Of one live channel ``x - m`` is 0, not almost 0: its variance is 0, and over a small ``eps`` rounding would be
    seen.

    Only what the module reads is changed, so its class and its forward are the user's, whatever they are.

    A norm that is ``dense`` reads what it reads: weight and bias alone are multiplied by p.
    """

    TINY = 1e-12
    """The least number that is divided by: a norm without channels divides by it, not by zero."""

    def __init__(self, norm: LiveNorm, number: int, constants: Constants, own: Values | None = None) -> None:
        super().__init__(number, constants, own, [norm.weight, norm.bias])
        self.norm = norm

    def hang(self, module: nn.Module) -> None:
        self._handles.append(module.register_forward_pre_hook(self.live, with_kwargs=True))
        if self.norm.weight is None:
            self._handles.append(module.register_forward_hook(self.shrink))
        else:
            super().hang(module)

    def live(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The norm's input, so that its statistics are those of live channels."""
        if args:
            return (self._seen(args[0]), *args[1:]), kwargs
        name, x = next(iter(kwargs.items()))
        return args, {**kwargs, name: self._seen(x)}

    def _seen(self, x: Tensor) -> Tensor:
        if self.norm.dense:
            return x
        p, r = self._p(x)
        if self.norm.centred:
            positions = math.prod(x.shape[a] for a in self.norm.over) // len(p)
            mean = x.sum(self.norm.over, keepdim=True, dtype=p.dtype) / (p.sum() * positions).clamp_min(
                self.TINY
            )
            taken = self._along((p * (p != 1).any()).to(x.dtype), self.norm.axis)
            x = torch.addcmul(x, mean.to(x.dtype), taken, value=-1)
        return x / r.to(x.dtype)

    def shrink(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Multiply the output, where there is no weight to do it."""
        if self.norm.dense:
            return output * self._along(self._p(output)[0].to(output.dtype), self.norm.axis)
        return output * self._p(output)[1].to(output.dtype)

    def factor(self, name: str, p: Tensor) -> Tensor:
        exists, r = self._p(p)
        if name == self.norm.weight and not self.norm.dense:
            return r.to(p.dtype)
        return self._along(exists.to(p.dtype), self.norm.axis if p.dim() > 1 else -1)

    def _p(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """How far each channel exists ``[channels]``, and r, in float32 at least."""
        p = self.z(like.new_empty((), dtype=torch.promote_types(like.dtype, torch.float32)))
        return p, (p.square().mean()).clamp_min(self.TINY).sqrt()

    @staticmethod
    def _along(values: Tensor, axis: int) -> Tensor:
        return values.reshape([-1] + [1] * (-1 - axis))


def add_gates(
    model: nn.Module,
    sites: Sequence[Site],
    constants: Constants,
    own: Values | None = None,
    norms: Sequence[LiveNorm] = (),
) -> list[FoldHook]:
    """Fold gate values into every site and norm; returns the hooks, which can be removed again.

    Args:
        model: is given hooks.
        sites: those with gates.
        constants: values that copies of the model see.
        own: makes the values that the model itself sees, by site ``[channels]``; None: ``constants``.
        norms: those with statistics of live channels. Their values, how far each channel exists, come after those
            of sites.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    hosts = [*(site.host.module for site in sites), *(norm.module for norm in norms)]
    found: list[FoldHook] = [GateHook(site, number, constants, own) for number, site in enumerate(sites)]
    found += [LiveHook(norm, number, constants, own) for number, norm in enumerate(norms, len(found))]
    for host, hook in zip(hosts, found, strict=True):
        hook.hang(modules[host])
    for module in model.modules() if found else ():
        if isinstance(module, nn.TransformerEncoder):
            found.append(UnnestedHook(constants))
            found[-1].hang(module)
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
    return any(isinstance(hook, FoldHook) for *_, hook in hooks(model))


@contextlib.contextmanager
def untouched_by_failure(model: nn.Module) -> Iterator[None]:
    """Remove the hooks that what is inside has put on the network, where it fails."""
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
        if isinstance(hook, FoldHook):
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
    NETWORK.check("model", model)
    return strip_gates(model)
