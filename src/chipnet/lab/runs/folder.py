"""Run folders, read: what `chipnet prune` leaves is plain files, and this is where they are opened again.

======================  ===========================================================================
`result.json`           the final numbers; written last: where it is, a run is complete
`plan.json`             what was cut (`chipnet.Plan.load`)
`model.safetensors`     the compact network (`chipnet.load`)
`dense.safetensors`     weights of the dense network (`chipnet.lab.models.load_weights`)
`metrics.csv`           one row an epoch
======================  ===========================================================================

Nothing here trains, and nothing here downloads. `docs/runs.md` has every field.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from chipnet import Masks, Plan, load
from chipnet._util.files import write_atomically, write_json
from chipnet._util.given import path_of
from chipnet._util.imports import IMPORTED
from chipnet._util.schema import DamagedError, decode
from chipnet.errors import ConfigError, LoadError
from chipnet.lab.config import CONFIG as OPTIONS
from chipnet.lab.config_file import read_config
from chipnet.lab.data import Data, LoaderImages, load_data
from chipnet.lab.layers import data_options
from chipnet.lab.models import get_model, load_weights
from chipnet.lab.runs.record import (
    DENSE,
    MASKS,
    MODEL,
    PLAN,
    RESULT,
    described,
    read_json,
    read_metrics,
    read_result,
)

HUB_CONFIG = "config.json"
"""The name of the config in a folder in the style of the Hugging Face Hub; see `Run.save_pretrained`."""


@dataclass(frozen=True)
class Run:
    """A finished run. Make one with `Run.open`.

    Attributes:
        folder: where it is.
        result: what result.json holds.
        trust: whether code that the folder names (``module:callable``) may be imported and called.
    """

    folder: Path
    result: Mapping[str, Any]
    trust: bool = False

    @classmethod
    def open(cls, folder: str | os.PathLike[str], trust: bool = False) -> Run:
        """Read the result of a run folder.

        Args:
            folder: what ``chipnet prune --out`` wrote.
            trust: let the folder choose code: import and call the ``module:callable`` of its network and data set.
                Without it, those are errors, unless this process has run that code because it was asked to, and
                everything else can be read.

        Raises:
            LoadError: there is no finished run, or its result is damaged.
        """
        path = path_of("folder", folder)
        return cls(path, read_result(path), trust)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    def left(self, kind: str) -> float:
        """Cost of the compact network as a part of the dense one's."""
        return float(self.result["compact"][kind] / max(self.result["dense"][kind], 1))

    def plan(self) -> Plan:
        """What was cut.

        Raises:
            LoadError: it is damaged, or is not what the result describes.
        """
        plan = Plan.load(self.file(PLAN))
        for state, cost in (("dense", plan.dense), ("compact", plan.compact)):
            for kind, count in cost.to_json().items():
                if (said := self.result[state][kind]) != count:
                    raise LoadError(
                        f"{self.folder / RESULT} says {kind} {said:,} of the {state} network, and its plan "
                        f"{count:,}: they are not of one run. Copy the whole folder again."
                    )
        return plan

    def masks(self) -> Masks:
        """Which channels it kept."""
        return Masks.load(self.file(MASKS))

    def metrics(self) -> list[dict[str, str]]:
        """Rows of metrics.csv, as text: numbers, or empty where a phase does not have a value."""
        return read_metrics(self.folder)

    def file(self, name: str) -> Path:
        """The path of a file of the run, ``plan.json`` for instance, which is the one that its result describes.

        Raises:
            LoadError: it is another one: something was written there after the run.
        """
        return described(self.folder, self.result, name)

    def build(self) -> nn.Module:
        """The dense network, freshly built, without the run's weights.

        Raises:
            LoadError: it is code that the folder names, and the folder is not trusted.
            ConfigError: it cannot be built here.
        """
        given = self.input
        name = self._known(self.result["model"], "network")
        return get_model(name, given["num_classes"], given["in_channels"])

    def dense(self) -> nn.Module:
        """The trained dense network, in eval mode on the CPU."""
        network = self.build()
        load_weights(network, str(self.file(DENSE)))
        return network.eval()

    def compact(self) -> nn.Module:
        """The compact network, in eval mode on the CPU."""
        return load(self.build, self.file(MODEL)).eval()

    def data(self, data_dir: str | None = None) -> Data:
        """The data set that the run was made with, split as it was.

        Args:
            data_dir: where it is now, if it is no longer where the run found it.

        Raises:
            LoadError: it is code that the folder names, and the folder is not trusted.
            ConfigError: it cannot be read.
        """
        if "recipe" not in self.result:
            raise LoadError(f"{self.folder / RESULT} does not say which images the run saw (recipe).")
        recipe, config = self.result["recipe"], self.folder / OPTIONS
        options = data_options(read_config(config)) if config.exists() else {}
        data = load_data(
            self._known(self.result["data"], "data set"),
            data_dir or self.input["data_dir"],
            seed=self.result["seed"],
            limit=recipe["limit"],
            limit_test=recipe["limit_test"],
            **options,
            batch_size=recipe["batch_size"],
        )
        return self.seen(data)

    def seen(self, data: Data) -> Data:
        """A data set as the run's networks see images: normalised as theirs were. Loaders of the user's own
        normalise by themselves."""
        if isinstance(data.test, LoaderImages):
            return data
        return replace(data, mean=tuple(self.input["mean"]), std=tuple(self.input["std"]))

    def images(self, count: int, data_dir: str | None = None) -> Tensor:
        """The first test images as the networks see them: float32 ``[count, C, H, W]``, or as many as there are
        (a loader of the user's: as many as its first batch has)."""
        try:
            images, _ = next(iter(self.data(data_dir).loader("test", count)))
        except ConfigError as error:
            raise ConfigError(f"{error} Give the folder of the run's data set with --data-dir.") from error
        return images[:count]

    def check_images(self, data: Data) -> None:
        """Whether the run's networks can see the images of a data set.

        Raises:
            ConfigError: they are for other numbers of classes or channels.
        """
        for name, what in (("num_classes", "classes"), ("in_channels", "channels")):
            if getattr(data, name) != self.input[name]:
                raise ConfigError(
                    f"the networks of {self.folder} are for {self.input[name]} {what}, and {data.name} has "
                    f"{getattr(data, name)}. Give data like {self.result['data']}."
                )

    def noise(self, count: int) -> Tensor:
        """Noise in the shape of images, the same every time: for times, which do not depend on what is seen."""
        given = self.input
        shape = (count, given["in_channels"], given["image_size"], given["image_size"])
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def card(self) -> dict[str, Any]:
        """What goes with the network wherever it goes: task, labels, preprocessing, budget, costs, accuracy."""
        result, given = self.result, self.input
        return {
            "chipnet": result["environment"]["chipnet"],
            "model": result["model"],
            "num_classes": given["num_classes"],
            "in_channels": given["in_channels"],
            "labels": given["class_names"],
            "preprocessing": {
                "layout": "NCHW",
                "image_size": given["image_size"],
                "scale": 1 / 255,
                "mean": given["mean"],
                "std": given["std"],
            },
            "data": result["data"],
            "method": result["method"],
            "realisation": result["realisation"],
            "budget": result["budget"],
            "costs": {"dense": _costs(result["dense"]), "compact": _costs(result["compact"])},
            "accuracy": {"dense": result["dense"]["accuracy"], "compact": result["compact"]["accuracy"]},
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write what a folder of the Hugging Face Hub holds: config.json, model.safetensors, README.md.

        `from_pretrained` reads it; any tool that moves folders can move it.

        Raises:
            OSError: it cannot be written.
        """
        out = path_of("folder", folder)
        out.mkdir(parents=True, exist_ok=True)
        card = self.card()
        labels = {str(i): name for i, name in enumerate(card["labels"])}
        write_atomically(out / "README.md", _readme(self.name, card).encode())
        write_atomically(out / MODEL, self.file(MODEL).read_bytes())
        if (self.folder / PLAN).exists():
            shutil.copyfile(self.file(PLAN), out / PLAN)
        write_json(out / HUB_CONFIG, {"library_name": "chipnet", **card, "id2label": labels})

    @property
    def input(self) -> Mapping[str, Any]:
        """What the networks take: classes, channels, image size, normalisation, labels."""
        if "input" not in self.result:
            raise LoadError(
                f"{self.folder / RESULT} does not say what images the network takes: an older chipnet wrote it. "
                "Run it again, or use chipnet.load with your own constructor."
            )
        return dict(self.result["input"])

    def _known(self, name: str, what: str) -> str:
        """A name that builds something, if it may."""
        if not self.trust:
            refuse_code(name, what, self.folder)
        return name


def refuse_code(name: str, what: str, folder: Path) -> None:
    """A folder may come from anywhere, and must not choose which code runs.

    Raises:
        LoadError: the name that it gives for its network or data set is code, which nobody has asked this process
            to run.
    """
    if ":" in name and name not in IMPORTED:
        other = (
            "Give a factory that builds the dense network (chipnet.load)"
            if what == "network"
            else "Give --data"
        )
        raise LoadError(
            f"{folder} is of a {what} of its maker's own, {name!r}, and code is not run because a folder names it. "
            f"{other}, or, where you know where the folder comes from, trust it: --trust, in Python "
            "Run.open(folder, trust=True)."
        )


def from_pretrained(
    folder: str | os.PathLike[str], factory: Callable[[], nn.Module] | None = None
) -> nn.Module:
    """The compact network of a local folder: a run, or one that `Run.save_pretrained` wrote. No network access.

    Args:
        folder: holds model.safetensors, and config.json or result.json.
        factory: builds the dense network; the default is the model that the folder names, built by
            `chipnet.lab.models.get_model`; of code that the folder names, nothing is run.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        LoadError: a file is missing or damaged, belongs to another network, or names code (`module:callable`): no
            code is imported because a folder says so.
        ConfigError: the network that is named cannot be built here.

    Example:
        >>> import chipnet.lab.runs.folder
        >>> chipnet.lab.runs.folder.from_pretrained("nowhere")
        Traceback (most recent call last):
        ...
        chipnet.errors.LoadError: nowhere/config.json does not exist. Give a folder that Run.save_pretrained ...
    """
    path = path_of("folder", folder)
    if factory is not None:
        return load(factory, path / MODEL).eval()
    if (path / RESULT).exists() and not (path / HUB_CONFIG).exists():
        return Run.open(path).compact()
    config = read_json(
        path / HUB_CONFIG, "Give a folder that Run.save_pretrained wrote, or a run, or a factory."
    )
    try:
        given = decode(_Built, config, str(path / HUB_CONFIG))
    except DamagedError as error:
        raise LoadError(f"{error}. Give a factory that builds the dense network.") from error
    refuse_code(given["model"], "network", path)
    return load(
        lambda: get_model(given["model"], given["num_classes"], given["in_channels"]), path / MODEL
    ).eval()


class _Built(TypedDict):
    """What config.json says of how its network is built."""

    model: str
    num_classes: int
    in_channels: int


def find_runs(
    *folders: str | os.PathLike[str],
    trust: bool = False,
    damaged: Callable[[LoadError], object] | None = None,
) -> Iterator[Run]:
    """Finished runs in and below folders, in the order of their paths.

    Args:
        folders: which.
        trust: as for `Run.open`.
        damaged: called with the error of each run that cannot be read, which is left out; None: it is raised.

    Raises:
        LoadError: a folder does not exist, or holds no finished run.
    """
    for folder in folders:
        path = path_of("a folder of runs", folder)
        if not path.is_dir():
            raise LoadError(f"there is no folder {path}")
        found = sorted(path.rglob(RESULT))
        if not found:
            raise LoadError(f"there is no finished run in {path} (no {RESULT})")
        for file in found:
            try:
                run = Run.open(file.parent, trust)
            except LoadError as error:
                if damaged is None:
                    raise
                damaged(error)
                continue
            yield run


def percent(accuracy: float | None, sign: str = " %") -> str:
    """An accuracy as people read it: of a network that was never trained there is none."""
    return "–" if accuracy is None else f"{accuracy:.2f}{sign}"


def loss_text(loss: float | None) -> str:
    """A mean cross-entropy as people read it."""
    return "–" if loss is None else f"{loss:.3f}"


def _costs(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in ("accuracy", "loss")}


def _readme(name: str, card: Mapping[str, Any]) -> str:
    dense, small = card["costs"]["dense"], card["costs"]["compact"]
    rows = [f"| {k} | {dense[k]:,} | {small[k]:,} | {small[k] / max(dense[k], 1):.2%} |" for k in dense]
    accuracy = card["accuracy"]
    return "\n".join(
        [
            "---",
            "library_name: chipnet",
            "tags: [pruning, image-classification]",
            "---",
            "",
            f"# {name}",
            "",
            f"{card['model']} for {card['data']}, pruned by chipnet {card['chipnet']} ({card['method']}).",
            "",
            "| | dense | compact | left |",
            "|---|---|---|---|",
            f"| accuracy | {percent(accuracy['dense'])} | {percent(accuracy['compact'])} | |",
            *rows,
            "",
            "```python",
            "import chipnet.lab.runs.folder",
            "",
            'network = chipnet.lab.runs.folder.from_pretrained("this/folder")',
            "```",
            "",
        ]
    )
