"""A block whose heads are all shut is dead, as any branch: its projections go, and the residual stays."""

from __future__ import annotations

import pytest
import torch
import torchvision
from harness import conforms, randomised
from torch import Tensor, nn

import chipnet
from chipnet import Structure


def of_torchvision() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3)


def of_timm() -> nn.Module:
    timm = pytest.importorskip("timm")
    small = {"depth": 2, "embed_dim": 8, "num_heads": 2, "img_size": 16, "patch_size": 8}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **small)


def of_hugging_face() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=16, patch_size=8, **small)
    return transformers.ViTForImageClassification(config)


def of_heads(s: Structure, part: str) -> Tensor:
    """Gates of values in the blocks whose site is named so."""
    gates = [site.gates[site.gates >= 0] for site in s.sites if part in site.name]
    return torch.cat([torch.from_numpy(g) for g in gates])


NETWORKS = {
    "torchvision": (of_torchvision, "layer_0.self_attention.in_proj", "layer_0.self_attention"),
    "timm": (of_timm, "blocks.0.attn.qkv", "blocks.0.attn"),
    "Hugging Face": (of_hugging_face, "layers.0.attention.v_proj", "layers.0.attention"),
}


@pytest.mark.parametrize("heads", ["narrow", "whole", "both"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_block_without_heads_is_dead(name, heads):
    build, values, block = NETWORKS[name]
    torch.manual_seed(0)
    model, x = randomised(build()), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    s = Structure(model, x, heads=heads)
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[of_heads(s, values)] = False
    assert s.connected(mask)
    ((small, plan, _),) = conforms(model, x, s, [s.canonical(mask)])
    left = sum(p.numel() for n, p in small.named_parameters() if block in n)
    if name == "torchvision":  # its projections are no modules: zeros stay, of one feature, one head, or both
        features = {"narrow": 2, "whole": 4, "both": 1}[heads]
        assert left == 3 * features * (8 + 1) + 8 * features + 8
    else:
        assert left == 0
        assert sum(block in stand_in.module for stand_in in plan.stand_ins) >= 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stream, self.norm, self.v = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 6)
        self.q, self.k, self.out, self.head = (
            nn.Linear(4, 6),
            nn.Linear(4, 6),
            nn.Linear(6, 4),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stream(x)
        y = self.norm(x)
        q, k, v = (f(y).unflatten(2, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


def test_what_a_dead_block_computes_as_worked_out_by_hand():
    torch.manual_seed(0)
    model, x = randomised(Block()), torch.randn(2, 5, 3, dtype=torch.float64)
    s = Structure(model, x)
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[of_heads(s, "v")] = False
    plan = s.plan(mask)
    small = chipnet.compact(model, plan)
    torch.testing.assert_close(small(x), model.head(model.stream(x)))
    layers = 2 * 5 * (3 * 4 + 4 * 2)  # tokens of the batch, times what is left of the stream and the head
    attention = 2 * 2 * 5 * 5 * 2  # of one feature in each head, all zeros
    assert plan.compact.macs == layers + attention
    assert plan.compact.params == 4 * 3 + 4 + 2 * 4 + 2


def test_what_stays_for_the_shape_is_opened_where_it_costs_nothing():
    """A budget that keeps some values keeps the feature too that is there in any case."""
    torch.manual_seed(0)
    model, x = randomised(Block()), torch.randn(2, 5, 3, dtype=torch.float64)
    s = Structure(model, x)
    first = int(of_heads(s, "v")[0])
    scores = torch.ones(s.gates, dtype=torch.float64)
    scores[first] = 0
    for macs in (0.9, 0.7):
        mask = s.harden(scores, {"macs": macs})
        assert mask[first] == mask[of_heads(s, "v")].any()
