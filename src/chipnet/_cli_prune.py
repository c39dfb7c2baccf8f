"""`chipnet prune`. Part of `chipnet.cli`."""

from __future__ import annotations

import dataclasses
import inspect as inspect_
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from chipnet import _config
from chipnet._cli_errors import failures, first, refusals, stop_signals
from chipnet._cli_show import Bars, said, show_result, summary
from chipnet._errors import ConfigError

app = typer.Typer()


def _flags(function: Callable[..., None]) -> Callable[..., None]:
    """Give `function` a flag for every option of a run, all None unless given, in place of `**options`."""
    signature = inspect_.signature(function, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for cls in (_config.Request, _config.Recipe):
        for name, (kind, text, default) in _config.options(cls).items():
            if name not in _config.EPOCHS:
                fixed = cls is _config.Request and kind in (str, int, float) and default != ""
                shown = f"{text} [default: {default}]" if fixed else text
                parameters.append(_flag(name, _FLAG_TYPES.get(kind, str), shown))
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


_FLAG_TYPES: dict[Any, Any] = {
    bool: bool, int: int, int | None: int, float: float, float | None: float,
    tuple[str, ...]: list[str], Any: list[str],
}  # fmt: skip


def _flag(name: str, kind: Any, text: str) -> inspect_.Parameter:
    annotation = Annotated[kind | None, typer.Option(help=text, show_default=False)]
    return inspect_.Parameter(name, inspect_.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


@app.command()
@_flags
def prune(
    *,
    config: Annotated[
        str | None, typer.Option(help="YAML file of options, such as a run's config.yaml; flags win")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="folder of a run that was stopped or killed: continue it"),
    ] = None,
    quick: Annotated[
        bool | None, typer.Option(help="a first look: few steps, at most some thousand training images")
    ] = None,
    epochs: Annotated[
        str | None, typer.Option(help="of each phase: one number, or train,prune,finetune such as 20,15,10")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="both peak learning rates of SGD, at this batch size")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars, no table")] = False,
    **options: Any,
) -> None:
    """Train (or load) a network, prune it to a budget, fine-tune it and save it.

    In the run folder afterwards: result.json, plan.json, masks.json, model.safetensors, dense.safetensors,
    metrics.csv, metrics.jsonl, split.json, config.yaml, report.html.
    """
    console = Console(quiet=quiet or not first(), highlight=False)
    with said(console), refusals():
        if resume is not None:
            others = {"config": config, "quick": quick, "epochs": epochs, "lr": lr, **options}
            request, finished = _continued(resume, [n for n, value in others.items() if value is not None])
            if finished:
                console.print(f"{resume} is finished already.", soft_wrap=True)
                console.print(summary(finished))
                return
        else:
            request = _asked(config, quick, epochs, lr, options)
        from chipnet import train

        job = train.prepare(request, resume=resume is not None)
    with said(console), failures(), stop_signals() as stop, Bars(console) as bars:
        result = train.run(job, bars, stop)
    show_result(console, result, job.out)


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


def _asked(
    config: str | None,
    quick: bool | None,
    epochs: str | None,
    lr: float | None,
    options: Mapping[str, Any],
) -> _config.Request:
    """The request that a config file and the flags over it make."""
    given = {name: value for name, value in options.items() if value is not None}
    if "method" in given:  # of a run with masks it is only a name, but one that is typed is meant
        from chipnet.methods import read_method

        read_method(given["method"])
    recipe = {name: given.pop(name) for name in _config.options(_config.Recipe) if name in given}
    if epochs is not None:
        recipe |= dict(zip(_config.EPOCHS, parse_epochs(epochs), strict=True))
    if lr is not None:
        recipe = {"train_lr": lr, "prune_lr": lr} | recipe
    flags = {**given, "recipe": recipe, "quick": quick}
    if config is None:
        return _config.request_from(flags, source="the options")
    request = _config.request_from(_config.read_config(config), flags, source=config)
    if "out" not in given and not request.overwrite:
        request = dataclasses.replace(request, out=_config.unused(request.out))
    return request


def _continued(resume: str, others: list[str]) -> tuple[_config.Request, dict[str, Any] | None]:
    """The request of the run in `resume`; where it is finished, what its result.json holds."""
    if others:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ConfigError(f"a run that continues keeps the options it began with: leave out {flags}.")
    out = Path(os.path.expanduser(resume))
    if not os.path.isfile(out / _config.CONFIG):
        raise ConfigError(f"there is no run in {out}: it has no {_config.CONFIG}.")
    result = out / "result.json"
    finished = json.loads(result.read_text()) if result.is_file() else None
    path = out / _config.CONFIG
    return _config.request_from(_config.read_config(path), {"out": str(out)}, source=str(path)), finished
