"""Detection without anchors: every cell says whether an object's centre is in it, its class and its size.

Outputs are a dict, the loss has three parts, and half of the network (the stem) is frozen.

python examples/detection.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipnet


class Detector(nn.Module):
    def __init__(self, classes: int = 2, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        )  # fmt: skip
        self.there, self.kind = nn.Conv2d(2 * width, 1, 1), nn.Conv2d(2 * width, classes, 1)
        self.size = nn.Conv2d(2 * width, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(self.stem(x))
        return {"there": self.there(features), "kind": self.kind(features), "size": self.size(features)}


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One bright (class 1) or dark (class 0) square a picture: images, cells of the centres, classes, sizes."""
    images = 0.1 * torch.randn(count, 1, 16, 16, generator=generator)
    cells = torch.randint(1, 3, (count, 2), generator=generator)
    kinds = torch.randint(0, 2, (count,), generator=generator)
    sizes = torch.randint(1, 4, (count,), generator=generator)
    for image, (r, c), kind, size in zip(images, cells.tolist(), kinds.tolist(), sizes.tolist(), strict=True):
        image[0, 4 * r + 2 - size : 4 * r + 2 + size, 4 * c + 2 - size : 4 * c + 2 + size] += 2 * kind - 1
    return images, cells, kinds, sizes


def loss_of(out: dict[str, Tensor], cells: Tensor, kinds: Tensor, sizes: Tensor) -> Tensor:
    n = torch.arange(len(cells))
    target = torch.zeros_like(out["there"])
    target[n, 0, cells[:, 0], cells[:, 1]] = 1
    at = (n, slice(None), cells[:, 0], cells[:, 1])
    return (
        F.binary_cross_entropy_with_logits(out["there"], target, pos_weight=torch.tensor(10.0))
        + F.cross_entropy(out["kind"][at], kinds)
        + F.smooth_l1_loss(out["size"][at][:, 0], sizes.float())
    )


def main(steps: int = 200) -> nn.Module:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model: nn.Module = Detector()
    model.stem.requires_grad_(False)
    pruner = None
    for phase in ("train", "prune", "finetune"):
        if phase == "prune":
            # A frozen layer can be pruned like any other; here it shall stay as it is.
            pruner = chipnet.Pruner(
                model, torch.zeros(1, 1, 16, 16), "macs=0.5", steps=steps, ignore=["stem*"]
            )
        if phase == "finetune":
            assert pruner is not None
            plan = pruner.harden()
            pruner.detach()
            model, pruner = chipnet.compact(model, plan), None
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        for _ in range(steps):
            images, *targets = scenes(16, generator)
            loss = loss_of(model(images), *targets)
            if pruner is not None:
                loss = loss + pruner.loss()
            loss.backward()
            optimizer.step()
            if pruner is not None:
                pruner.step()
            optimizer.zero_grad()
    images, cells, kinds, _ = scenes(64, generator)
    out = model.eval()(images)
    best = out["there"].flatten(1).argmax(1)
    right = (best == cells[:, 0] * 4 + cells[:, 1]) & (
        out["kind"].flatten(2).argmax(1)[torch.arange(64), best] == kinds
    )
    print(f"{right.float().mean():.0%} found, with {plan.compact.macs / plan.dense.macs:.1%} of the MACs")
    assert plan.compact.macs <= 0.5 * plan.dense.macs
    assert not model.stem[0].weight.requires_grad
    return model


if __name__ == "__main__":
    main()
