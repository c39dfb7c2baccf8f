"""Run folders, read: what `chipnet prune` leaves is plain files, and this is where they are opened again.

======================  ===========================================================================
`result.json`           the final numbers; written last: where it is, a run is complete
`plan.json`             what was cut (`chipnet.Plan.load`)
`model.safetensors`     the compact network (`chipnet.load`)
`dense.safetensors`     weights of the dense network (`chipnet.models.load_weights`)
`metrics.csv`           one row an epoch
======================  ===========================================================================

Nothing here trains, and nothing here downloads. `docs/runs.md` has every field.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._config import CONFIG as OPTIONS
from chipnet._config import read_config
from chipnet._errors import ConfigError, LoadError
from chipnet._files import write_atomically, write_json
from chipnet._io import load
from chipnet._plan import Plan
from chipnet.data import Data, load_data
from chipnet.models import get_model, load_weights

RESULT, PLAN, MODEL, DENSE, METRICS = (
    "result.json",
    "plan.json",
    "model.safetensors",
    "dense.safetensors",
    "metrics.csv",
)
CONFIG = "config.json"
"""Of a folder in the style of the Hugging Face Hub; see `Run.save_pretrained`."""


@dataclass(frozen=True)
class Run:
    """A finished run. Make one with `Run.open`.

    Attributes:
        folder: where it is.
        result: what result.json holds.
    """

    folder: Path
    result: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Read the result of a run folder.

        Raises:
            LoadError: there is no finished run.
        """
        path = Path(folder).expanduser()
        return cls(
            path, _json(path / RESULT, "Give the folder of a finished run: what chipnet prune --out wrote.")
        )

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    def left(self, kind: str) -> float:
        """Cost of the compact network as a part of the dense one's."""
        return float(self.result["compact"][kind] / max(self.result["dense"][kind], 1))

    def plan(self) -> Plan:
        """What was cut."""
        return Plan.load(self.folder / PLAN)

    def metrics(self) -> list[dict[str, str]]:
        """Rows of metrics.csv, as text."""
        try:
            with open(self.folder / METRICS, newline="") as file:
                return list(csv.DictReader(file))
        except OSError as error:
            raise LoadError(f"cannot read {self.folder / METRICS}: {error.strerror}") from error

    def build(self) -> nn.Module:
        """The dense network, freshly built, without the run's weights."""
        given = self._input()
        return get_model(self.result["model"], given["num_classes"], given["in_channels"])

    def dense(self) -> nn.Module:
        """The trained dense network, in eval mode on the CPU."""
        network = self.build()
        load_weights(network, str(self.folder / DENSE))
        return network.eval()

    def compact(self) -> nn.Module:
        """The compact network, in eval mode on the CPU."""
        return load(self.build, self.folder / MODEL).eval()

    def data(self, data_dir: str | None = None) -> Data:
        """The data set that the run was made with, split as it was.

        Args:
            data_dir: where it is now, if it is no longer where the run found it.
        """
        recipe, config = self.result["recipe"], self.folder / OPTIONS
        size = read_config(config).get("image_size") if config.exists() else None
        return load_data(
            self.result["data"],
            data_dir or self._input()["data_dir"],
            seed=self.result["seed"],
            limit=recipe["limit"],
            limit_test=recipe["limit_test"],
            image_size=size,
            batch_size=recipe["batch_size"],
        )

    def images(self, count: int, data_dir: str | None = None) -> Tensor:
        """The first test images as the networks see them: float32 ``[count, C, H, W]``, or as many as there are
        (a loader of the user's: as many as its first batch has)."""
        try:
            images, _ = next(iter(self.data(data_dir).loader("test", count)))
        except ConfigError as error:
            raise ConfigError(f"{error} Give the folder of the run's data set with --data-dir.") from error
        return images[:count]

    def noise(self, count: int) -> Tensor:
        """Noise in the shape of images, the same every time: for times, which do not depend on what is seen."""
        given = self._input()
        shape = (count, given["in_channels"], given["image_size"], given["image_size"])
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def card(self) -> dict[str, Any]:
        """What goes with the network wherever it goes: task, labels, preprocessing, budget, costs, accuracy."""
        result, given = self.result, self._input()
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
        out = Path(folder).expanduser()
        out.mkdir(parents=True, exist_ok=True)
        card = self.card()
        labels = {str(i): name for i, name in enumerate(card["labels"])}
        write_atomically(out / "README.md", _readme(self.name, card).encode())
        write_atomically(out / MODEL, (self.folder / MODEL).read_bytes())
        if (self.folder / PLAN).exists():
            shutil.copyfile(self.folder / PLAN, out / PLAN)
        write_json(out / CONFIG, {"library_name": "chipnet", **card, "id2label": labels})

    def _input(self) -> Mapping[str, Any]:
        if "input" not in self.result:
            raise LoadError(
                f"{self.folder / RESULT} does not say what images the network takes: an older chipnet wrote it. "
                "Run it again, or use chipnet.load with your own constructor."
            )
        return dict(self.result["input"])


def from_pretrained(
    folder: str | os.PathLike[str], factory: Callable[[], nn.Module] | None = None
) -> nn.Module:
    """The compact network of a local folder: a run, or one that `Run.save_pretrained` wrote. No network access.

    Args:
        folder: holds model.safetensors, and config.json or result.json.
        factory: builds the dense network; the default is the model that the folder names, built by
            `chipnet.models.get_model`.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        LoadError: a file is missing or damaged, belongs to another network, or names code (`module:callable`): no
            code is imported because a folder says so.
        ConfigError: the network that is named cannot be built here.

    Example:
        >>> import chipnet.runs
        >>> chipnet.runs.from_pretrained("nowhere")
        Traceback (most recent call last):
        ...
        chipnet._errors.LoadError: nowhere/config.json does not exist. Give a folder that Run.save_pretrained ...
    """
    path = Path(folder).expanduser()
    if factory is not None:
        return load(factory, path / MODEL).eval()
    if (path / RESULT).exists() and not (path / CONFIG).exists():
        run = Run.open(path)
        config = {"model": run.result["model"], **run._input()}
    else:
        config = _json(path / CONFIG, "Give a folder that Run.save_pretrained wrote, or a run, or a factory.")
    missing = [k for k in ("model", "num_classes", "in_channels") if k not in config]
    if missing:
        raise LoadError(
            f"{path / CONFIG} lacks {', '.join(missing)}. Give a factory that builds the dense network."
        )
    name = str(config["model"])
    if ":" in name:  # a folder may come from anywhere, and must not choose which code runs
        raise LoadError(
            f"{path} is of a network of its maker's own, {name!r}, whose code is not in the folder. Give a factory "
            "that builds the dense network."
        )
    return load(lambda: get_model(name, config["num_classes"], config["in_channels"]), path / MODEL).eval()


def find_runs(*folders: str | os.PathLike[str]) -> Iterator[Run]:
    """Finished runs in and below folders, in the order of their paths.

    Raises:
        LoadError: a folder does not exist, or holds no finished run.
    """
    for folder in folders:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise LoadError(f"there is no folder {path}")
        found = sorted(path.rglob(RESULT))
        if not found:
            raise LoadError(f"there is no finished run in {path} (no {RESULT})")
        for file in found:
            yield Run.open(file.parent)


def _json(path: Path, hint: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise LoadError(f"{path} does not exist. {hint}") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict):
        raise LoadError(f"{path} holds no JSON object. {hint}")
    return data


def percent(accuracy: float | None, sign: str = " %") -> str:
    """An accuracy as people read it: of a network that was never trained there is none."""
    return "–" if accuracy is None else f"{accuracy:.2f}{sign}"


def _costs(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "accuracy"}


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
            "import chipnet.runs",
            "",
            'network = chipnet.runs.from_pretrained("this/folder")',
            "```",
            "",
        ]
    )
