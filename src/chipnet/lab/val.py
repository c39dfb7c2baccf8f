"""Loss and accuracy of saved networks on test images: `chipnet val`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipnet import load
from chipnet._util.device import device_of
from chipnet.errors import ChipNetError, ConfigError
from chipnet.lab.data import Data, load_data
from chipnet.lab.models import get_model
from chipnet.lab.runs.folder import Run
from chipnet.lab.runs.record import RESULT
from chipnet.lab.steps import NO_IMAGES


@torch.no_grad()
def measure(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Mean cross-entropy, accuracy in percent and the number of images; in eval mode, which it leaves on.

    Example:
        >>> measure(nn.Identity(), [(torch.tensor([[9.0, 0.0]]), torch.tensor([0]))])["accuracy"]
        100.0
    """
    network.eval()
    device = device_of(network)
    loss, right, count = 0.0, 0, 0
    for images, labels in batches:
        labels = labels.to(device)
        logits = network(images.to(device)).float()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    if not count:
        raise ChipNetError(NO_IMAGES)
    return {"loss": loss / count, "accuracy": 100 * right / count, "images": count}


def networks_of(
    path: str, model: str | None, data: str | None, data_dir: str | None, trust: bool = False
) -> tuple[dict[str, nn.Module], Data, int]:
    """The networks of a run folder (dense and compact) or of one file of weights, their data and a batch size.

    Args:
        path: a run folder, or a file that `chipnet.save` wrote: in a run folder, or with ``model`` and ``data``.
        model, data, data_dir: what the file is of, where no run says so; other data than the run's.
        trust: as for `Run.open`.

    Raises:
        ChipNetError: something is missing or damaged, or the images do not suit the network.
    """
    place = Path(path).expanduser()
    folder = place if place.is_dir() else place.parent
    if not place.is_dir() and not (folder / RESULT).is_file():
        if model is None or data is None:
            raise ConfigError(
                f"{place} is in no run folder that says what it is of. Give the folder of a run, or --model and "
                "--data."
            )
        images = load_data(data, data_dir)
        network = load(lambda: get_model(model, images.num_classes, images.in_channels), place)
        return {place.name: network}, images, 256
    if model is not None:
        raise ConfigError(f"{folder} is a run, which says of which network it is: leave out --model.")
    run = Run.open(folder, trust)
    images = _data_of(run, data, data_dir)
    size = int(run.result["recipe"]["batch_size"])
    if place.is_dir():
        return {"dense": run.dense(), "compact": run.compact()}, images, size
    return {place.name: load(run.build, place)}, images, size


def _data_of(run: Run, data: str | None, data_dir: str | None) -> Data:
    """The run's data, or others, as the run's networks see images."""
    if data is not None and data == run.result["data"]:
        run, data = dataclasses.replace(run, trust=True), None  # whoever types the name trusts it
    images = run.data(data_dir) if data is None else load_data(data, data_dir)
    run.check_images(images)
    return run.seen(images)
