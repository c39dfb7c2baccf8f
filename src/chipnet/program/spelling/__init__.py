"""Which modules are captured, and shipped, spelt out? Those whose forward has one number for two widths.

``nn.MultiheadAttention`` reshapes to ``embed_dim`` what it reads and what its heads give, so neither can become
narrower without the other. Its computation does not ask for that. So in copies of a network (what is captured, what
is tried, what ships) such a module has a class of ours: a subclass with the same parameters under the same names,
whose forward computes the same and takes every width from its tensors or from ``widths``. The user's network is
never changed. What ships has its own class again where no width of such a module has changed.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

SPELT = {
    "torch.nn.modules.activation.MultiheadAttention": "attention:Attention",
    "torchvision.models.swin_transformer.ShiftedWindowAttention": "swin:WindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": "swin:WindowAttentionV2",
}
"""Classes whose forward has one number for two widths, and their spelling here."""


def spell(model: nn.Module) -> nn.Module:
    """Give every module of such a class the one of ours, in place; returns ``model``. Subclasses stay as they are:
    nobody knows what they compute.

    Example:
        >>> model = nn.Sequential(nn.MultiheadAttention(8, 2))
        >>> type(spell(model)[0]).__name__, type(unspell(model)[0]).__name__
        ('Attention', 'MultiheadAttention')
    """
    for module in model.modules():
        kind = type(module)
        place = SPELT.get(f"{kind.__module__}.{kind.__qualname__}")
        if place is not None:
            file, _, name = place.partition(":")
            spelling: Any = getattr(importlib.import_module(f"{__name__}.{file}"), name)
            module.__class__ = spelling
            spelling.begin(module)
    return unnested(model)


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
