"""`chipnet transfer`. Part of `chipnet.lab.cli`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chipnet.errors import ConfigError
from chipnet.lab.cli.console import Console
from chipnet.lab.cli.errors import failures, first, refusals, stop_signals
from chipnet.lab.cli.inspect import DATA, DATA_DIR, IGNORE, MODEL, ONLY, REALISATION, TRUST
from chipnet.lab.cli.options import Command
from chipnet.lab.cli.show import Bars, said, show_result

app = typer.Typer()

_WHOSE = "the run's own on its data, else the data set's"


@app.command(cls=Command, short_help="Train the compact network of another run's masks.")
def transfer(
    source: Annotated[str, typer.Option("--from", help="a finished run, or a file of masks")],
    out: Annotated[str, typer.Option(help="run folder; made if missing")],
    data: Annotated[str, typer.Option(help=DATA)],
    model: Annotated[str | None, typer.Option(help=f"{MODEL} [default: the run's]")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="refuse masks that cost more here; repeatable [default: compare with the run's]"),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help=DATA_DIR)] = None,
    weights: Annotated[
        str | None, typer.Option(help="dense weights of the target to start from [default: new ones]")
    ] = None,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    epochs: Annotated[
        str | None, typer.Option(help=f"in all: one number [default: those of all phases, {_WHOSE}]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="a first look: few epochs and 6,000 training images")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(help=f"images per step [default: {_WHOSE}]")] = None,
    lr: Annotated[
        float | None, typer.Option(help=f"peak learning rate, at this batch size [default: {_WHOSE}]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help=f"keep only so many training images [default: {_WHOSE}]")
    ] = None,
    limit_test: Annotated[
        int | None, typer.Option(help=f"keep only so many test images [default: {_WHOSE}]")
    ] = None,
    realisation: Annotated[str | None, typer.Option(help=f"{REALISATION} [default: the run's]")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help=IGNORE)] = None,
    only: Annotated[list[str] | None, typer.Option(help=ONLY)] = None,
    validation: Annotated[
        float | None,
        typer.Option(help=f"part of the training images that chooses epochs [default: {_WHOSE}]"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: PyTorch's]")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed")] = "32-true",
    trust: Annotated[bool, typer.Option("--trust", help=TRUST)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a finished run in --out")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars, no table")] = False,
) -> None:
    """Train the compact network of another run's masks: same architecture, other data, classes, channels.

    On the run's own data the recipe is the run's own, epochs and limits included, unless an option says otherwise:
    the same architecture from new weights, with the same effort.
    """
    console = Console(quiet=quiet or not first())
    with said(console), refusals():
        from chipnet.lab import train
        from chipnet.lab.runs import transfer

        asked = {"batch_size": batch_size, "limit": limit, "limit_test": limit_test}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if lr is not None:
            changes |= {"train_lr": lr, "prune_lr": lr}
        recipe, reading, whose = transfer.recipe_of(source, data, data_dir, quick)
        recipe = recipe.changed(changes)
        if epochs is not None:
            total = parse_total(epochs)
            # All epochs of the recipe are trained; pruning has at least one by itself.
            recipe = recipe.changed({"train": 0, "prune": 1, "finetune": total - 1})
        reading |= {} if validation is None else {"validation": validation}
        request = transfer.request_for(
            source,
            data,
            model=model,
            budget=budget,
            trust=trust,
            out=out,
            recipe=recipe,
            data_dir=data_dir,
            **reading,
            weights=weights,
            realisation=realisation,
            ignore=tuple(ignore or ()),
            only=tuple(only or ()),
            seed=seed,
            accelerator=accelerator,
            precision=precision,
            overwrite=overwrite,
            threads=threads,
        )
        job = transfer.prepare(request, strict=bool(budget))
    console.tell(
        f"masks of {source} fit; on {data} they leave {transfer.reached(job)}; "
        f"{sum(job.recipe.epochs)} epochs by {whose}"
    )
    with said(console), failures(), stop_signals() as stop, Bars(console) as bars:
        result = train.run(job, bars, stop)
    show_result(console, result, job.out)


def parse_total(text: str) -> int:
    """Epochs in all, where there are no phases.

    Raises:
        ConfigError: not one whole number, or less than 1.
    """
    try:
        total = int(text)
    except ValueError:
        total = 0
    if total < 1:
        raise ConfigError(f"--epochs {text!r}: give one whole number, of at least 1: nothing is pruned here.")
    return total
