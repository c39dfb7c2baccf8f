"""A call of a layer with a weight, as a matrix product: rows of inputs times the weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CHUNK = 2**23
"""Elements of the rows that are in memory at once: 64 MiB in float64."""


@dataclass(frozen=True)
class LayerProduct:
    """What a layer's operator does with its weight.

    A convolution is a product of the weight with windows of the input; a transposed one is a convolution, with the
    kernel turned round, of an input with zeros in between. Groups are products side by side.

    Attributes:
        operator: its name, such as ``conv2d``.
        shape: of the weight.
        stride, dilation: a number for every axis of the image.
        padding: for every axis, before and after; of a transposed convolution, that of the convolution it is.
        groups: of channels.
    """

    operator: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @classmethod
    def of(cls, operator: str, given: Mapping[str, Any]) -> LayerProduct:
        """The product that a call with these arguments is. `bound` gives them."""
        shape = tuple(given["weight"].shape)
        if operator == "linear":
            return cls(operator, shape)
        kernel = shape[2:]

        def each(name: str, default: int) -> tuple[int, ...]:
            value = given.get(name, default)
            values = (value,) if isinstance(value, int) else tuple(value)
            return values * (len(kernel) // len(values))

        dilation = each("dilation", 1)
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if given.get("padding") == "same":
            padding = tuple((r // 2, r - r // 2) for r in reach)
        else:
            around = (0,) * len(kernel) if given.get("padding") == "valid" else each("padding", 0)
            padding = tuple((p, p) for p in around)
        if "transpose" in operator:
            more = each("output_padding", 0)
            padding = tuple((r - p, r - p + o) for r, (p, _), o in zip(reach, padding, more, strict=True))
        return cls(operator, shape, each("stride", 1), padding, dilation, int(given.get("groups", 1)))

    @property
    def transposed(self) -> bool:
        return "transpose" in self.operator

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def columns(self) -> int:
        """How many numbers of the input one output reads."""
        inputs = self.shape[0] // self.groups if self.transposed else self.shape[1]
        return inputs * math.prod(self.kernel)

    def axis(self, output: Tensor) -> int:
        """The axis of channels in an output, or an input."""
        return output.dim() - len(self.kernel) - 1

    def kept(self, keep: Mapping[int, Sequence[int]]) -> Sequence[int] | None:
        """Which outputs are left where of the weight's axes the indices ``keep`` are; None for all."""
        if not self.transposed or self.groups == 1:
            return keep.get(1 if self.transposed else 0)
        inputs = keep.get(0, range(self.shape[0]))
        groups = sorted({i // (self.shape[0] // self.groups) for i in inputs})
        return [g * self.shape[1] + i for g in groups for i in keep.get(1, range(self.shape[1]))]

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``[groups, columns, outputs of a group]``, float64."""
        weight = exact(weight.detach())
        if self.transposed:
            weight = weight.unflatten(0, (self.groups, -1)).flip([*range(3, 3 + len(self.kernel))])
            return weight.movedim(2, -1).flatten(1, -2)
        return weight.unflatten(0, (self.groups, -1)).flatten(2).mT

    def weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`."""
        if self.transposed:
            inputs = self.shape[0] // self.groups
            turned = matrix.unflatten(1, (inputs, *self.kernel)).movedim(-1, 2)
            return turned.flip([*range(3, 3 + len(self.kernel))]).flatten(0, 1)
        return matrix.mT.reshape(self.shape)

    def pairs(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and outputs of a call as what a product reads, ``[groups, positions, columns]``, and gives,
        ``[groups, positions, outputs of a group]``, in float64, a few images at a time."""
        if not self.kernel:
            x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
            step = max(1, _CHUNK // max(x.shape[1], 1))
            for some, given in zip(x.split(step), y.split(step), strict=True):
                yield exact(some)[None], exact(given)[None]
            return
        if x.dim() < len(self.shape):
            x, y = x[None], y[None]
        step = max(1, _CHUNK // max(math.prod(y.shape[2:]) * self.columns * self.groups, 1))
        for some, given in zip(x.split(step), y.split(step), strict=True):
            given = exact(given).unflatten(1, (self.groups, -1)).movedim(1, 0).movedim(2, -1)
            yield self._windows(some), given.flatten(1, -2)

    def _windows(self, x: Tensor) -> Tensor:
        x, stride = exact(x), self.stride
        if self.transposed:
            sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
            spread = x.new_zeros(*x.shape[:2], *sizes)
            there: Any = (..., *(slice(None, None, s) for s in stride))
            spread[there] = x
            x, stride = spread, (1,) * len(stride)
        x = F.pad(x, [n for both in reversed(self.padding) for n in both])
        for axis, (k, s, d) in enumerate(zip(self.kernel, stride, self.dilation, strict=True), 2):
            x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
        images = len(self.kernel)
        x = x.unflatten(1, (self.groups, -1)).movedim(1, 0)  # [groups, batch, channels, *out, *kernel]
        x = x.movedim(2, 2 + images)
        return x.flatten(2 + images).flatten(1, 1 + images)


def bound(operator: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a layer's operator, by name."""
    names = _TRANSPOSED if "transpose" in operator else _CONV
    return {**dict(zip(names, args, strict=False)), **kwargs}


def exact(x: Tensor) -> Tensor:
    """A tensor in float64; on the CPU where the device has no such numbers."""
    return (x.cpu() if x.device.type == "mps" else x).double()
