"""How a network is called, and what comes out of it: any arguments, any structure of outputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._errors import CaptureError


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call of a network's forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example_inputs: Any) -> Inputs:
        """A tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.

        Raises:
            CaptureError: none of these.

        Example:
            >>> Inputs.of({"image": 1}).kwargs, Inputs.of(torch.ones(2)).args
            ({'image': 1}, (tensor([1., 1.]),))
        """
        if isinstance(example_inputs, Inputs):
            return example_inputs

        def detached(x: Any) -> Any:
            return torch.utils._pytree.tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, x)

        if isinstance(example_inputs, Tensor):
            return cls((example_inputs.detach(),), {})
        if isinstance(example_inputs, (tuple, list)):
            return cls(detached(tuple(example_inputs)), {})
        if isinstance(example_inputs, Mapping):
            return cls((), detached(dict(example_inputs)))
        raise CaptureError(
            "example_inputs must be a tensor, a tuple of forward's arguments or a dict of its keyword arguments, "
            f"got {type(example_inputs).__name__}"
        )

    def __call__(self, model: nn.Module) -> Any:
        """The model's output. Arguments are copied, since a forward may write into them, and random numbers are the
        same in every call and not the user's."""
        args, kwargs = copy.deepcopy((self.args, self.kwargs))
        devices = {p.device for p in model.parameters() if p.device.type != "cpu"}
        kind = next(iter(devices)).type if devices else "cuda"
        with torch.random.fork_rng([d.index or 0 for d in devices], device_type=kind):
            torch.manual_seed(0)
            return model(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        """The positional arguments."""
        return iter(self.args)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Inputs:
        """The same, with all tensors on ``device`` and floating-point ones in ``dtype``."""

        def one(x: Any) -> Any:
            return x.to(device, dtype if x.is_floating_point() else None) if isinstance(x, Tensor) else x

        return Inputs(*torch.utils._pytree.tree_map(one, (self.args, self.kwargs)))

    def twice(self) -> Inputs:
        """The same with two images where there is one: batch norms want more than one value in train mode."""

        def one(x: Any) -> Any:
            single = isinstance(x, Tensor) and x.dim() > 1 and x.shape[0] == 1
            return torch.cat([x, x]) if single else x

        return Inputs(*torch.utils._pytree.tree_map(one, (self.args, self.kwargs)))

    def __str__(self) -> str:
        named = [f"{k}={_shown(v)}" for k, v in self.kwargs.items()]
        return ", ".join([*map(_shown, self.args), *named])


def _shown(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"of shape {tuple(x.shape)}"
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(_shown, x))}]"
    return repr(x)


def tensors(out: Any) -> Iterator[Tensor]:
    """All tensors of an output: in tuples, mappings, dataclasses, output classes, in their order.

    Example:
        >>> [t.item() for t in tensors({"a": torch.tensor(1), "b": (torch.tensor(2), None)})]
        [1, 2]
    """
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        for value in out.values():
            yield from tensors(value)
    elif isinstance(out, (tuple, list, set)):
        for value in out:
            yield from tensors(value)
    elif dataclasses.is_dataclass(out) and not isinstance(out, type):
        for field in dataclasses.fields(out):
            yield from tensors(getattr(out, field.name))
    elif hasattr(out, "__dict__") and not isinstance(out, (nn.Module, type)):
        for value in vars(out).values():
            yield from tensors(value)


def device_of(model: nn.Module) -> torch.device:
    """Where a network's first parameter is; the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
