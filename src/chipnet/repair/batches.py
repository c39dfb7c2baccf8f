"""Unlabelled inputs, as users have them: a tensor, a loader, any iterable of what the network takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.device import device_of
from chipnet._util.text import first_line, value_text
from chipnet.errors import ConfigError
from chipnet.program.inputs import Inputs

BATCH = 64
"""Images of a tensor that a forward takes at once; loaders have batches of their own."""


def read_batches(model: nn.Module, inputs: Any, example: Inputs | None, images: int) -> list[Inputs]:
    """The first ``images`` of some inputs, as calls of the network; two at least, where there are two images.

    Args:
        model: what is called, in eval mode.
        inputs: a tensor of images; a tuple of forward's arguments or a mapping of its keyword arguments, for one
            call; or an iterable of such batches. Of a batch with more than the network takes (images with labels,
            as loaders give them), the first parts are taken.
        example: how the network is called, where that is known.
        images: how many to read, at most.

    Raises:
        ConfigError: there are none, or they are nothing that the network takes.
    """
    if not isinstance(images, int) or images < 1:
        raise ConfigError(f"images={value_text(images)}: give at least one, as a whole number")
    found, left = [], images
    for batch in _batches(inputs, images):
        call = _call(model, batch, example).part(slice(left))
        found.append(call)
        left -= call.size or 1
        if left <= 0:
            break
    if not found:
        raise ConfigError(
            "the inputs are empty: give images, a loader, or any iterable of what the network takes"
        )
    if len(found) == 1 and (size := found[0].size or 1) > 1:
        found = [found[0].part(slice(size // 2)), found[0].part(slice(size // 2, None))]
    _check(model, found, example)
    device = device_of(model)
    return [call.to(device) for call in found]


@torch.no_grad()
def _check(model: nn.Module, calls: Sequence[Inputs], example: Inputs | None) -> None:
    """Refuse what the network does not take: of batches of one kind, one is tried."""
    tried = set()
    for number, call in enumerate(calls, 1):
        if any(x.is_meta for x in call.tensors()):
            raise ConfigError(f"call {number} of the inputs holds no numbers (it is on the meta device)")
        kind = *call.kwargs, *((x.shape[1:], x.dtype) for x in call.tensors())
        if kind not in tried:
            tried.add(kind)
            one = first_images(call, example).to(device_of(model))
            try:
                one(model)
            except Exception as error:
                raise ConfigError(
                    f"{type(model).__name__} does not take call {number} of the inputs, {one}.\n"
                    f"{first_line(error)}\n"
                    "Give batches as it takes them, of its type of numbers; single images become batches with "
                    "DataLoader(data, batch_size=64)."
                ) from error


def first_images(batch: Inputs, example: Inputs | None) -> Inputs:
    """The first images of a batch, as many as the example has: enough to see which layers run."""
    return batch.part(slice((example and example.size) or 1))


def _batches(inputs: Any, images: int) -> Iterator[Any]:
    if isinstance(inputs, Tensor):
        if not inputs.dim():
            raise ConfigError("inputs is a number: give a tensor of images, with one axis for the images")
        some = inputs[:images]
        yield from some.split(max(1, min(BATCH, len(some) // 2))) if len(some) else ()
    elif isinstance(inputs, (tuple, Mapping, Inputs)):
        yield inputs
    elif isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"):
        yield from inputs
    else:
        raise ConfigError(
            "inputs must be a tensor, a loader, or an iterable of what the network takes, not "
            f"{type(inputs).__name__}"
        )


def _call(model: nn.Module, batch: Any, example: Inputs | None) -> Inputs:
    """One batch as a call of the network."""
    if isinstance(batch, (tuple, list)):
        batch = tuple(batch)[: len(example.args) or 1 if example is not None else _positional(model)]
    elif isinstance(batch, Mapping) and example is not None and example.kwargs.keys() <= batch.keys():
        batch = {name: batch[name] for name in example.kwargs}
    if not isinstance(batch, (Tensor, tuple, Mapping, Inputs)):
        raise ConfigError(
            f"a batch of the inputs is {type(batch).__name__}: it must be a tensor, a tuple of forward's arguments "
            "or a mapping of its keyword arguments"
        )
    call = Inputs.of(batch, example.outputs if example is not None else None)
    for given, shown in zip(call.args, example.args if example is not None else (), strict=False):
        if isinstance(given, Tensor) and isinstance(shown, Tensor) and given.dim() != shown.dim():
            raise ConfigError(
                f"a batch of the inputs has shape {tuple(given.shape)}; the network takes {shown.dim()} axes, as "
                f"in {tuple(shown.shape)}. A data set of single images is given as DataLoader(data, batch_size=64)."
            )
    return call


def _positional(model: nn.Module) -> int:
    """How many arguments forward needs."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is p.empty for p in parameters))
