"""Flags of `chipnet prune`: made from a run's options, shown in groups, read back. Part of `chipnet.lab.cli`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from chipnet._util.sizes import wrong
from chipnet.errors import ConfigError, Problems
from chipnet.lab import config as settings
from chipnet.lab import fit
from chipnet.lab.cli.errors import refusals
from chipnet.lab.config_file import read_config
from chipnet.lab.layers import read_layers, request_from, unused
from chipnet.lab.runs.record import finished

GROUPS: dict[str, tuple[str, ...]] = {
    "What to prune": ("model", "weights", "ignore", "only", "outputs", "realisation", "heads", "trust"),
    "Budget and method": ("budget", "method", "no_train", "images", "masks", "min_channels", "round_to"),
    "Data": (
        "data", "data_dir", "image_size", "mean", "std", "augment", "skip_broken", "checksum", "limit",
        "limit_test", "validation", "workers",
    ),
    "Training": ("quick", "epochs", "lr", *fit.options(settings.Recipe), "seed"),
    "Hardware": (
        "threads", "accelerator", "devices", "num_nodes", "strategy", "precision", "compile", "channels_last",
        "sync_batch_norm",
    ),
    "Output": ("out", "nested", "overwrite", "quiet", "tensorboard", "dry_run"),
    "Options from a file, and runs that stopped": ("config", "resume", "checkpoint_seconds", "checkpoint_steps"),
}  # fmt: skip


_VALUES: dict[str, tuple[str, ...]] = {
    "NAME": ("model", "data", "method", "format", "runtime", "device", "sort"),
    "DIR": ("data_dir", "out"),
    "FILE": ("config", "weights", "masks", "output"),
    "RUN": ("run", "runs", "resume", "against"),
    "RUN|FILE": ("source",),
    "FOLDER": ("folders",),
    "KIND=VALUE": ("budget",),
    "PATTERN": ("ignore", "only"),
    "PATH": ("outputs",),
    "SHAPE": ("input",),
    "N": ("epochs", "static_batch"),
    "INTEGER": (
        "batch", "batch_size", "images", "limit", "limit_test", "num_classes", "opset", "rows", "seed", "threads",
    ),
    "NUMBER": ("lr", "seconds", "validation"),
    "NUMBERS": ("mean", "std"),
}  # fmt: skip
_NAMES = {name: value for value, names in _VALUES.items() for name in names}
"""What the help calls the value of an option or argument, by its name."""


class Command(TyperCommand):
    """A command whose whole numbers are neither too small nor too large, or nothing starts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if not getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = _NAMES.get(str(parameter.name), "TEXT")

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        with refusals():
            problems = Problems()
            for parameter in self.params:
                name = str(parameter.name)
                if said := wrong(name, ctx.params.get(name), parameter.opts[0]):
                    problems.add(f"{said}.")
            problems.tell()
        return super().invoke(ctx)


class Grouped(Command):
    """A command whose help has its options in groups, each in the order of its names."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section a group, and one for what is in none."""
        records = {p.name: p.get_help_record(ctx) for p in self.get_params(ctx)}
        groups = {title: [records.pop(n, None) for n in names] for title, names in GROUPS.items()}
        for title, rows in (groups | {"Other": [*records.values()]}).items():
            if found := [row for row in rows if row is not None]:
                with formatter.section(title):
                    formatter.write_dl(found)


_TEXTS = {bool: None, int: "INTEGER", int | None: "INTEGER", float: "NUMBER", float | None: "NUMBER"}


def flags(function: Callable[..., None]) -> Callable[..., None]:
    """Give `function` a flag for every option of a run, all None unless given, in place of `**options`.

    Numbers are taken as texts: `read` says of all at once which are none.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for cls in (settings.Request, settings.Recipe):
        for name, (kind, text, default) in fit.options(cls).items():
            if name not in settings.EPOCHS:
                fixed = cls is settings.Request and kind in (str, int, float) and default != ""
                parameters.append(_flag(name, kind, f"{text} [default: {default}]" if fixed else text))
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


def _flag(name: str, kind: Any, text: str) -> inspect.Parameter:
    given: Any = bool if kind is bool else list[str] if kind in (tuple[str, ...], Any) else str
    metavar = _TEXTS.get(kind, _NAMES.get(name, "TEXT"))
    both = [f"{flag(name)}/--{name.removeprefix('no_')}"] if name.startswith("no_") else []
    option = typer.Option(*both, help=text, show_default=False, metavar=metavar)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[given | None, option]
    )


def flag(name: str) -> str:
    """The flag of an option.

    >>> flag("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def flags_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Option -> its flag, or the short one that gave its value."""
    names = [name for cls in (settings.Request, settings.Recipe) for name in fit.options(cls)]
    every = {name: flag(name) for name in names if name not in settings.EPOCHS}
    short = [rate for rate in ("train_lr", "prune_lr") if options["lr"] is not None and options[rate] is None]
    every |= dict.fromkeys(short, "--lr")
    return every | ({n: f"--epochs: {n}" for n in settings.EPOCHS} if options["epochs"] is not None else {})


def read(options: Mapping[str, Any], problems: Problems) -> settings.Request:
    """The request that flags make, over those of the file in ``options["config"]``."""
    given = {name: value for name, value in options.items() if value is not None}
    kinds = {
        n: kind for cls in (settings.Request, settings.Recipe) for n, (kind, *_) in fit.options(cls).items()
    }
    config, quick, epochs, lr = (given.pop(name, None) for name in ("config", "quick", "epochs", "lr"))
    given = {name: _typed(value, kinds[name]) for name, value in given.items()}
    recipe = {name: given.pop(name) for name in fit.options(settings.Recipe) if name in given}
    if epochs is not None:
        with problems.collected():
            recipe |= dict(zip(settings.EPOCHS, parse_epochs(epochs), strict=True))
    if lr is not None:
        recipe = {"train_lr": lr, "prune_lr": lr} | recipe
    layers: list[tuple[str, Mapping[str, Any]]] = [("", {**given, "recipe": recipe, "quick": quick})]
    if config is not None:
        with problems.collected():
            layers.insert(0, (config, read_config(config)))
    request = read_layers(layers, problems)
    if config is not None and request.out and "out" not in given and not request.overwrite:
        request = dataclasses.replace(request, out=unused(request.out))
    return request


def _typed(value: Any, kind: Any) -> Any:
    """The text of a flag as YAML would have it; what is none is left for the check of types."""
    if kind in (int, int | None):
        try:
            return int(value)
        except ValueError:
            pass
    if kind == tuple[float, ...] | None:
        return value.split(",")
    return value


def parse_epochs(text: str) -> tuple[int, int, int]:
    """Epochs of training, pruning and fine-tuning, from one number for all or three.

    Raises:
        ConfigError: it is neither.

    Example:
        >>> parse_epochs("5"), parse_epochs("20, 15,10")
        ((5, 5, 5), (20, 15, 10))
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or min(numbers) < 0:
        raise ConfigError(
            f"--epochs {text!r}: give one whole number for all phases, or three as train,prune,finetune, "
            "such as 20,15,10."
        )
    first, middle, last = numbers * 3 if len(numbers) == 1 else numbers
    return first, middle, last


def continued(resume: str, options: Mapping[str, Any]) -> tuple[settings.Request, dict[str, Any] | None]:
    """The request of the run in `resume`; where it is finished, what its result.json holds."""
    if others := [flag(name) for name, value in options.items() if value is not None]:
        raise ConfigError(
            f"a run that continues keeps the options it began with: leave out {', '.join(others)}."
        )
    out = Path(os.path.expanduser(resume))
    path = out / settings.CONFIG
    if not os.path.isfile(path):
        raise ConfigError(f"there is no run in {out}: it has no {settings.CONFIG}.")
    result = finished(out)
    return request_from(read_config(path), {"out": str(out)}, source=str(path)), result


def told(request: settings.Request) -> str:
    """A request in one line, for the first line of a run: as much as it says.

    >>> told(settings.Request("resnet8", "digits", ["macs=0.25", "params=2M"], "runs/a"))
    ': resnet8 on digits, budget macs=0.25, params=2M, into runs/a'
    """
    texts = [request.budget] if isinstance(request.budget, str) else request.budget
    budget, out = ", ".join(map(str, texts)), os.fspath(request.out)
    words = [request.model and f": {request.model}", request.data and f" on {request.data}"]
    words += [budget and f", budget {budget}", ", without training" if request.no_train else ""]
    words += [out and f", into {shlex.quote(out)}"]
    return "".join(words)
