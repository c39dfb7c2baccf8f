"""How small can networks with attention become, and are they exact there? Small configurations, random weights.

    python -m benchmarks.smallest --networks torchvision_vit,benchmarks.hugging_face:segformer

For each network: the smallest part of its MACs that a connected network of its class can have. Then random masks
that meet 50 and 25 % are cut in float64: the difference of masked and compact outputs, relative to the outputs, and
whether PyTorch counts the MACs that the plan says.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Callable
from datetime import date

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

import chipnet
from benchmarks.zoo import build, macs, randomise
from chipnet.graph.facts import Heads

Made = tuple[nn.Module, Tensor]


def torchvision_vit() -> Made:
    net = torchvision.models.VisionTransformer(32, 8, 2, 4, 48, 96, num_classes=10)
    return net, torch.randn(2, 3, 32, 32)


def torchvision_swin() -> Made:
    return SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10), torch.randn(2, 3, 64, 64)


def torchvision_swin_v2() -> Made:
    new = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    net = SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10, **new)
    return net, torch.randn(2, 3, 64, 64)


def timm_vit_registers() -> Made:
    small = {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 32, "patch_size": 8}
    net = timm.create_model("vit_tiny_patch16_224", num_classes=10, init_values=1e-2, reg_tokens=2, **small)
    return net, torch.randn(2, 3, 32, 32)


OWN: dict[str, Callable[[], Made]] = {
    f.__name__: f for f in (torchvision_vit, torchvision_swin, torchvision_swin_v2, timm_vit_registers)
}
HUGGING_FACE = (
    "vit", "deit", "dinov2", "swin", "segformer", "convnext", "convnextv2", "bert", "distilbert", "t5",
    "llama", "qwen3", "gemma", "gptneox", "gpt2",
)  # fmt: skip


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """One of this file, or what `benchmarks.zoo` builds."""
    if name not in OWN:
        return build(name)
    torch.manual_seed(0)
    net, x = OWN[name]()
    randomise(net)
    return net.eval(), (x,)


def row(name: str, heads: Heads) -> str:
    net, inputs = made(name)
    structure = chipnet.Structure(net, inputs, heads=heads)
    smallest = structure.smallest()
    cells = [name, f"{100 * smallest['macs'] / macs(net, inputs):.1f} %"]
    net, inputs = net.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs)
    scores = torch.rand(structure.gates, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for part in (0.5, 0.25):
        try:
            plan = structure.plan(structure.harden(scores, {"macs": part}))
        except chipnet.BudgetError:
            cells.append("out of reach")
            continue
        small = chipnet.compact(net, plan, verify=False)
        difference, scale = chipnet.verify_compact(net, small, plan, inputs)
        counted = "" if macs(small, inputs) == plan.compact.macs else ", MACs differ"
        cells.append(f"{difference / scale:.0e}{counted}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*OWN, *(f"benchmarks.hugging_face:{name}" for name in HUGGING_FACE)]
    parser.add_argument("--networks", default=",".join(names))
    parser.add_argument("--heads", default="narrow", choices=["narrow", "whole", "both"])
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| network | smallest part of the MACs | masked = compact at 50 % | at 25 % |")
    print("|---|---|---|---|")
    for name in a.networks.split(","):
        print(row(name, a.heads), flush=True)
    print(f"\n{date.today()}, torch {torch.__version__}, {platform.machine()}")


if __name__ == "__main__":
    main()
