"""A callback for `lightning.Trainer`: one fit prunes, the next one fine-tunes."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from chipnet import ConfigError
from chipnet.integrations.pruning import Pruned, Pruning


class PruningCallback(Pruned, Callback):
    """Prunes a network softly while a `lightning.Trainer` fits it; at the end it is cut, in its module.

    Your `training_step` stays as it is: the losses of the method get backward passes of their own. The next `fit`
    with the same callback fine-tunes the compact network; optimiser state goes through the cut. Checkpoints of the
    trainer hold the state of the masks.

    Args:
        budget: what remains; see `chipnet.Budget`.
        example_inputs: as for `chipnet.Pruner`.
        network: attribute path of the network in the LightningModule, such as ``"model"``.
        options: other arguments of `chipnet.Pruner` (method, ignore, realisation, ...), but `steps`, which are
            those of the fit.

    Attributes:
        plan: what was cut, after the fit.
        compact: the compact network, which is in the module by then.

    Raises:
        ConfigError: the trainer has no end (``max_epochs=-1``), or the module has no such network.

    Example:
        >>> callback = PruningCallback(
        ...     "macs=0.25", torch.zeros(1, 3, 32, 32), network="model"
        ... )  # doctest: +SKIP
        >>> Trainer(max_epochs=20, callbacks=[callback]).fit(module, loader)  # doctest: +SKIP
        >>> Trainer(max_epochs=20, callbacks=[callback]).fit(module, loader)  # doctest: +SKIP
        >>> chipnet.save(module.model, callback.plan, "small.safetensors")  # doctest: +SKIP
    """

    def __init__(self, budget: Any, example_inputs: Any, network: str, **options: Any) -> None:
        self.pruning = Pruning(budget, example_inputs, network=network, **options)
        self.step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        if steps == float("inf") or steps < 1:
            raise ConfigError(
                "soft pruning is a function of progress: give the Trainer max_epochs or max_steps."
            )
        self.step = trainer.global_step
        self.pruning.begin(pl_module, int(steps), trainer.optimizers)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if (
            optimizer is trainer.optimizers[0]
            or getattr(optimizer, "optimizer", None) is trainer.optimizers[0]
        ):
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self.pruning.before_step(scaler.get_scale() if scaler is not None else 1.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self.step:  # not while gradients are accumulated
            self.step = trainer.global_step
            self.pruning.after_step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pruning.end(pl_module, trainer.optimizers)

    def state_dict(self) -> dict[str, Any]:
        pruner = self.pruning.pruner
        return {"pruner": pruner.state_dict() if pruner is not None else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pruning.saved = state_dict["pruner"]
