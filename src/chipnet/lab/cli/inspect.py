"""`chipnet inspect` and `models`: what there is, and what of it can be pruned. Part of `chipnet.lab.cli`."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import typer
from rich.table import Table

from chipnet._util.sizes import MAX
from chipnet._util.text import amount, few
from chipnet.errors import ConfigError
from chipnet.lab.cli.console import Console
from chipnet.lab.cli.errors import refusals
from chipnet.lab.cli.options import Command

app = typer.Typer()

MODEL = "a name (`chipnet models`; torchvision's and timm's too), or module:callable"
DATA = "digits, fashion-mnist, cifar10, cifar100, image-folder and more, or module:callable"
DATA_DIR = "folder of the data set; nothing is ever downloaded"
TRUST = "import and call the code (module:callable) that the folder of a run names"
HEADS = "narrow: attention loses the same features of all heads; whole: whole heads; both: heads and features"
REALISATION = "plain: dense layers only; indexed: layers may read or write a part of a tensor by index"
IGNORE = (
    "modules that keep all channels: a pattern of names ('layer1.*') or types ('type:Linear'); repeatable"
)
ONLY = "the only modules that are pruned, written as for --ignore; repeatable"
OUTPUTS = "the outputs that matter, such as 0, 0.boxes or logits: others may go; repeatable"


@app.command(cls=Command, short_help="List what can be pruned in a network, and what it costs.")
def inspect(
    model: Annotated[str, typer.Argument(help=f"{MODEL}; or the folder of a run", metavar="NETWORK")],
    data: Annotated[str | None, typer.Option(help="a data set whose image size and classes to use")] = None,
    data_dir: Annotated[str | None, typer.Option(help=DATA_DIR)] = None,
    input: Annotated[
        str | None,
        typer.Option(help="shape of the input, such as 1,3,224,224 [default: 32 or 224 pixels]"),
    ] = None,
    num_classes: Annotated[int, typer.Option(help="size of the output, without --data")] = 10,
    realisation: Annotated[str, typer.Option(help=REALISATION)] = "plain",
    heads: Annotated[str, typer.Option(help=HEADS)] = "narrow",
    ignore: Annotated[list[str] | None, typer.Option(help=IGNORE)] = None,
    only: Annotated[list[str] | None, typer.Option(help=ONLY)] = None,
    outputs: Annotated[list[str] | None, typer.Option(help=OUTPUTS)] = None,
    trust: Annotated[bool, typer.Option("--trust", help=TRUST)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON on stdout")] = False,
) -> None:
    """List what can be pruned in a network, what is tied, what is kept whole and why, and what it costs."""
    with refusals():
        chosen = {"ignore": tuple(ignore or ()), "only": tuple(only or ()), "outputs": tuple(outputs or ())}
        report = _inspected(model, data, data_dir, input, num_classes, realisation, heads, chosen, trust)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    console = Console()
    sites = Table("site", "status", "channels", "gates", "why", title=f"{model}, input {report['input']}")
    for site in report["sites"]:
        sites.add_row(site["name"], site["status"], f"{site['channels']:,}", f"{site['gates']:,}", _why(site))
    console.print(sites)
    if report["untraced"]:
        names = few(report["untraced"])
        console.print(f"Read by no forward that could be traced, kept as they are: {names}")
    for note in report["notes"]:
        console.tell(f"Note: {note}.")
    kept = Counter(site["reason"] for site in report["sites"] if site["pin"] or site["status"] == "kept")
    if kept:
        console.print("Kept whole (sites × why):")
        for reason, count in kept.most_common():
            console.print(f"  {count} × {reason}")
    cost = ", ".join(f"{kind} {count:,}" for kind, count in report["cost"].items())
    console.tell(f"{amount(report['gates'], 'gate')}. Cost: {cost}")


def _why(site: Mapping[str, Any]) -> str:
    tied = ""
    if site["tied_to"]:
        by = "; ".join(
            dict.fromkeys(f"{t['reason']} in '{t['module']}' ({t['line']})" for t in site["ties"][:2])
        )
        tied = f"with {few(site['tied_to'])}" + (f": {by}" if by else "")
    return "; ".join(text for text in (tied, site["reason"]) if text)


@app.command(cls=Command)
def models() -> None:
    """List the names of the networks that chipnet defines."""
    from chipnet.lab.models import list_models

    print("\n".join(list_models()))
    print("also: wrn-<depth>-<width>, tv/NAME (torchvision), timm/NAME, module:callable", file=sys.stderr)


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape of an input, from numbers with commas.

    Raises:
        ConfigError: not whole numbers above 0, or of too many numbers.

    Example:
        >>> parse_shape("1,3,224,224")
        (1, 3, 224, 224)
    """
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise ConfigError(f"--input {text!r}: give the shape of a batch of one, such as 1,3,224,224.")
    if math.prod(shape) > MAX:
        raise ConfigError(f"--input {text!r} is of more than {MAX:,} numbers.")
    return shape


def _inspected(
    model: str,
    data: str | None,
    data_dir: str | None,
    shape: str | None,
    num_classes: int,
    realisation: str,
    heads: str,
    chosen: Mapping[str, tuple[str, ...]],
    trust: bool,
) -> dict[str, Any]:
    import torch

    from chipnet import Structure
    from chipnet.lab.data import load_data
    from chipnet.lab.further import run_named
    from chipnet.lab.models import get_model, list_models
    from chipnet.lab.runs.folder import Run

    folder = run_named(model)
    if folder and (data is not None or shape is not None):
        raise ConfigError(f"{model} is a run, whose network knows its input: leave out --data and --input.")
    if folder:
        run = Run.open(folder, trust)
        network, size = run.compact(), cast("tuple[int, int, int, int]", tuple(run.noise(1).shape))
    elif data is not None:
        if shape is not None:
            raise ConfigError("give --data or --input, not both.")
        loaded = load_data(data, data_dir)
        num_classes = loaded.num_classes
        size = (1, loaded.in_channels, loaded.image_size, loaded.image_size)
    elif shape is not None:
        size = cast("tuple[int, int, int, int]", parse_shape(shape))
    else:
        own = model.lower().replace("_", "-") in list_models() or model.lower().startswith("wrn")
        size = (1, 3, 32, 32) if own else (1, 3, 224, 224)
    if not folder:
        network = get_model(model, num_classes, size[1])
    structure = Structure(
        network,
        torch.zeros(size),
        realisation=cast(Literal["plain", "indexed"], realisation),
        heads=cast(Literal["narrow", "whole", "both"], heads),
        ignore=chosen["ignore"],
        only=chosen["only"],
        outputs=chosen["outputs"],
    )
    pins = Counter(str(pin) for pin in structure.graph.pins.values())
    return {
        "model": model,
        "input": list(size),
        "realisation": realisation,
        "gates": structure.gates,
        "cost": structure.cost.dense.to_json(),
        "sites": structure.report(),
        "untraced": list(structure.untraced),
        "notes": list(structure.notes),
        "pins": [{"reason": reason, "count": count} for reason, count in pins.most_common()],
    }
