"""`chipnet val`. Part of `chipnet.lab.cli`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from chipnet._util.text import amount
from chipnet.errors import ConfigError
from chipnet.lab.cli.console import Console
from chipnet.lab.cli.errors import refusals
from chipnet.lab.cli.inspect import DATA, DATA_DIR, MODEL, TRUST
from chipnet.lab.cli.options import Command

app = typer.Typer()


@app.command(cls=Command, short_help="Show loss and accuracy of a saved network on test images.")
def val(
    run: Annotated[
        str, typer.Argument(help="folder of a finished run, or a model.safetensors", metavar="RUN|FILE")
    ],
    data: Annotated[str | None, typer.Option(help=f"{DATA} [default: the run's]")] = None,
    data_dir: Annotated[str | None, typer.Option(help=f"{DATA_DIR} [default: the run's]")] = None,
    model: Annotated[str | None, typer.Option(help=f"for a FILE outside of a run folder: {MODEL}")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images at once [default: the run's]")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: PyTorch's]")] = None,
    trust: Annotated[bool, typer.Option("--trust", help=TRUST)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON on stdout")] = False,
) -> None:
    """Show loss and accuracy of a saved network on test images; of a run, of its dense and compact network."""
    with refusals({"data_dir": "--data-dir"}):
        import torch

        from chipnet.lab.devices import use_threads
        from chipnet.lab.val import measure, networks_of

        use_threads(threads)
        if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
            raise ConfigError(f"there is no device {device!r} here: cpu, or cuda where PyTorch finds one.")
        networks, images, size = networks_of(run, model, data, data_dir, trust)
        rows = {
            name: measure(network.to(device), images.loader("test", batch_size or size))
            for name, network in networks.items()
        }
    if as_json:
        print(json.dumps({"data": images.name, **rows}, indent=2))
        return
    count = next(iter(rows.values()))["images"]
    table = Table("", title=f"{images.name}, {amount(int(count), 'test image')}", title_justify="left")
    for column in ("loss", "accuracy"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, f"{row['loss']:.4f}", f"{row['accuracy']:.2f} %")
    Console().print(table)
