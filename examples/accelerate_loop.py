"""Hugging Face Accelerate: the same five lines. Runs as it is, and under `accelerate launch` on many devices.

accelerate launch examples/accelerate_loop.py
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import chipnet


def main(epochs: int = 4, images: int = 256) -> nn.Module:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    x = torch.randn(images, 1, 8, 8)
    y = (x.mean((1, 2, 3)) > 0).long()
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 2),
    ).to(accelerator.device)  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    # Before `prepare`, of the network itself. Every process has a pruner; `step` averages what they see.
    example = x[:1].to(accelerator.device)
    steps = epochs * (len(loader) // accelerator.num_processes // accelerator.gradient_accumulation_steps)
    pruner = chipnet.Pruner(network, example, "macs=0.4", steps=steps)
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)

    for _ in range(epochs):
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(inputs), labels) + pruner.loss()
                accelerator.backward(loss)
                scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
                optimizer.step()
                if accelerator.sync_gradients:
                    pruner.step(scale)
                optimizer.zero_grad()

    plan = pruner.harden()
    pruner.detach()
    small = chipnet.compact(network, plan)
    tuned = torch.optim.SGD(small.parameters(), lr=0.01, momentum=0.9)
    model, tuned = accelerator.prepare(small, tuned)
    for inputs, labels in loader:
        accelerator.backward(F.cross_entropy(model(inputs), labels))
        tuned.step()
        tuned.zero_grad()
    accelerator.print(plan.explain())
    assert plan.compact.macs <= 0.4 * plan.dense.macs
    return small


if __name__ == "__main__":
    main()
