"""Hugging Face `Trainer`: a callback, and a ResNet made from a configuration.

python examples/transformers_trainer.py
"""

import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from chipnet.integrations.transformers import PruningCallback


class Noise(Dataset):  # type: ignore[type-arg]
    """Noise that is a little brighter (1) or darker (0)."""

    def __init__(self, images: int) -> None:
        self.x = torch.randn(images, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": self.x[i], "labels": (self.x[i].mean() > 0).long()}


def main(epochs: int = 3, images: int = 128) -> PruningCallback:
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2
    )
    model = ResNetForImageClassification(config)
    data = Noise(images)
    callback = PruningCallback("macs=0.5", {"pixel_values": data.x[:1]})
    with tempfile.TemporaryDirectory() as folder:

        def arguments(epochs: int) -> TrainingArguments:
            return TrainingArguments(
                folder, num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=1e-2,
                gradient_accumulation_steps=2, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
                logging_strategy="no",
            )  # fmt: skip

        Trainer(model, arguments(epochs), train_dataset=data, callbacks=[callback]).train()  # prunes, cuts
        Trainer(callback.compact, arguments(1), train_dataset=data).train()  # fine-tunes
    assert callback.plan is not None
    print(callback.plan.explain())
    assert callback.plan.compact.macs <= 0.5 * callback.plan.dense.macs
    return callback


if __name__ == "__main__":
    main()
