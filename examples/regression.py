"""Regression from two inputs, a picture and numbers, with a moving average (EMA) of the weights.

python examples/regression.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import chipnet


class TwoInputs(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.picture = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.numbers = nn.Sequential(nn.Linear(3, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, picture: Tensor, numbers: Tensor) -> Tensor:
        return self.head(torch.cat([self.picture(picture).mean((2, 3)), self.numbers(numbers)], 1))[:, 0]


def samples(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    picture = torch.randn(count, 1, 8, 8, generator=generator)
    numbers = torch.randn(count, 3, generator=generator)
    return picture, numbers, 4 * picture.mean((1, 2, 3)) + numbers[:, 0] * numbers[:, 1]


def main(steps: int = 200) -> nn.Module:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model: nn.Module = TwoInputs()
    pruner, plan = None, None
    for phase in ("train", "prune", "finetune"):
        if phase == "prune":
            example = {"picture": torch.zeros(1, 1, 8, 8), "numbers": torch.zeros(1, 3)}
            pruner = chipnet.Pruner(model, example, {"macs": 0.5, "params": 0.6}, steps=steps)
        if phase == "finetune":
            assert pruner is not None
            plan = pruner.harden()
            pruner.detach()
            model, pruner = chipnet.compact(model, plan), None
        # An average belongs to the shapes that it averages: a new one after the cut.
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(steps):
            picture, numbers, target = samples(32, generator)
            loss = F.mse_loss(model(picture, numbers), target)
            if pruner is not None:
                loss = loss + pruner.loss()
            loss.backward()
            optimizer.step()
            if pruner is not None:
                pruner.step()
            optimizer.zero_grad()
            ema.update_parameters(model)
    assert plan is not None
    picture, numbers, target = samples(512, generator)
    small = ema.module.eval()
    error = F.mse_loss(small(picture, numbers), target) / target.var()
    print(f"{error:.0%} of the variance left, with {plan.compact.macs / plan.dense.macs:.1%} of the MACs")
    assert plan.compact.macs <= 0.5 * plan.dense.macs and plan.compact.params <= 0.6 * plan.dense.params
    return small


if __name__ == "__main__":
    main()
