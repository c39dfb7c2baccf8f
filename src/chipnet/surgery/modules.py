"""Modules that take the place of dead ones. Each is of the class that it stands for: whoever asks a layer for its
kind, its sizes, its weight or its statistics (fusion of convolution and norm, exporters) finds them. And norms that
count channels which are gone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.text import amount
from chipnet._util.torch_private import ConvNd, ConvTransposeNd, buffers_of, load_plainly, parameters_of
from chipnet.errors import PlanError
from chipnet.graph.facts import LiveNorm
from chipnet.graph.standard import STANDARD_MIX, STANDARD_NORM, STANDARD_POOL
from chipnet.surgery.plan import StandIn


class _StandIn(nn.Module):
    """What all have in common: the attributes of the module that is replaced, and none of its tensors or hooks."""

    def __init__(self, old: nn.Module) -> None:
        nn.Module.__init__(self)
        internal = {*vars(self), "forward"}
        vars(self).update({k: v for k, v in vars(old).items() if k not in internal})
        self.train(old.training)


class Constant(_StandIn):
    """Stands for a convolution or linear layer that reads nothing: its bias, or zeros, at the right size.

    Shape: as the layer it replaces; no multiply-accumulates, no parameters but ``bias``. ``weight`` is one zero,
    expanded to the shape of the layer's, which may be scaled; it is never read.
    """

    bias: nn.Parameter | None
    weight: Tensor

    def __init__(self, layer: nn.Module, channels: int, bias: nn.Parameter | None) -> None:
        super().__init__(layer)
        self.channels = channels
        self.register_parameter("bias", bias)
        weight = parameters_of(layer)["weight"]
        assert weight is not None
        self.register_buffer("weight", weight.new_zeros(()).expand(weight.shape), persistent=False)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = input
        if not isinstance(self, ConvNd):
            out = x.new_zeros(*x.shape[:-1], self.channels)
            return out if self.bias is None else out + self.bias
        kernel, stride, padding, dilation = self.kernel_size, self.stride, self.padding, self.dilation
        sizes: list[int] = []
        for i, n in enumerate(x.shape[-len(kernel) :]):
            reach = dilation[i] * (kernel[i] - 1)
            pad = 2 * int(padding[i]) if not isinstance(padding, str) else (reach if padding == "same" else 0)
            if isinstance(self, ConvTransposeNd):
                sizes.append((n - 1) * stride[i] - pad + reach + self.output_padding[i] + 1)
            else:
                sizes.append((n + pad - reach - 1) // stride[i] + 1)
        out = x.new_zeros(*x.shape[: -len(kernel) - 1], self.channels, *sizes)
        return out if self.bias is None else out + self.bias.reshape(-1, *[1] * len(kernel))

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class Zeros(_StandIn):
    """Stands for a normalisation all of whose channels are shut. Weight and bias are zeros that nobody trains,
    running statistics those of zeros: what they are folded into gives zeros too."""

    _weight: Tensor | None
    _bias: Tensor | None
    _load_from_state_dict = load_plainly  # norms add statistics that old files lack

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm)
        for name, buffer in buffers_of(norm).items():
            like = None if buffer is None else torch.zeros_like(buffer)
            self.register_buffer(
                name, like.fill_(1) if like is not None and name == "running_var" else like, False
            )
        for name in ("weight", "bias"):
            p = parameters_of(norm).get(name)
            self.register_buffer(f"_{name}", torch.zeros_like(p) if p is not None else None, persistent=False)

    @property
    def weight(self) -> nn.Parameter | None:
        """Zeros; no parameter of the network."""
        return nn.Parameter(self._weight, requires_grad=False) if self._weight is not None else None

    @property
    def bias(self) -> nn.Parameter | None:
        """Zeros; no parameter of the network."""
        return nn.Parameter(self._bias, requires_grad=False) if self._bias is not None else None

    def forward(self, input: Tensor) -> Tensor:
        return torch.zeros_like(input)

    def extra_repr(self) -> str:
        return ""


class DenseNorm(nn.Module):
    """A norm over channels of which some are gone: its statistics count them, as zeros.

    Of n channels k are left. With s = sum x and q = sum (x - s / n)^2 of those, and p positions that the statistics
    are over, the mean is s / (n p) and the variance (q + (n - k) p mean^2) / (n p).

    Args:
        old: the norm that it replaces, with its cut weight and bias, which keep their names.
        norm: what is known of it.
        channels: n.
    """

    def __init__(self, old: nn.Module, norm: LiveNorm, channels: int) -> None:
        super().__init__()
        self.axis, self.over, self.centred, self.eps = norm.axis, norm.over, norm.centred, norm.eps
        self.channels, self.names = channels, (norm.weight, norm.bias)
        for name in self.names:
            if name is not None:
                self.register_parameter(name, parameters_of(old)[name])
        self.train(old.training)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., k, ...]``, as it reads; ``k`` channels lie along ``axis``."""
        x = input
        positions = math.prod(x.shape[a] for a in self.over) // max(x.shape[self.axis], 1)
        gone = (self.channels - x.shape[self.axis]) * positions
        n = self.channels * positions
        squares: Tensor | float = 0.0  # of zeros, less the mean
        if self.centred:
            mean = x.sum(self.over, keepdim=True) / n
            x, squares = x - mean, gone * mean.square()
        variance = (x.square().sum(self.over, keepdim=True) + squares) / n
        x = x * (variance + (torch.finfo(x.dtype).eps if self.eps is None else self.eps)).rsqrt()
        weight, bias = (None if name is None else self._along(getattr(self, name)) for name in self.names)
        x = x if weight is None else x * weight
        return x if bias is None else x + bias

    def _along(self, p: Tensor) -> Tensor:
        return p.reshape([-1] + [1] * (-1 - self.axis)) if p.dim() == 1 else p

    def extra_repr(self) -> str:
        return f"channels={self.channels}, axis={self.axis}, over={self.over}, eps={self.eps}"


class EmptyPool(_StandIn):
    """A pooling that is given no channels, which PyTorch's refuse."""

    def forward(self, input: Tensor) -> Any:
        out = super().forward(input.new_zeros(*input.shape[:1], 1, *input.shape[2:]))
        return tuple(o[:, :0] for o in out) if isinstance(out, tuple) else out[:, :0]


def _of(kind: type[nn.Module], base: type[_StandIn]) -> type[_StandIn]:
    """The stand-in for a class of torch.nn: a subclass of both, which pickle finds in this module."""
    name = f"{base.__name__}{kind.__name__}"
    return type(
        base.__name__, (base, kind), {"__module__": __name__, "__qualname__": name, "__doc__": base.__doc__}
    )


_CLASSES = {
    kind: _of(kind, base)
    for base, kinds in ((Constant, STANDARD_MIX), (Zeros, STANDARD_NORM), (EmptyPool, STANDARD_POOL))
    for kind in kinds
}
globals().update({cls.__qualname__: cls for cls in _CLASSES.values()})


def stand_in(old: nn.Module, s: StandIn) -> nn.Module:
    """What a plan puts in the place of a module that has been cut."""
    cls: Any = next((made for kind, made in _CLASSES.items() if isinstance(old, kind)), _StandIn)
    base = {"pool": EmptyPool, "norm": Zeros}.get(s.kind, Constant)
    weight = parameters_of(old).get("weight")
    rows = weight.shape[0] if weight is not None else s.channels
    if weight is not None and isinstance(old, ConvTransposeNd):
        rows = old.out_channels  # the weight tells of one group
    if (
        not issubclass(cls, base)
        or rows != s.channels
        or (s.kind == "constant" and "bias" not in parameters_of(old))
    ):
        raise PlanError(
            f"nothing of {amount(s.channels, 'channel')} can stand in for '{s.module}', {type(old).__name__}"
        )
    if s.kind in ("pool", "norm"):
        return cls(old)
    return cls(old, s.channels, parameters_of(old)["bias"] if s.kind == "constant" else None)
