"""Segmentation: a small U-Net finds squares; per-pixel loss, Dice beside it.

python examples/segmentation.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipnet


def block(read: int, write: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(read, write, 3, padding=1), nn.BatchNorm2d(write), nn.ReLU())


class UNet(nn.Module):
    """Two scales; the upper one is concatenated to what comes back up."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down, self.deep = block(1, width), block(width, 2 * width)
        self.up, self.out = nn.ConvTranspose2d(2 * width, width, 2, stride=2), block(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = self.up(self.deep(F.max_pool2d(skip, 2)))
        return self.head(self.out(torch.cat([skip, deep], 1)))


def squares(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images with one bright square each, and the squares."""
    at = torch.randint(0, 10, (count, 2), generator=generator)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    dy, dx = y - at[:, 0, None, None], x - at[:, 1, None, None]
    target = ((dy >= 0) & (dy < 6) & (dx >= 0) & (dx < 6)).float()[:, None]
    return target + 0.3 * torch.randn(count, 1, 16, 16, generator=generator), target


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice


def main(steps: int = 150) -> nn.Module:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model: nn.Module = UNet()
    pruner = None
    for phase in ("train", "prune", "finetune"):
        if phase == "prune":
            pruner = chipnet.Pruner(model, torch.zeros(1, 1, 16, 16), {"macs": 0.5}, steps=steps)
        if phase == "finetune":
            assert pruner is not None
            plan = pruner.harden()
            pruner.detach()
            model, pruner = chipnet.compact(model, plan), None
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(steps):
            images, target = squares(16, generator)
            loss = loss_of(model(images), target)
            if pruner is not None:
                loss = loss + pruner.loss()
            loss.backward()
            optimizer.step()
            if pruner is not None:
                pruner.step()
            optimizer.zero_grad()
    images, target = squares(64, generator)
    found = model.eval()(images) > 0
    iou = (found & (target > 0)).sum() / (found | (target > 0)).sum()
    print(f"IoU {iou:.2f} with {plan.compact.macs / plan.dense.macs:.1%} of the MACs")
    assert plan.compact.macs <= 0.5 * plan.dense.macs
    return model


if __name__ == "__main__":
    main()
