"""Small networks of Hugging Face from configs, with random weights, for `benchmarks.zoo`.

    python -m benchmarks.zoo --models benchmarks.hugging_face:vit benchmarks.hugging_face:bert --target 0.25

Each function returns a network and its inputs. Outputs are scores; where a network gives its stream, a linear layer
reads the mean over tokens: as an output the stream would stay whole.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

Made = tuple[nn.Module, Tensor]

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
PATCHES = {"image_size": 32, "patch_size": 8, **SMALL}
TEXT = {"vocab_size": 64, "max_position_embeddings": 16, **SMALL}
CONVNEXT: dict[str, Any] = {"hidden_sizes": [16, 24, 32], "depths": [1, 1, 2], "num_stages": 3}


class First(nn.Module):
    """The first output of a network that is called by the name of its input, or what a head makes of its tokens."""

    def __init__(self, net: Any, name: str, head: int = 0, **options: Any) -> None:
        super().__init__()
        self.net, self.name, self.options = net, name, options
        self.head = nn.Linear(head, 5) if head else None

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.net(**{self.name: x}, **self.options)[0]
        return first if self.head is None else self.head(first.mean(1))


def _seen(net: Any, side: int, head: int = 0) -> Made:
    return First(net, "pixel_values", head), torch.randn(2, 3, side, side)


def _read(net: Any, head: int = 0, **options: Any) -> Made:
    return First(net, "input_ids", head, **options), torch.randint(3, 64, (2, 16))


def vit() -> Made:
    return _seen(hf.ViTForImageClassification(hf.ViTConfig(**PATCHES, num_labels=10)), 32)


def deit() -> Made:
    return _seen(hf.DeiTForImageClassification(hf.DeiTConfig(**PATCHES, num_labels=10)), 32)


def swin() -> Made:
    config = hf.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=24,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=10,
    )
    return _seen(hf.SwinForImageClassification(config), 64)


def convnext() -> Made:
    return _seen(hf.ConvNextForImageClassification(hf.ConvNextConfig(**CONVNEXT, num_labels=10)), 64)


def convnextv2() -> Made:
    return _seen(hf.ConvNextV2ForImageClassification(hf.ConvNextV2Config(**CONVNEXT, num_labels=10)), 64)


def segformer() -> Made:
    config = hf.SegformerConfig(
        num_encoder_blocks=3,
        depths=[1, 1, 1],
        sr_ratios=[4, 2, 1],
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[1, 2, 4],
        patch_sizes=[7, 3, 3],
        strides=[4, 2, 2],
        mlp_ratios=[2, 2, 2],
        decoder_hidden_size=32,
        num_labels=10,
    )
    return _seen(hf.SegformerForSemanticSegmentation(config), 64)


def clip_vision() -> Made:
    return _seen(hf.CLIPVisionModel(hf.CLIPVisionConfig(**PATCHES)), 32, head=48)


def clip_text() -> Made:
    return _read(hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT, eos_token_id=2, bos_token_id=1)), head=48)


def whisper() -> Made:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = hf.WhisperConfig(
        d_model=48,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=96,
        max_source_positions=16,
        num_mel_bins=16,
    )
    return First(WhisperEncoder(config), "input_features", head=48), torch.randn(2, 16, 32)


def bert(eps: float = 1e-12) -> Made:
    return _read(hf.BertForSequenceClassification(hf.BertConfig(**TEXT, num_labels=5, layer_norm_eps=eps)))


def bert_1e5() -> Made:
    return bert(1e-5)


def mamba() -> Made:
    config = hf.MambaConfig(
        vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2, conv_kernel=4, time_step_rank=4
    )
    return _read(hf.MambaForCausalLM(config), use_cache=False)


def llama() -> Made:
    config = hf.LlamaConfig(**{**TEXT, "num_hidden_layers": 4}, num_key_value_heads=2)
    return _read(hf.LlamaForCausalLM(config), use_cache=False)


def qwen3() -> Made:
    config = hf.Qwen3Config(**TEXT, num_key_value_heads=2, head_dim=12)
    return _read(hf.Qwen3ForCausalLM(config), use_cache=False)


def gemma() -> Made:
    config = hf.GemmaConfig(**TEXT, num_key_value_heads=1, head_dim=12)
    return _read(hf.GemmaForCausalLM(config), use_cache=False)


def gptneox() -> Made:
    return _read(hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**TEXT)), use_cache=False)


def gpt2() -> Made:
    sizes = {"vocab_size": 64, "n_positions": 16, "n_embd": 48, "n_layer": 2, "n_head": 4}
    return _read(hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)), use_cache=False)


def t5() -> Made:
    sizes = {"vocab_size": 64, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    return _read(hf.T5EncoderModel(hf.T5Config(**sizes)), head=48)


def dinov2() -> Made:
    return _seen(hf.Dinov2ForImageClassification(hf.Dinov2Config(**PATCHES, num_labels=10)), 32)


def distilbert() -> Made:
    sizes = {"vocab_size": 64, "max_position_embeddings": 16, "dim": 48, "n_layers": 2, "n_heads": 4}
    config = hf.DistilBertConfig(**sizes, hidden_dim=96, num_labels=5)
    return _read(hf.DistilBertForSequenceClassification(config))


class Boxes(nn.Module):
    """A detector's scores and boxes."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(pixel_values=x)
        return out.logits, out.pred_boxes


RESNET: dict[str, Any] = {
    "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"
}  # fmt: skip
DETECTOR: dict[str, Any] = {"d_model": 32, "num_queries": 6, "decoder_layers": 2, "num_labels": 5}


def detr() -> Made:
    config = hf.DetrConfig(
        **DETECTOR,
        backbone_config=hf.ResNetConfig(**RESNET, out_features=["stage4"]),
        backbone=None,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        encoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
    )
    return Boxes(hf.DetrForObjectDetection(config)), torch.randn(1, 3, 64, 64)


def rt_detr() -> Made:
    stages = ["stage2", "stage3", "stage4"]
    config = hf.RTDetrConfig(
        **DETECTOR,
        backbone_config=hf.RTDetrResNetConfig(**RESNET, out_features=stages),
        use_pretrained_backbone=False,
        encoder_in_channels=[16, 24, 32],
        encoder_hidden_dim=32,
        encoder_ffn_dim=48,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        decoder_in_channels=[32, 32, 32],
        num_denoising=0,
    )
    return Boxes(hf.RTDetrForObjectDetection(config)), torch.randn(1, 3, 64, 64)


class WithText(nn.Module):
    """A network that reads an image or sound beside a text, which is part of it."""

    def __init__(self, net: Any, name: str, text: str, output: str, **options: Any) -> None:
        super().__init__()
        self.net, self.name, self.text, self.output, self.options = net, name, text, output, options
        self.register_buffer("ids", torch.arange(3, 11).expand(2, -1).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        given = {self.name: x, self.text: self.ids}
        result: Tensor = getattr(self.net(**given, **self.options), self.output)
        return result


def clip() -> Made:
    text = {**TEXT, "bos_token_id": 1, "eos_token_id": 2}
    net = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=PATCHES, projection_dim=24))
    return WithText(net, "pixel_values", "input_ids", "logits_per_image"), torch.randn(2, 3, 32, 32)


def whisper_decoder() -> Made:
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = hf.WhisperConfig(
        vocab_size=64,
        d_model=48,
        **layers,
        **heads,
        max_source_positions=16,
        max_target_positions=8,
        num_mel_bins=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
    )
    net = hf.WhisperForConditionalGeneration(config)
    x = torch.randn(2, 16, 32)
    return WithText(net, "input_features", "decoder_input_ids", "logits", use_cache=False), x
