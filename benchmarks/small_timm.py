"""Small networks of timm that mix tokens, with random weights, for `benchmarks.smallest` and `benchmarks.zoo`.

    python -m benchmarks.smallest --networks benchmarks.small_timm:mixer,benchmarks.small_timm:gmlp

Each function returns a network and its inputs. Names are those of timm's papers; widths are small.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from timm.models import metaformer, mlp_mixer
from timm.models.convmixer import ConvMixer
from torch import Tensor, nn

Made = tuple[nn.Module, Tensor]

TOKENS: dict[str, Any] = {
    "num_blocks": 2,
    "embed_dim": 32,
    "img_size": 32,
    "patch_size": 8,
    "num_classes": 10,
}
STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 64), "num_classes": 10}


def _seen(net: nn.Module, side: int) -> Made:
    return net, torch.randn(2, 3, side, side)


def _named(name: str, side: int, **options: Any) -> Made:
    return _seen(timm.create_model(name, num_classes=10, **options), side)


def mixer() -> Made:
    return _seen(mlp_mixer.MlpMixer(**TOKENS), 32)


def gmixer() -> Made:
    return _seen(mlp_mixer.MlpMixer(mlp_layer=mlp_mixer.GluMlp, act_layer=nn.SiLU, **TOKENS), 32)


def resmlp() -> Made:
    block = {"block_layer": mlp_mixer.ResBlock, "norm_layer": mlp_mixer.Affine, "mlp_ratio": 4}
    return _seen(mlp_mixer.MlpMixer(**block, **TOKENS), 32)


def gmlp() -> Made:
    block = {"block_layer": mlp_mixer.SpatialGatingBlock, "mlp_layer": mlp_mixer.GatedMlp, "mlp_ratio": 4}
    return _seen(mlp_mixer.MlpMixer(**block, **TOKENS), 32)


def poolformer() -> Made:
    first: dict[str, Any] = {
        "mlp_act": nn.GELU,
        "mlp_bias": True,
        "layer_scale_init_values": 1e-5,
        "res_scale_init_values": None,
    }
    mixer = {"token_mixers": metaformer.Pooling, "norm_layers": metaformer.GroupNorm1, "use_mlp_head": False}
    return _seen(metaformer.MetaFormer(**first, **mixer, downsample_norm=None, **STAGES), 64)


def poolformerv2() -> Made:
    mixer = {"token_mixers": metaformer.Pooling, "norm_layers": metaformer.GroupNorm1NoBias}
    return _seen(metaformer.MetaFormer(**mixer, use_mlp_head=False, **STAGES), 64)


def convformer() -> Made:
    mixer = {"token_mixers": metaformer.SepConv, "norm_layers": metaformer.LayerNorm2dNoBias}
    return _seen(metaformer.MetaFormer(**mixer, **STAGES), 64)


def caformer() -> Made:
    mixers = [metaformer.SepConv] * 2 + [metaformer.Attention] * 2
    norms = [metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2
    return _seen(metaformer.MetaFormer(token_mixers=mixers, norm_layers=norms, **STAGES), 64)


def convmixer() -> Made:
    return _seen(ConvMixer(dim=32, depth=2, num_classes=10), 32)


mambaout = partial(_named, "mambaout_femto", 64, depths=(1, 1, 1, 1), dims=(16, 24, 32, 48))
sequencer = partial(_named, "sequencer2d_s", 64, layers=(1, 1, 1, 1), img_size=64)
convnext = partial(_named, "convnext_atto", 64, depths=(1, 1, 2, 1), dims=(16, 24, 32, 48))
convnextv2 = partial(_named, "convnextv2_atto", 64, depths=(1, 1, 2, 1), dims=(16, 24, 32, 48))
mobilevit = partial(_named, "mobilevit_xxs", 64)
mobilevitv2 = partial(_named, "mobilevitv2_050", 64)
mobilenetv4_hybrid = partial(_named, "mobilenetv4_hybrid_medium", 64)
efficientformer = partial(_named, "efficientformer_l1", 224)
levit = partial(_named, "levit_128s", 224)
deit = partial(_named, "deit_tiny_patch16_224", 64, img_size=64)
swin = partial(_named, "swin_tiny_patch4_window7_224", 56, img_size=56)
