"""What in a run should make its owner doubt its numbers? Said while it runs, in result.json and in the report.

None of it is an error: a run may be meant so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from chipnet._util.text import amount
from chipnet.lab.config import PRUNING_STEPS

log = logging.getLogger("chipnet")
"""The log in which the loop says what nobody asked for but should know: `info` for facts, `warning` for doubts."""
LOST_POINTS = 5.0
"""Points of accuracy below the dense network that are more than a budget usually costs."""
NEAR_CHANCE = 0.1
"""Part of the way from guessing to always right: a network that was trained for these images is further."""


def short(steps: int) -> str:
    """The warning about so few steps of soft pruning; empty where they are enough."""
    if steps >= PRUNING_STEPS:
        return ""
    return (
        f"soft pruning has {amount(steps, 'optimiser step')}, and masks settle in {PRUNING_STEPS} or more: expect "
        "a lower accuracy than this budget allows. Give it more epochs (--epochs TRAIN,PRUNE,FINETUNE) or a "
        "smaller --batch-size."
    )


def lost(dense: float | None, compact: float, trained: bool = True) -> str:
    """The warning about a compact network that is far below the dense one; empty where it is not."""
    if dense is None or dense - compact <= LOST_POINTS:
        return ""
    more = "Give pruning and fine-tuning more epochs, or a larger budget."
    if not trained:
        more = "Fine-tune it, give a larger budget, or leave out --no-train."
    return (
        f"the compact network is {dense - compact:.1f} points below the dense one ({compact:.2f} %, dense "
        f"{dense:.2f} %). {more}"
    )


def guessing(accuracy: float, classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """The warning about weights that know nothing of these images; empty where they do.

    >>> guessing(11.0, 10, (0.5,), (0.2,))[:68]
    'the network with these weights is right on 11.00 % of the test image'
    >>> guessing(11.0, 100, (0.5,), (0.2,))
    ''
    """
    chance = 100 / classes
    if accuracy > chance + NEAR_CHANCE * (100 - chance):
        return ""
    used = ", ".join(
        f"{name} {','.join(f'{v:.3g}' for v in of)}" for name, of in (("mean", mean), ("std", std))
    )
    return (
        f"the network with these weights is right on {accuracy:.2f} % of the test images, and guessing is on "
        f"{chance:.2f} %. Likely causes: images normalised otherwise than in its training (here: {used}); "
        "classes in another order than in its training (see class_names in result.json); "
        "another --image-size; weights of another task."
    )


def warnings_of(
    steps: Mapping[str, int], known: Mapping[str, Any], weights: bool, masks: bool, data: Any
) -> list[str]:
    """All warnings about a finished run, for result.json.

    Args:
        steps: optimiser steps of each phase.
        known: accuracies in percent of `dense` (None: never trained) and `compact`.
        weights: dense weights were given.
        masks: masks were given, so nothing was pruned.
        data: of the run: its classes and normalisation.
    """
    found = [
        guessing(known["dense"], data.num_classes, data.mean, data.std) if weights else "",
        "" if masks else short(steps["prune"]),
        lost(known["dense"], known["compact"]),
    ]
    return [text for text in found if text]
