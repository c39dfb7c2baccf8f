"""`lightning.Trainer`: a callback; the module stays as it is.

python examples/lightning_trainer.py
"""

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from chipnet.integrations.lightning import PruningCallback


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 2),
        )  # fmt: skip

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(epochs: int = 4, images: int = 256, **options: object) -> tuple[Classifier, PruningCallback]:
    torch.manual_seed(0)
    x = torch.randn(images, 1, 8, 8)
    loader = DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=32, shuffle=True)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
             "enable_model_summary": False, "accelerator": "cpu", **options}  # fmt: skip
    module = Classifier()
    lightning.Trainer(max_epochs=epochs, **quiet).fit(module, loader)  # dense

    callback = PruningCallback("macs=0.4", x[:1], network="model")
    lightning.Trainer(max_epochs=epochs, callbacks=[callback], **quiet).fit(module, loader)  # prunes, cuts
    lightning.Trainer(max_epochs=1, callbacks=[callback], **quiet).fit(module, loader)  # fine-tunes
    assert callback.plan is not None
    print(callback.plan.explain())
    assert callback.plan.compact.macs <= 0.4 * callback.plan.dense.macs
    return module, callback


if __name__ == "__main__":
    main()
