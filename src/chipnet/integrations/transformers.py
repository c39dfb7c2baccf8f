"""A callback for Hugging Face's `Trainer`: one training prunes, the next one fine-tunes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chipnet import ConfigError
from chipnet._util.files import replacing
from chipnet.integrations.pruning import Pruned, Pruning

FILE = "chipnet.pt"
"""The masks' state, in every checkpoint of the trainer."""


class PruningCallback(Pruned, TrainerCallback):
    """Prunes a model softly while a `transformers.Trainer` trains it; at the end it is cut.

    The trainer computes its loss as always: the losses of the method get backward passes of their own. Checkpoints
    of the trainer hold the state of the masks, and `resume_from_checkpoint` continues. A checkpoint outside of
    `output_dir` is named in `TrainingArguments(resume_from_checkpoint=...)` too.

    Args:
        budget: what remains; see `chipnet.Budget`.
        example_inputs: as for `chipnet.Pruner`, such as ``{"pixel_values": torch.zeros(1, 3, 32, 32)}``.
        options: other arguments of `chipnet.Pruner`, but `steps`, which are those of the trainer.

    Attributes:
        plan: what was cut, after the training.
        compact: the compact model, for a trainer that fine-tunes it; the same class and configuration.

    Raises:
        ConfigError: training continues from a checkpoint without the masks' state.
        ChipNetError: training stopped before its last step.

    Example:
        >>> callback = PruningCallback("macs=0.5", {"pixel_values": images[:1]})  # doctest: +SKIP
        >>> Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()  # doctest: +SKIP
        >>> Trainer(callback.compact, arguments, train_dataset=data).train()  # doctest: +SKIP
        >>> chipnet.save(callback.compact, callback.plan, "small.safetensors")  # doctest: +SKIP
    """

    def __init__(self, budget: Any, example_inputs: Any, **options: Any) -> None:
        self.pruning = Pruning(budget, example_inputs, **options)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step and self.plan is None:
            # A callback is not told where the trainer continues from.
            here = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FILE
            given = args.resume_from_checkpoint
            saved = [here, Path(given) / FILE] if isinstance(given, str) else [here]
            found = [path for path in saved if path.exists()]
            if not found:
                raise ConfigError(
                    f"training continues at step {state.global_step}, and the masks' state is not in "
                    f"{' or '.join(map(str, saved))}. Name the checkpoint in TrainingArguments too "
                    "(resume_from_checkpoint=FOLDER), where it is not in output_dir; it must have been saved with "
                    "this callback."
                )
            self.pruning.saved = torch.load(found[-1], weights_only=True)
        self.pruning.begin(kwargs["model"], state.max_steps, [])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        scaler = getattr(kwargs.get("optimizer"), "scaler", None)
        self.pruning.before_step(scaler.get_scale() if scaler is not None else 1.0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.pruning.after_step()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        pruner = self.pruning.pruner
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if pruner is not None and state.is_world_process_zero and folder.is_dir():
            with replacing(folder / FILE) as temporary:
                torch.save(pruner.state_dict(), temporary)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.pruning.end(kwargs["model"], [])
