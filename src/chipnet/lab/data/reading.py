"""How images are read: the options, and what they mean for a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chipnet._util.sizes import wrong
from chipnet._util.text import amount
from chipnet.errors import ConfigError
from chipnet.lab.data.folders import VARIATIONS
from chipnet.lab.data.images import Augment


@dataclass(frozen=True)
class Reading:
    """How images are read, where the data set does not say: the options of `load_data` of these names."""

    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: str | None = None
    skip_broken: bool = False

    def statistics(
        self, channels: int, usual: tuple[tuple[float, ...], tuple[float, ...]]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel: what was asked for, or the usual ones.

        Raises:
            ConfigError: not one number, and not one a channel.
        """
        found = []
        for name, chosen, other in zip(("mean", "std"), (self.mean, self.std), usual, strict=True):
            values = other if chosen is None else chosen * channels if len(chosen) == 1 else chosen
            if len(values) != channels:
                raise ConfigError(
                    f"{name} has {amount(len(values), 'number')}, and the images have "
                    f"{amount(channels, 'channel')}: give {channels}, or one for all."
                )
            found.append(values)
        return found[0], found[1]

    def varied(self, name: str, own: Augment | None) -> Augment | None:
        """How images in memory are varied.

        Raises:
            ConfigError: TrivialAugment, which takes images one by one.
        """
        if self.augment is None or own is None:
            return own
        if self.augment == "trivial":
            raise ConfigError(
                f"augment trivial is for image files that are decoded while training; {name} is in memory. Give "
                "crop-flip, crop, flip or none."
            )
        pad = own.pad if "crop" in self.augment else 0
        return Augment(pad, "flip" in self.augment) if self.augment != "none" else None


def check_options(
    seed: int,
    validation: float,
    limit: int | None,
    limit_test: int | None,
    image_size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    augment: str | None,
) -> None:
    problems = []
    if said := wrong("seed", seed):
        problems.append(said)
    if not 0 < validation < 1:
        problems.append(f"validation is a fraction between 0 and 1 (0.1 holds out a tenth), not {validation}")
    for option, value, minimum in (
        ("limit", limit, 2),
        ("limit_test", limit_test, 1),
        ("image_size", image_size, 1),
    ):
        if value is not None and value < minimum:
            problems.append(f"{option} must be at least {minimum}, not {value}")
    if mean is not None and not all(map(math.isfinite, mean)):
        problems.append(f"mean must be finite, not {mean}")
    if std is not None and not all(0 < v < math.inf for v in std):
        problems.append(f"std must be above 0 and finite, not {std}")
    if mean and 1 < max(mean) < math.inf:
        problems.append(f"mean is of images in 0 to 1, not {mean}: divide levels from 0 to 255 by 255")
    if augment not in (None, *VARIATIONS):
        problems.append(f"augment must be one of {', '.join(VARIATIONS)}, not {augment!r}")
    if problems:
        raise ConfigError("; ".join(problems) + ".")
