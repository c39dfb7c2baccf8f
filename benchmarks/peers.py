"""Small ViT, Swin, DeiT and ConvNeXt, pruned by chipnet, Torch-Pruning 1.6.1 and torch-kirigami 0.2.1.

    pip install torch-pruning==1.6.1 torch-kirigami==0.2.1
    python -m benchmarks.peers

For each network and tool: was it captured, how much is left where half (a quarter) was asked for, and does the
pruned network compute what the dense one computes with the removed channels set to zero? chipnet and Torch-Pruning
are asked for multiply-accumulates, torch-kirigami for parameters, the only budget it has; scores are random for
chipnet and magnitudes for the others. ``benchmarks/_torch_pruning.py`` says how Torch-Pruning runs and is checked.

chipnet's live norms are part of what it promises. With ``norms="dense"`` the dense network changes in nothing but
zeros, and that is the row that compares. Of torch-kirigami, the channels that are left are found by their numbers,
which stay as they are: rows of weights and biases that are gone are set to zero in the dense network.
"""

from __future__ import annotations

import argparse
import copy
import platform
import warnings
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

import chipnet
from benchmarks import _torch_pruning, small_timm, smallest
from benchmarks.zoo import macs, randomise

Made = tuple[nn.Module, Tensor]
Row = tuple[str, str, str]
"""Captured, what is left, exact."""


def deit() -> Made:
    small = {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 32, "patch_size": 8}
    return timm.create_model("deit_tiny_patch16_224", num_classes=10, **small), torch.randn(2, 3, 32, 32)


NETWORKS: dict[str, Callable[[], Made]] = {
    "ViT": smallest.torchvision_vit,
    "Swin": smallest.torchvision_swin,
    "DeiT": deit,
    "ConvNeXt": small_timm.convnext,
}


def with_chipnet(net: nn.Module, x: Tensor, part: float, norms: Any) -> Row:
    structure = chipnet.Structure(net, x, norms=norms)
    scores = torch.rand(structure.gates, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = structure.plan(structure.harden(scores, {"macs": part}))
    small = chipnet.compact(net, plan, verify=False)
    difference, scale = chipnet.verify_compact(net, small, plan, x)
    return "yes", f"{100 * macs(small, (x,)) / macs(net, (x,)):.2f} % of MACs", f"{difference / scale:.0e}"


def with_torch_pruning(net: nn.Module, x: Tensor, part: float) -> Row:
    found = _torch_pruning.prune(net, (x,), part, lambda m: macs(m, (x,)))
    ratio = "-" if found["ratio"] is None else f"{100 * found['ratio']:.2f} % of MACs"
    exact = found["difference"]
    said = found["error"] or ("-" if exact is None else f"{exact:.0e}")
    return "yes" if found["captured"] else "no", ratio, said


def with_kirigami(net: nn.Module, x: Tensor, part: float) -> Row:
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import Greedy, GroupMagnitude, ParameterBudget, Pruner

    dense, small = copy.deepcopy(net).eval(), copy.deepcopy(net).eval()
    wanted = int(part * sum(p.numel() for p in dense.parameters()))
    try:
        graph = DependencyGraph.build(small, args=(x,))
    except Exception as e:
        return "no", "-", _first(e)
    try:
        pruner = Pruner(small, graph=graph)
        found = pruner.prune(
            pruner.discover_candidates(),
            budget=ParameterBudget(max_params=wanted),
            strategy=Greedy(GroupMagnitude(p=2)),
        )
        small = found[0]
    except Exception as e:
        return "yes", "-", _first(e)
    numbers = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in dense.parameters())
    left = f"{100 * numbers:.2f} % of parameters, {100 * macs(small, (x,)) / macs(dense, (x,)):.2f} % of MACs"
    try:
        zero_what_is_gone(dense, small)
    except ValueError as e:
        return "yes", left, _first(e)
    with torch.no_grad():
        a, b = dense.double()(x.double()), small.double()(x.double())
    return "yes", left, f"{float((a - b).abs().max() / a.abs().max()):.0e}"


@torch.no_grad()
def zero_what_is_gone(dense: nn.Module, small: nn.Module) -> None:
    """Set to zero, in the dense network, the rows of weights and biases that the small one lacks.

    Raises:
        ValueError: which rows are left cannot be told by their numbers.
    """
    left = dict(small.named_parameters())
    modules = dict(dense.named_modules())
    for name, p in dense.named_parameters():
        q = left[name]
        if p.shape == q.shape:
            continue
        owner, _, key = name.rpartition(".")
        bias = getattr(modules[owner], "bias", None)
        layer = key == "weight" and p.dim() > 1
        if layer and p.shape[0] == q.shape[0]:
            continue  # it reads less
        axis = 0 if layer or p.dim() == 1 else next(a for a in range(p.dim()) if p.shape[a] != q.shape[a])
        if layer and bias is None:
            raise ValueError(f"{name} lost rows, and has no bias to tell which")
        known, kept = (bias, left[f"{owner}.bias"]) if layer else (_line(p, axis), _line(q, axis))
        gone = ~torch.isin(known, kept)
        if int((~gone).sum()) != q.shape[axis]:
            raise ValueError(f"which of {name} are left cannot be told")
        p.index_fill_(axis, gone.nonzero().flatten(), 0)
        if layer:
            known[gone] = 0


def _line(p: Tensor, axis: int) -> Tensor:
    """The numbers along an axis, at the first index of all others."""
    return p.movedim(axis, 0).reshape(p.shape[axis], -1)[:, 0].clone()


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:90]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--parts", default="0.5,0.25")
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    tools: dict[str, Callable[[nn.Module, Tensor, float], Row]] = {
        "chipnet": partial(with_chipnet, norms="live"),
        'chipnet, norms="dense"': partial(with_chipnet, norms="dense"),
        "Torch-Pruning": with_torch_pruning,
        "torch-kirigami": with_kirigami,
    }
    print("| network | asked | tool | captured | left | difference |\n|---|---|---|---|---|---|")
    for name in a.networks.split(","):
        for part in map(float, a.parts.split(",")):
            for tool, prune in tools.items():
                torch.manual_seed(0)
                net, x = NETWORKS[name]()
                randomise(net)
                row = prune(net.eval(), x, part)
                print(f"| {name} | {100 * part:.0f} % | {tool} | {' | '.join(row)} |", flush=True)
    print(f"\n{date.today()}, torch {torch.__version__}, {platform.machine()}")


if __name__ == "__main__":
    main()
