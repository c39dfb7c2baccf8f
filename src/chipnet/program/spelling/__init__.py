"""Which modules are captured, and shipped, spelt out? Those whose forward has a number that no surgery can change.

``nn.MultiheadAttention`` reshapes to ``embed_dim`` what it reads and what its heads give, so neither can become
narrower without the other. Its computation does not ask for that. The response norm of Hugging Face's ConvNeXtV2
adds a literal to a mean over channels. So in copies of a network (what is captured, what is tried, what ships) such
a module has a class of ours: a subclass with the same parameters under the same names, whose forward computes the
same and takes every width from its tensors or from ``widths``, and such a literal from an attribute. The user's
network is never changed. What ships has its own class again where no such number of a module has changed.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

SPELT = {
    "torch.nn.modules.activation.MultiheadAttention": "attention:Attention",
    "torchvision.models.swin_transformer.ShiftedWindowAttention": "swin:WindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": "swin:WindowAttentionV2",
    "transformers.models.convnextv2.modeling_convnextv2.ConvNextV2GRN": "convnextv2:ResponseNorm",
}
"""Classes whose forward has a number that no surgery can change, and their spelling here."""


def spell(model: nn.Module) -> nn.Module:
    """Give every module of such a class the one of ours, in place; returns ``model``. Subclasses stay as they are:
    nobody knows what they compute.

    Example:
        >>> model = nn.Sequential(nn.MultiheadAttention(8, 2))
        >>> type(spell(model)[0]).__name__, type(unspell(model)[0]).__name__
        ('Attention', 'MultiheadAttention')
    """
    for module in model.modules():
        if (spelling := _spelling(type(module))) is not None:
            module.__class__ = spelling
            spelling.begin(module)
    return unnested(model)


def _spelling(kind: type[nn.Module]) -> Any:
    """The class of ours for one of theirs; None where there is none."""
    place = SPELT.get(f"{kind.__module__}.{kind.__qualname__}")
    if place is None:
        return None
    file, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{__name__}.{file}"), name)


def has_number(module: nn.Module, name: str) -> bool:
    """Has a module an attribute of this name, spelt out at least?"""
    return hasattr(module, name) or name in getattr(_spelling(type(module)), "__annotations__", ())


def unnested(model: nn.Module) -> nn.Module:
    """Keep PyTorch's encoders, in place, from making nested tensors of tokens with padding: only its own fused
    layers take them, and give zeros for padding where all others compute something. Returns ``model``."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return model


def unspell(model: nn.Module) -> nn.Module:
    """Give modules that are spelt out their own class back, in place, where that computes the same with the widths
    that they have; returns ``model``."""
    layers = [m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    fused = {id(m.self_attn): m for m in layers}
    for module in model.modules():
        if is_spelt(module) and module.is_unchanged() and _can_be_fused(fused.get(id(module))):  # type: ignore[operator]
            kind: Any = type(module).__bases__[-1]
            module.end()  # type: ignore[operator]
            module.__class__ = kind
    return model


def _can_be_fused(layer: nn.TransformerEncoderLayer | None) -> bool:
    """Are all parts of a layer PyTorch's? Its fused path reads their parameters, and stand-ins may have none. It is
    not taken where attention is spelt out."""
    parts = () if layer is None else (layer.linear1, layer.linear2, layer.norm1, layer.norm2)
    return all(type(part) in (nn.Linear, nn.LayerNorm) for part in parts)


def is_spelt(module: nn.Module) -> bool:
    """Has a module a class of ours?"""
    return type(module).__module__.startswith(f"{__name__}.")
