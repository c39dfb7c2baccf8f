"""Commands about finished runs: `chipnet export`. Part of `chipnet.cli`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()

_RUN = "folder of a finished run"
_DATA_DIR = "folder of the run's data set, if it has moved"
_THREADS = "CPU threads [default: PyTorch's]"


@app.command()
def export(
    run: Annotated[str, typer.Argument(help=_RUN)],
    format: Annotated[str, typer.Option(help="onnx, torch-export, torchscript or executorch")] = "onnx",
    output: Annotated[
        str | None, typer.Option(help="the file [default: model.SUFFIX in the run folder]")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="the dense network instead of the compact one")
    ] = False,
    opset: Annotated[int | None, typer.Option(help="of ONNX [default: PyTorch's]")] = None,
    static_batch: Annotated[
        int | None, typer.Option(help="batches of this size only [default: of any size]", metavar="N")
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="batch norms into the convolutions before them")
    ] = True,
    images: Annotated[int, typer.Option(help="test images on which outputs are compared")] = 64,
    data_dir: Annotated[str | None, typer.Option(help=_DATA_DIR)] = None,
) -> None:
    """Write a run's network for another runtime; load it there and compare on test images.

    A mismatch is an error and leaves no file. Budget, costs, accuracy, labels and preprocessing travel in the file.
    """
    with _refusals():
        from chipnet._export import FORMATS
        from chipnet._export import export as write
        from chipnet.runs import Run

        source = Run.open(run)
        if format not in FORMATS:
            raise _config_error(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
        name = "dense" if dense else "model"
        done = write(
            source.dense() if dense else source.compact(),
            Path(output).expanduser() if output else source.folder / f"{name}{FORMATS[format].suffix}",
            source.images(static_batch or images, data_dir),
            format=format,
            dynamic_batch=static_batch is None,
            opset=opset,
            fold=fold,
            metadata=source.card(),
        )
    Console(highlight=False).print(str(done), markup=False, soft_wrap=True)


def _config_error(text: str) -> Exception:
    from chipnet._errors import ConfigError

    return ConfigError(text)


@contextmanager
def _refusals() -> Iterator[None]:
    from chipnet import cli

    with cli._refusals():
        yield
