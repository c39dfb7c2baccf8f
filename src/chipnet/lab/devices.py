"""The devices, processes and threads of a run: checked, then launched."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import torch

from chipnet._util.sizes import check_size
from chipnet.errors import Problems
from chipnet.lab.config import Request

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


def use_threads(threads: int | None) -> int:
    """Set the CPU threads, where a number is given; how many there are."""
    if threads is not None:
        check_size("threads", threads)
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def check_device(request: Request, problems: Problems) -> None:
    """What can be said of a request's devices before any is used."""
    accelerator, precision = request.accelerator, request.precision
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if precision not in (*PRECISIONS, "32"):
        problems.add(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}", "precision")
    if request.strategy not in STRATEGIES:
        problems.add(
            f"unknown strategy {request.strategy!r}; known: {', '.join(STRATEGIES)}. Strategies that cut up "
            "parameters leave no whole channels to prune.",
            "strategy",
        )
    if request.devices < -1 or request.devices == 0:
        problems.add(f"devices must be at least 1, or -1 for all GPUs, not {request.devices}")
    if accelerator != "auto" and accelerator not in has:
        problems.add(f"unknown accelerator {accelerator!r}; known: auto, {', '.join(has)}", "accelerator")
        return
    if accelerator != "auto" and not has[accelerator]:
        problems.add(f"PyTorch finds no {accelerator.upper()} device here. Use --accelerator cpu.")
        return
    cuda = accelerator in ("auto", "cuda") and has["cuda"]
    if precision == "16-mixed" and not cuda:
        problems.add("the precision 16-mixed needs a CUDA device; on a CPU use 32-true or bf16-mixed.")
    if request.sync_batch_norm and not cuda:
        problems.add("sync_batch_norm needs CUDA devices: PyTorch has none for the CPU. Leave it out.")
    if request.devices == -1 and not cuda:
        problems.add("devices -1 takes all GPUs, and there is none. Give the number of processes.")
    if cuda and request.devices > torch.cuda.device_count():
        problems.add(
            f"devices is {request.devices}, and there are {torch.cuda.device_count()} CUDA devices here."
        )


def torchruns() -> int:
    """How many processes torchrun has started, this one among them; 0: it has not started this one."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def launched(request: Request) -> Fabric:
    """Devices and processes, launched: from here on, every process runs what follows."""
    from lightning.fabric import Fabric  # takes seconds to import, so not before it is needed

    accelerator = request.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    devices, nodes = request.devices, request.num_nodes
    if processes := torchruns():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = processes // devices
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=request.strategy,
        precision=request.precision,  # type: ignore[arg-type]
    )
    with warnings.catch_warnings():
        # Lightning's advice for notebooks and clusters, and PyTorch's about its own defaults.
        warnings.simplefilter("ignore")
        fabric.launch()
    return fabric
