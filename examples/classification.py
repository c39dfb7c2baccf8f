"""A plain loop: classification. Everything that chipnet adds is marked.

python examples/classification.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import chipnet
from chipnet.lab.data import load_data
from chipnet.lab.models import get_model
from chipnet.lab.train import evaluate
from chipnet.surgery.optimizer import cut_state, set_state


def main(epochs: int = 6, limit: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    data = load_data("digits", limit=limit)
    batches, test = data.loader("train", 32, train=True), data.loader("test", 256)
    model = get_model("resnet8", data.num_classes, data.in_channels)

    def train(
        network: nn.Module, optimizer: torch.optim.Optimizer, pruner: chipnet.Pruner | None = None
    ) -> None:
        for _ in range(epochs):
            network.train()
            for images, labels in batches:
                loss = F.cross_entropy(network(images), labels)
                if pruner is not None:
                    loss = loss + pruner.loss()  # chipnet
                loss.backward()
                optimizer.step()
                if pruner is not None:
                    pruner.step()  # chipnet
                optimizer.zero_grad()

    def sgd(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    train(model, sgd(model))
    dense = evaluate(model, test)

    example = next(iter(test))[0][:1]
    pruner = chipnet.Pruner(model, example, "macs=0.25", steps=epochs * len(batches))  # chipnet
    optimizer = sgd(model)
    train(model, optimizer, pruner)
    plan = pruner.harden()  # chipnet
    pruner.detach()
    small = chipnet.compact(model, plan)  # chipnet

    tuned = sgd(small)
    set_state(tuned, small, cut_state(optimizer, model, plan))  # momentum goes through the cut
    train(small, tuned)
    print(f"accuracy {dense:.1f} % dense, {evaluate(small, test):.1f} % with {plan.compact.macs:,} MACs")
    assert plan.compact.macs <= 0.25 * plan.dense.macs
    return small


if __name__ == "__main__":
    main()
