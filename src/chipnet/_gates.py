"""Gates folded into affine parameters: per-channel arithmetic instead of a pass over activations.

(Layers that compute their weight have no parameter that a gate could multiply: there it multiplies the output.)

Around the forward of every gated module its weight (and bias) is replaced by ``weight * z``. The module keeps
its class, its forward and its state-dict keys, and the parameters the optimiser holds are untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from chipnet._liveness import Site


class GateHook:
    """One hook object for a module's pre-forward (fold) and forward (restore) calls."""

    def __init__(self, site: Site, values: Callable[[], Sequence[Tensor]], number: int) -> None:
        self.values: Callable[[], Sequence[Tensor]] | None = values
        self.axis, self.output = site.host.axis, site.host.output
        self.weight = site.host.weight.rpartition(".")[2]
        self.bias = site.host.bias.rpartition(".")[2] if site.host.bias is not None else None
        self.number = number
        self._saved: list[dict[str, nn.Parameter | None]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> GateHook:
        """Copies of a gated model carry inert hooks, which ``strip_gates`` removes."""
        inert = object.__new__(GateHook)
        inert.values = None
        return inert

    def multiply(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Where the weight is computed: the gates multiply the output."""
        if self.values is None or self.output is None:
            return output
        z = self.values()[self.number].to(output.dtype)
        return output * z.reshape([-1] + [1] * (-1 - self.output))

    def fold(self, module: nn.Module, args: Any) -> None:
        if self.values is None:
            return
        weight = module._parameters[self.weight]
        assert weight is not None
        z = self.values()[self.number].to(weight.dtype)
        saved: dict[str, nn.Parameter | None] = {self.weight: weight}
        shape = [-1 if a == self.axis else 1 for a in range(weight.dim())]
        folded = {self.weight: weight * (z if len(shape) == 1 else z.reshape(shape))}
        bias = module._parameters[self.bias] if self.bias is not None else None
        if self.bias is not None and bias is not None:
            saved[self.bias] = bias
            folded[self.bias] = bias * z
        self._saved.append(saved)
        module._parameters.update(folded)  # type: ignore[arg-type]

    def restore(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.values is not None and self._saved:
            module._parameters.update(self._saved.pop())


def add_gates(model: nn.Module, sites: list[Site], values: Callable[[], Sequence[Tensor]]) -> list[Any]:
    """Fold gate values into every gated site; returns handles that remove the gates again.

    ``values()`` gives one tensor ``[channels]`` for every site, in order (one for channels without a gate).
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    handles = []
    for number, site in enumerate(sites):
        if (site.gates >= 0).any():
            hook = GateHook(site, values, number)
            module = modules[site.host.module]
            if site.host.output is not None:
                handles.append(module.register_forward_hook(hook.multiply))
            else:
                handles.append(module.register_forward_pre_hook(hook.fold))
                handles.append(module.register_forward_hook(hook.restore, always_call=True))
    return handles


def has_gates(model: nn.Module) -> bool:
    """Are gates folded into ``model`` now?"""
    hooks = [h for m in model.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
    owners = [getattr(h, "__self__", None) for h in hooks]
    return any(isinstance(o, GateHook) and o.values is not None for o in owners)


def strip_gates(model: nn.Module) -> nn.Module:
    """Remove gates from a (copied) model."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), GateHook):
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)
    return model
