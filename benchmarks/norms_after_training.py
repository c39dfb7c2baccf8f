"""What should layer norms count when a trained ViT is cut, without training: channels that stay, or all?

    python -m benchmarks.norms_after_training --seeds 0,1,2

A small ViT (48 wide, 3 blocks, 4 heads, patches of 2×2) is trained for 30 epochs on the digits of scikit-learn
(8×8). Then `chipnet.shrink` cuts it with 512 unlabelled training images, with ``norms="live"`` and with
``norms="dense"``. Squared errors are those of the outputs, relative to their squares, on those images: before and
after the refit.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import warnings
from datetime import date

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import chipnet
from chipnet.lab.data import load_data

EPOCHS, BATCH, RATE, IMAGES = 30, 64, 2e-3, 512


def images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test images, around 0, with their labels."""
    found = load_data("digits")
    train, test = ((p.images.float() / 255 - 0.3, p.labels.long()) for p in (found.train, found.test))
    return train, test


def trained(seed: int, x: Tensor, y: Tensor) -> nn.Module:
    torch.manual_seed(seed)
    net = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2
    )
    steps = EPOCHS * (len(x) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
    for _ in range(steps):
        at = torch.randint(len(x), (BATCH,))
        optimiser.zero_grad()
        F.cross_entropy(net(x[at]), y[at]).backward()
        optimiser.step()
        rate.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """In percent."""
    return 100 * float((net.eval()(x).argmax(1) == y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budgets", default="macs=0.5,macs=0.25")
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    train, test = images()
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    dense = []
    for seed in map(int, a.seeds.split(",")):
        net = trained(seed, *train)
        dense.append(accuracy(net, *test))
        for budget in a.budgets.split(","):
            for norms in ("live", "dense"):
                cut = chipnet.shrink(net, train[0][:IMAGES], budget, norms=norms)  # type: ignore[arg-type]
                row = (accuracy(cut.model, *test), cut.cut, cut.refitted)
                found.setdefault((budget, norms), []).append(row)
                print(seed, budget, norms, *(f"{v:.3g}" for v in row), flush=True)
    print(f"\ndense network: {statistics.mean(dense):.1f} %\n")
    print("| budget | norms | accuracy, % | error after the cut | after the refit |\n|---|---|---|---|---|")
    for (budget, norms), rows in found.items():
        means = [statistics.mean(column) for column in zip(*rows, strict=True)]
        print(f"| {budget} | {norms} | {means[0]:.1f} | {means[1]:.3g} | {means[2]:.3g} |")
    print(f"\n{date.today()}, torch {torch.__version__}, {platform.machine()}, seeds {a.seeds}")


if __name__ == "__main__":
    main()
