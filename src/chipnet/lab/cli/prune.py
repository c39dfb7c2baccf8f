"""`chipnet prune`. Part of `chipnet.lab.cli`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from chipnet import __version__
from chipnet.errors import BudgetError, Problems
from chipnet.lab.cli.console import Console
from chipnet.lab.cli.errors import first, refusals
from chipnet.lab.cli.options import Grouped, continued, flags, flags_of, read, told
from chipnet.lab.cli.show import carried_out, dry, said, summary
from chipnet.lab.cli.sweep import several, sweep

app = typer.Typer()


@app.command(cls=Grouped, short_help="Train or load a network, prune it to a budget, fine-tune it.")
@flags
def prune(
    *,
    config: Annotated[
        str | None,
        typer.Option(help="YAML file of options, such as a run's config.yaml; flags win"),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="folder of a run that was stopped or killed: continue it"),
    ] = None,
    quick: Annotated[
        bool | None, typer.Option(help="a quick first run: few steps, at most some thousand training images")
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="epochs of each phase: one number, or train,prune,finetune such as 20,15,10"),
    ] = None,
    lr: Annotated[str | None, typer.Option(help="both peak learning rates, at this batch size")] = None,
    nested: Annotated[
        bool,
        typer.Option("--nested", help="of several budgets: prune each network from the next larger one"),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="read and check everything, say what would be done, and do nothing"),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars, no table")] = False,
    **options: Any,
) -> None:
    """Train (or load) a network, prune it to a budget, fine-tune it and save it.

    For example: chipnet prune --model resnet8 --data digits --budget macs=0.25 --out runs/first

    For several values of one kind, --budget macs=0.5,0.25, there is one dense training and one run per value, in
    OUT/0.5 and OUT/0.25. With --nested each network is pruned from the next larger one, which takes less time.

    With --no-train a trained network (--weights, or a run as --model) is cut and refitted in a minute, without
    training. Labels are used only to show accuracies.

    In the run folder afterwards: result.json, plan.json, masks.json, model.safetensors, dense.safetensors,
    metrics.csv and metrics.jsonl of what was trained, split.json, config.yaml, report.html.
    """
    console = Console(quiet=quiet or not first())
    options |= {"config": config, "quick": quick, "epochs": epochs, "lr": lr}
    with said(console), refusals(flags_of(options)):
        problems, budgets = Problems(), {}
        if resume is not None:
            request, finished = continued(resume, options)
            if finished:
                console.tell(f"{resume} is finished already.")
                console.print(summary(finished))
                return
        else:
            request = read(options, problems)
        with problems.collected("budget"):
            budgets = several(request.budget)
            if nested and not budgets and request.budget:
                raise BudgetError("--nested is for several values of one kind, such as macs=0.5,0.25.")
        # Importing PyTorch takes seconds: the first line comes before.
        console.tell(f"chipnet {__version__}{told(request)}")
        from chipnet.lab.job import read_job
        from chipnet.lab.train import prepare
        from chipnet.methods import read_method

        if options["method"]:  # of a run with masks it is only a name, but one that is typed is meant
            with problems.collected("method"):
                read_method(options["method"])
        if dry_run or not budgets:
            first_request = dataclasses.replace(request, budget=next(iter(budgets.values()), request.budget))
            job = (read_job if dry_run else prepare)(
                first_request, resume=resume is not None, problems=problems
            )
    if dry_run:
        console.tell("\n".join(dry(job)))
    elif budgets:
        sweep(console, request, budgets, problems, flags_of(options), nested)
    else:
        carried_out(console, job)
