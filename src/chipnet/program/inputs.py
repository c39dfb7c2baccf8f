"""How is the network called? Any arguments, in any structure."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chipnet._util.torch_private import tree_map
from chipnet.errors import CaptureError
from chipnet.program.outputs import Outputs, tensors


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a network, and which of its outputs matter (None: all)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Outputs | None = None

    @classmethod
    def of(cls, example_inputs: Any, outputs: Any = None) -> Inputs:
        """A tensor, a tuple or list of positional arguments, or a mapping of keyword arguments; ``outputs`` as in
        `Outputs.of`.

        Raises:
            CaptureError: none of these.
            ConfigError: ``outputs`` is no selection.

        Example:
            >>> Inputs.of({"image": 1}).kwargs, Inputs.of(torch.ones(2)).args
            ({'image': 1}, (tensor([1., 1.]),))
        """
        chosen = Outputs.of(outputs)
        if isinstance(example_inputs, Inputs):
            return example_inputs if chosen is None else dataclasses.replace(example_inputs, outputs=chosen)

        def detached(x: Any) -> Any:
            return tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, x)

        if isinstance(example_inputs, Tensor):
            return cls((example_inputs.detach(),), {}, chosen)
        if isinstance(example_inputs, (tuple, list)):
            return cls(detached(tuple(example_inputs)), {}, chosen)
        if isinstance(example_inputs, Mapping):
            return cls((), detached(dict(example_inputs)), chosen)
        raise CaptureError(
            "example_inputs must be a tensor, a tuple of forward's arguments or a dict of its keyword arguments, "
            f"got {type(example_inputs).__name__}"
        )

    def __call__(self, model: nn.Module) -> Any:
        """The model's output. Arguments are copied, since a forward may write to them; each call draws the same
        random numbers."""
        with _same_numbers(self._lent(model)):
            return self._given_to(model)

    @torch.no_grad()
    def draws(self, model: nn.Module) -> bool:
        """Does a call of the model draw random numbers? Outputs need not show it: two draws may drop the same."""
        devices = self._lent(model)
        with _same_numbers(devices):
            before = _states(devices)
            self._given_to(model)
            return _states(devices) != before

    def _given_to(self, model: nn.Module) -> Any:
        args, kwargs = copy.deepcopy((self.args, self.kwargs))
        return model(*args, **kwargs)

    def _lent(self, model: nn.Module) -> set[torch.device]:
        """The devices of a call that have generators of their own."""
        places = {t.device for t in (*model.parameters(), *self.tensors())}
        return {d for d in places if d.type not in ("cpu", "meta")}

    def read(self, model: nn.Module) -> list[Tensor]:
        """The tensors of the model's output that matter."""
        out = self(model)
        return list(tensors(out)) if self.outputs is None else self.outputs(out)

    def __iter__(self) -> Iterator[Any]:
        """The positional arguments."""
        return iter(self.args)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Inputs:
        """The same arguments with all tensors on ``device``, and floating-point ones in ``dtype``."""

        def one(x: Any) -> Any:
            return x.to(device, dtype if x.is_floating_point() else None) if isinstance(x, Tensor) else x

        return self.mapped(one)

    def twice(self) -> Inputs:
        """The same arguments with two images where there is one: batch norms need several values in train mode."""

        def one(x: Any) -> Any:
            single = isinstance(x, Tensor) and x.dim() > 1 and x.shape[0] == 1
            return torch.cat([x, x]) if single else x

        return self.mapped(one)

    @property
    def size(self) -> int | None:
        """How many images a call has: the length of all of its tensors; None where they do not agree."""
        sizes = {t.shape[0] if t.dim() else 0 for t in self.tensors()}
        return sizes.pop() if len(sizes) == 1 and 0 not in sizes else None

    def part(self, images: slice) -> Inputs:
        """The same call of some of its images; as it is, where tensors do not agree how many there are."""
        if self.size is None:
            return self
        return self.mapped(lambda x: x[images] if isinstance(x, Tensor) else x)

    def mapped(self, one: Any) -> Inputs:
        """The same arguments with ``one(x)`` in place of every leaf ``x``."""
        args, kwargs = tree_map(one, (self.args, self.kwargs))
        return Inputs(args, kwargs, self.outputs)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors among the arguments."""
        return tensors((self.args, self.kwargs))

    def __str__(self) -> str:
        named = [f"{k}={_shown(v)}" for k, v in self.kwargs.items()]
        return ", ".join([*map(_shown, self.args), *named])


def _shown(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"of shape {tuple(x.shape)}"
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(_shown, x))}]"
    return repr(x)


@contextlib.contextmanager
def _same_numbers(devices: set[torch.device]) -> Iterator[None]:
    """While the block lasts, Python, NumPy and PyTorch draw fixed random numbers; afterwards the user's go on."""
    states = random.getstate(), np.random.get_state()
    kind = next(iter(devices)).type if devices else "cuda"
    with torch.random.fork_rng([d.index or 0 for d in devices], device_type=kind):
        random.seed(0)
        np.random.seed(0)
        if devices:
            torch.manual_seed(0)
        else:  # that one would seed accelerators too, which are not put back, and takes a thousand times as long
            torch.default_generator.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _states(devices: set[torch.device]) -> list[Any]:
    """The states of the generators of Python, NumPy and PyTorch."""
    numpy: Any = np.random.get_state()
    states = [torch.get_rng_state()]
    states += [torch.get_device_module(d).get_rng_state(d.index or 0) for d in devices]
    return [random.getstate(), numpy[1].tolist(), numpy[2:], [s.tolist() for s in states]]
