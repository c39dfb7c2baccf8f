"""The parts of a training loop: one step, an evaluation, a recalibration. Nothing here knows of runs or phases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipnet import ChipNetError, ConfigError, Pruner
from chipnet._util.device import device_of
from chipnet._util.distributed import sums, world
from chipnet._util.given import NETWORK, Wanted
from chipnet._util.text import type_text
from chipnet._util.torch_private import BatchNorm
from chipnet.lab.metrics import LOSSES
from chipnet.methods.losses import distillation

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Batch = tuple[Tensor, Tensor]
NO_IMAGES = (
    "there are no images to evaluate on: the loader gave no batch. Is it empty, or a used-up iterator?"
)


@dataclass(frozen=True)
class Objective:
    """The task's loss, by part, of one batch: (1 − w) · cross-entropy + w · distillation from a teacher.

    Attributes:
        label_smoothing: of the cross-entropy.
        mixup: α of mixup (Zhang et al. 2018, arXiv:1710.09412): images and labels are mixed in pairs, the shares
            λ drawn from Beta(α, α), once a batch; 0: not at all. Drawn from PyTorch's global generator.
        teacher: the dense network, in eval mode; None: no distillation, and w = 0.
        weight, temperature: w and T of `chipnet.methods.losses.distillation`.

    Example:
        >>> teacher = student = nn.Linear(2, 3)
        >>> objective = Objective(teacher=teacher, weight=0.5)
        >>> parts, logits = objective(student, torch.ones(4, 2), torch.tensor([0, 1, 2, 0]))
        >>> parts["distillation"].item(), logits.shape
        (0.0, torch.Size([4, 3]))
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    teacher: Callable[[Tensor], Tensor] | None = None
    weight: float = 0.0
    temperature: float = 4.0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(part -> scalar, logits)."""
        others, share = labels, 1.0
        if self.mixup > 0:
            share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
            order = torch.randperm(len(images)).to(images.device)
            images, others = torch.lerp(images[order], images, share), labels[order]
        logits = model(images).float()
        task = share * F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if share < 1:
            task = task + (1 - share) * F.cross_entropy(logits, others, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return {"task": task}, logits
        with torch.no_grad():
            soft = self.teacher(images).float()
        far = distillation(logits, soft, self.temperature)
        return {"task": (1 - self.weight) * task, "distillation": self.weight * far}, logits


class SpikeClip:
    """Shortens a gradient whose norm stands out of the norms before it.

    A gradient may be ``factor`` times as long as is typical: the mean of the norms so far, each weighing ``memory``
    of what the one after it weighs, and none counting for more than it was let through with. The first
    ``1 / (1 - memory)`` steps pass as they are. It is a norm clip that sets itself, in the way of AutoClip
    (Seetharaman et al. 2020, arXiv:2007.14469) and ZClip (Kumar et al. 2025, arXiv:2504.02507). Nothing waits for
    the device.

    Args:
        factor: above 1.
        memory: in [0, 1).

    Example:
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> clip = SpikeClip(2.0, memory=0.5)
        >>> for size in (1.0, 1.0, 100.0, 1.0):
        ...     weight.grad = torch.tensor([size])
        ...     clip([weight], weight.grad.norm())
        ...     print(round(weight.grad.item(), 3))
        1.0
        1.0
        2.0
        1.0
    """

    def __init__(self, factor: float, memory: float = 0.95) -> None:
        self.factor, self.memory = factor, memory
        self.seen: Tensor = torch.zeros(())
        self.mean: Tensor = torch.zeros(())
        """The running mean from zero: divided by what its weights sum to, the typical norm."""

    @torch.no_grad()
    def __call__(self, parameters: Iterable[nn.Parameter], norm: Tensor) -> None:
        """Shorten the gradients, whose common norm is ``norm`` (a scalar, of gradients that are not scaled), if it
        stands out. Norms of zero, and those that are not finite, are not remembered."""
        norm = norm.float()
        self.seen, self.mean = self.seen.to(norm.device), self.mean.to(norm.device)
        typical = self.mean / (1 - self.memory**self.seen)
        limit = torch.where(self.seen * (1 - self.memory) > 0.999, self.factor * typical, torch.inf)
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm / limit)
        counts = torch.isfinite(norm) & (norm > 0)
        mean = torch.lerp(torch.minimum(norm, limit), self.mean, self.memory)
        self.mean = torch.where(counts, mean, self.mean)
        self.seen = self.seen + counts

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue."""
        return {"seen": self.seen, "mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state_dict()``."""
        self.seen, self.mean = state["seen"], state["mean"]


def train_step(
    fabric: Fabric,
    model: Any,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    *,
    pruner: Pruner | None = None,
    weight: float = 1.0,
    accumulate: int = 1,
    clip: float | None = None,
    spikes: SpikeClip | None = None,
    check: Callable[[Tensor], None] | None = None,
) -> None:
    """One optimiser step: forward, backward, step.

    Args:
        fabric: does the backward pass.
        model, optimizer: what `fabric.setup` returned.
        images, labels: this process's part of the batch, on the model's device.
        objective: the loss.
        pruner: of this model; its loss is added and it is stepped after the optimiser.
        weight: this part's share of the whole batch, times the processes: with parts of unequal size, the mean
            that the processes take of their gradients is still the mean over images.
        accumulate: pieces that the images go through the network in, one after the other.
        clip: largest norm of the gradient.
        spikes: shortens what stands out; keep it from step to step.
        check: is given the losses, in the order of `LOSSES`, and the number of images that were right, before
            any weight changes; what it raises ends the step.
    """
    losses = pruner.losses() if pruner is not None else {}
    pieces = max(1, min(accumulate, len(images) // 2))
    rows = []
    for i, (x, y) in enumerate(zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True)):
        with fabric.no_backward_sync(model, enabled=i + 1 < pieces):
            parts, logits = objective(model, x, y)
            zero = logits.new_zeros(())
            pruning = sum(losses.values(), zero)
            right = (logits.detach().argmax(1) == y).sum()
            known = {**parts, **losses, "pruning": pruning}
            part = len(x) / len(images)
            rows.append(torch.stack([known.get(name, zero).detach().float() * part for name in LOSSES]))
            rows[-1] = torch.cat([rows[-1], right.float().reshape(1)])
            loss = sum(parts.values(), zero) * (weight * part)
            if i + 1 == pieces:
                loss = loss + pruning
                if check is not None:
                    check(torch.stack(rows).sum(0))
            fabric.backward(loss)
    if clip is not None or spikes is not None:
        most = math.inf if clip is None else clip
        norm = fabric.clip_gradients(model, optimizer, max_norm=most, error_if_nonfinite=False)
        if spikes is not None:
            assert norm is not None
            spikes(model.parameters(), torch.where(norm.isfinite(), norm.clamp(max=most), norm))
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    scale = scaler.get_scale() if scaler is not None else 1.0
    optimizer.step()
    if pruner is not None:
        pruner.step(scale)
    optimizer.zero_grad(set_to_none=True)


BATCHES = Wanted(Iterable, "an iterable of batches (images, labels)", "A loader is one.")


def _pair(batch: Any) -> Any:
    """(images, labels)."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ConfigError(f"each of the batches must be (images, labels), and one is {type_text(batch)}")
    return batch


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], fabric: Fabric | None = None) -> float:
    """Accuracy in percent, in eval mode; every image counts once. The mode is put back afterwards.

    Args:
        model: the network itself, not what a strategy wraps it in.
        batches: this process's images; all processes together have every image once.
        fabric: for its precision.

    Raises:
        ConfigError: a batch is not (images, labels).
        ChipNetError: there are no images, or ``model`` is no network.

    Example:
        >>> class Same(nn.Module):
        ...     def forward(self, x):
        ...         return x
        >>> evaluate(Same(), [(torch.eye(3), torch.tensor([0, 1, 1])), (torch.eye(3)[:1], torch.tensor([0]))])
        75.0
    """
    NETWORK.check("model", model)
    BATCHES.check("batches", batches)
    was = model.training
    model.eval()
    device = device_of(model)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    seen = 0
    try:
        for images, labels in map(_pair, batches):
            if fabric is None:
                logits = model(images)
            else:
                with fabric.autocast():
                    logits = model(images)
            correct += (logits.argmax(1) == labels).sum()
            seen += len(labels)
    finally:
        model.train(was)
    right, images_seen = sums([int(correct), seen], device)
    if not images_seen:
        raise ChipNetError(NO_IMAGES)
    return 100 * right / images_seen


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Measure the batch norms' running statistics again: their plain means over `batches`."""
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    was, momenta = model.training, [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    model.train()
    for images, _ in batches:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was)


def part_of(images: Tensor, size: int | None) -> float:
    """`weight` of `train_step` for this process's part of a batch of `size` images."""
    return world() * len(images) / size if size else 1.0
