"""`chipnet transfer`. Part of `chipnet.lab.cli`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chipnet._util.text import amount
from chipnet.errors import ConfigError
from chipnet.lab.cli.console import Console
from chipnet.lab.cli.errors import first, refusals
from chipnet.lab.cli.inspect import DATA, DATA_DIR, IGNORE, MODEL, ONLY, REALISATION, TRUST
from chipnet.lab.cli.options import Command
from chipnet.lab.cli.show import carried_out, said

app = typer.Typer()

_OURS = "[default: the run's]"
_RECIPE = "[default: the run's own on its data, else the data set's]"
_EPOCHS = f"in all: one number, instead of those of all phases {_RECIPE}"
_QUICK = "a first look: few epochs and 6,000 training images"
_BUDGET = "refuse masks that cost more on the new data; repeatable [default: compare with the run's]"
_WEIGHTS = "dense weights, trained on the new data, to start from [default: new ones]"
_VALIDATION = f"part of the training images that chooses epochs {_RECIPE}"


@app.command(cls=Command, short_help="Train the compact network of another run's masks.")
def transfer(
    source: Annotated[str, typer.Option("--from", help="a finished run, or a file of masks")],
    out: Annotated[str, typer.Option(help="run folder; made if missing")],
    data: Annotated[str, typer.Option(help=DATA)],
    model: Annotated[str | None, typer.Option(help=f"{MODEL} {_OURS}")] = None,
    budget: Annotated[list[str] | None, typer.Option(help=_BUDGET)] = None,
    data_dir: Annotated[str | None, typer.Option(help=DATA_DIR)] = None,
    weights: Annotated[str | None, typer.Option(help=_WEIGHTS)] = None,
    seed: Annotated[int, typer.Option(help="seed of all random numbers")] = 0,
    epochs: Annotated[str | None, typer.Option(help=_EPOCHS)] = None,
    quick: Annotated[bool, typer.Option("--quick", help=_QUICK)] = False,
    batch_size: Annotated[int | None, typer.Option(help=f"images per step {_RECIPE}")] = None,
    lr: Annotated[float | None, typer.Option(help=f"peak rate, at this batch size {_RECIPE}")] = None,
    limit: Annotated[int | None, typer.Option(help=f"most training images {_RECIPE}")] = None,
    limit_test: Annotated[int | None, typer.Option(help=f"most test images {_RECIPE}")] = None,
    realisation: Annotated[str | None, typer.Option(help=f"{REALISATION} {_OURS}")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help=IGNORE)] = None,
    only: Annotated[list[str] | None, typer.Option(help=ONLY)] = None,
    validation: Annotated[float | None, typer.Option(help=_VALIDATION)] = None,
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
        from chipnet.lab.runs import transfer

        recipe, options, whose = transfer.recipe_like(source, data, data_dir, quick)
        changes: dict[str, Any] = {"batch_size": batch_size, "limit": limit, "limit_test": limit_test}
        changes |= {"train_lr": lr, "prune_lr": lr, **_phases(epochs)}
        options["recipe"] = recipe.changed({n: value for n, value in changes.items() if value is not None})
        options |= {} if validation is None else {"validation": validation}
        options |= {"out": out, "data_dir": data_dir, "overwrite": overwrite, "weights": weights}
        options |= {"realisation": realisation, "ignore": tuple(ignore or ()), "only": tuple(only or ())}
        options |= {"seed": seed, "accelerator": accelerator, "precision": precision, "threads": threads}
        request = transfer.request_for(source, data, model=model, budget=budget, trust=trust, **options)
        job = transfer.prepare_transfer(request, strict=bool(budget))
    console.tell(
        f"masks of {source} fit; on {data} they leave {transfer.reached(job)}; "
        f"{amount(sum(job.recipe.epochs), 'epoch')} by {whose}"
    )
    carried_out(console, job)


def _phases(epochs: str | None) -> dict[str, Any]:
    """All epochs of a recipe are trained here, and pruning has at least one by itself."""
    return {} if epochs is None else {"train": 0, "prune": 1, "finetune": parse_total(epochs) - 1}


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
