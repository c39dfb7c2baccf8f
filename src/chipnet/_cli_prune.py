"""`chipnet prune`. Part of `chipnet.cli`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from chipnet import __version__
from chipnet._cli_errors import failures, first, refusals, stop_signals
from chipnet._cli_options import Grouped, continued, flags, flags_of, read, told
from chipnet._cli_show import Bars, said, show_result, summary
from chipnet._errors import Problems

app = typer.Typer()


@app.command(cls=Grouped)
@flags
def prune(
    *,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML file of options, such as a run's config.yaml; flags win"),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="folder of a run that was stopped or killed: continue it"),
    ] = None,
    quick: Annotated[
        bool | None, typer.Option(help="a first look: few steps, at most some thousand training images")
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(metavar="N", help="of each phase: one number, or train,prune,finetune such as 20,15,10"),
    ] = None,
    lr: Annotated[
        str | None, typer.Option(help="both peak learning rates of SGD, at this batch size", metavar="NUMBER")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars, no table")] = False,
    **options: Any,
) -> None:
    """Train (or load) a network, prune it to a budget, fine-tune it and save it.

    In the run folder afterwards: result.json, plan.json, masks.json, model.safetensors, dense.safetensors,
    metrics.csv, metrics.jsonl, split.json, config.yaml, report.html.
    """
    console = Console(quiet=quiet or not first(), highlight=False)
    options |= {"config": config, "quick": quick, "epochs": epochs, "lr": lr}
    with said(console), refusals(flags_of(options)):
        problems = Problems()
        if resume is not None:
            request, finished = continued(resume, options)
            if finished:
                console.print(f"{resume} is finished already.", soft_wrap=True)
                console.print(summary(finished))
                return
        else:
            request = read(options, problems)
        # Importing PyTorch takes seconds: the first line comes before.
        console.print(f"chipnet {__version__}{told(request)}", markup=False, soft_wrap=True)
        from chipnet import train
        from chipnet.methods import read_method

        if options["method"]:  # of a run with masks it is only a name, but one that is typed is meant
            with problems.collected("method"):
                read_method(options["method"])
        job = train.prepare(request, resume=resume is not None, problems=problems)
    with said(console), failures(), stop_signals() as stop, Bars(console) as bars:
        result = train.run(job, bars, stop)
    show_result(console, result, job.out)
