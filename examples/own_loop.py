"""Prune a network of your own in a loop of your own: train, prune, cut, fine-tune, export, compare.

    python examples/own_loop.py --epochs 3

Reads from top to bottom; needs nothing but scikit-learn's digits.
"""

import argparse
import tempfile

import torch
import torch.nn.functional as F
from torch import nn

import chipnet
from chipnet.lab.data import load_data
from chipnet.timing import compare

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3, help="of each phase")
parser.add_argument("--images", type=int, default=None, help="training images [default: all]")
asked = parser.parse_args()
torch.manual_seed(0)

# Data and a network: yours.
data = load_data("digits", limit=asked.images)
train, test = data.loader("train", 32, train=True), data.loader("test", 512)
network = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1, bias=False),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1, stride=2, bias=False),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(64, 10),
)


def accuracy(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
    model.train()
    return 100 * right / len(data.test)


# 1. Train it densely.
optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
for epoch in range(asked.epochs):
    train.set_epoch(epoch)
    for x, y in train:
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
print(f"dense: {accuracy(network):.1f} %")

# 2. Prune it to a quarter of its multiply-accumulates, while it trains on.
example = torch.randn(1, 1, 8, 8)
pruner = chipnet.Pruner(network, example, {"macs": 0.25}, steps=asked.epochs * len(train))
for epoch in range(asked.epochs):
    train.set_epoch(asked.epochs + epoch)
    for x, y in train:
        (F.cross_entropy(network(x), y) + pruner.loss()).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()

# 3. Cut. The small network is of the same class and computes the same, which is checked.
plan = pruner.harden()
small = chipnet.compact(network, plan)
pruner.detach()
print(plan.explain())
print(f"pruned: {accuracy(small):.1f} %")

# 4. Fine-tune it, as any network.
optimizer = torch.optim.SGD(small.parameters(), lr=0.02, momentum=0.9)
for epoch in range(asked.epochs):
    train.set_epoch(2 * asked.epochs + epoch)
    for x, y in train:
        F.cross_entropy(small(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
print(f"fine-tuned: {accuracy(small):.1f} %")

# 5. Export it. The file is loaded again and compared on real images.
images, _ = next(iter(test))
with tempfile.TemporaryDirectory() as folder:
    print(chipnet.export(small, f"{folder}/small.pt2", images, metadata={"labels": data.class_names}))

# 6. How much faster is it here?
done = compare({"dense": network, "small": small}, images[:8], runtimes=["eager"], seconds=0.5)
print("\n".join(done.verdict()))
