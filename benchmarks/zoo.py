"""Real networks through capture, random masks, exact hardening, compaction and proof; Torch-Pruning beside.

    python -m benchmarks.zoo --models tv/resnet50 timm/convnext_tiny my_package.nets:make
    python -m benchmarks.zoo --set torchvision --set timm --json zoo.json --markdown docs/coverage.md
    python -m benchmarks.zoo --set torchvision --tools chipnet torch-pruning

A model is ``tv/NAME``, ``timm/NAME`` or ``module:callable`` (which returns a network, or a network and its
inputs). Weights are random: no downloads. Every affine parameter and statistic is made random too: a channel
taken for another one shows. Each model runs in a process of its own, one thread, with a time limit.

What is checked of chipnet's result, by other means than chipnet's own bookkeeping:

* *target*: multiply-accumulates counted by ``torch.utils.flop_counter`` on the compact network are at most
  ``--target`` of the dense network's, equal to those predicted, and no further channel would fit;
* *exact*: masked and compact outputs differ by at most 1e-9 of their scale, in float64 (1e-4 in float32 where
  a network makes float32 of its own inside: RAFT);
* *trains*: a forward and backward pass in train mode gives a gradient to every parameter that has one when dense.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib
import json
import multiprocessing
import platform
import queue
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import chipnet
from benchmarks.zoo_models import SETS
from chipnet._util.files import write_atomically
from chipnet.analysis.kinds import KINDS
from chipnet.program.counting import counting

Model = tuple[nn.Module, tuple[Any, ...]]


# -- networks ---------------------------------------------------------------------------------------------
def build(name: str) -> Model:
    """The network ``name`` with random weights, in eval mode, and example inputs."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = _made(name)
    randomise(model)
    return model.eval(), inputs


def _made(name: str) -> Model:
    if name.startswith("timm/"):
        timm = importlib.import_module("timm")
        model = timm.create_model(name[5:])
        channels, side, _ = model.default_cfg["input_size"]
        return model, (torch.randn(1, channels, side, side),)
    if name.startswith("tv/"):
        return _torchvision(name[3:])
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"{name!r} is no model: expected tv/NAME, timm/NAME or module:callable")
    made = getattr(importlib.import_module(module), attribute)()
    if isinstance(made, nn.Module):
        return made, (torch.randn(1, 3, 224, 224),)
    model, inputs = made
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


def _torchvision(name: str) -> Model:
    """``inception_v3+aux`` builds auxiliary heads; detectors come without their post-processing."""
    models = importlib.import_module("torchvision.models")
    name, _, aux = name.partition("+")
    options: dict[str, Any] = {"weights": None}
    builder = models.get_model_builder(name)
    module = builder.__module__.rpartition(".")[0] + "."
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": bool(aux), "init_weights": False}
    if ".segmentation." in module:
        options |= {"weights_backbone": None, "aux_loss": bool(aux)}
        return builder(**options), (torch.randn(1, 3, 128, 128),)
    if ".detection." in module:
        return Detector(builder(**options, weights_backbone=None)), (torch.randn(1, 3, 320, 320),)
    if ".video." in module:
        size = (16, 224, 224) if name.startswith(("s3d", "mvit")) else (8, 112, 112)
        return builder(**options), (torch.randn(1, 3, *size),)
    if ".optical_flow." in module:
        return builder(**options), (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    side = 299 if name == "inception_v3" else 224
    return builder(**options), (torch.randn(1, 3, side, side),)


class Detector(nn.Module):
    """A detector's backbone and dense head. (Selecting boxes depends on values: it cannot be exported.)"""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.rpn.head if hasattr(model, "rpn") else model.head

    def forward(self, images: Tensor) -> Any:
        return self.head(list(self.backbone(images).values()))


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Make every channel matter: no constant parameter (zero biases, unit scales, layer scales of 1e-6), no unit
    statistics."""
    for module in model.modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            mean.normal_(0, 0.3)
            var.uniform_(0.5, 1.5)
    for name, p in model.named_parameters():
        if p.is_floating_point() and p.numel() > 1 and bool((p == p.flatten()[0]).all()):
            if name.endswith("bias"):
                p.normal_(0, 0.1)
            else:
                p.uniform_(0.5, 1.5)


def macs(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Multiply-accumulates of one eval forward, as PyTorch counts them."""
    with counting() as counter, torch.no_grad():
        model.eval()(*inputs)
    return counter.get_total_flops() // 2


# -- one model ----------------------------------------------------------------------------------------------
def with_chipnet(name: str, target: float, realisation: str) -> dict[str, Any]:
    """One row: what chipnet makes of the network."""
    out: dict[str, Any] = {"captured": False, "pruned": False, "target": False, "exact": None, "trains": None}
    model, inputs = build(name)
    start = time.perf_counter()
    try:
        s = chipnet.Structure(model, inputs, realisation=realisation)  # type: ignore[arg-type]
        out["capture_s"] = time.perf_counter() - start
        out["captured"] = True
        kept: Counter[str] = Counter()
        for site in s.sites:
            if not site.free and not site.reason.startswith("follows"):
                kept[site.reason] += 1
        out |= {
            "sites": len(s.sites),
            "free": sum(1 for site in s.sites if site.free),
            "gates": s.gates,
            "pinned": [f"{n}x {reason}" for reason, n in kept.most_common()],
        }
        scores = torch.rand(s.gates, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        try:
            mask = s.harden(scores, {"macs": target})
        except chipnet.BudgetError as error:  # still show that what may be pruned is pruned exactly
            out["error"] = f"BudgetError: {error}"
            mask = s.canonical(scores < 0.5)
            if not s.connected(mask):
                mask = torch.ones(s.gates, dtype=torch.bool)
        plan = s.plan(mask)
        small = chipnet.compact(model, plan, verify=False)
        out["seconds"] = time.perf_counter() - start
        dense, now = macs(model, inputs), macs(small, inputs)
        out |= {"ratio": now / max(dense, 1), "pruned": now < dense, "predicted": now == plan.compact.macs}
        out["params"] = sum(p.numel() for p in small.parameters()) == plan.compact.params
        out["target"] = now <= target * dense and _full(s, mask, int(target * dense))
        whole, tolerance = _doubled(model, inputs)
        difference, scale = chipnet.verify_compact(
            whole, chipnet.compact(whole, plan, verify=False), plan, inputs
        )
        out |= {"difference": difference / max(scale, 1e-300), "tolerance": tolerance}
        out["exact"] = difference <= tolerance * scale and out["predicted"] and out["params"]
        out["trains"] = trains(model, small, inputs)
    except Exception as error:
        out["error"] = _said(error)
        out["traceback"] = traceback.format_exc()
    return out


def _doubled(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, float]:
    """The network in float64 and the tolerance of exactness; as it is where it makes float32 of its own inside."""
    whole = copy.deepcopy(model).double()
    try:
        with torch.no_grad():
            whole(*[x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs])
    except RuntimeError:
        return copy.deepcopy(model), 1e-4
    return whole, 1e-9


def _full(s: chipnet.Structure, mask: Tensor, limit: int) -> bool:
    """Would a further channel of any site cost more than the limit? Two of each site speak for all."""
    shut = [gates[~mask[gates]][[0, -1]] for gates in s.analysis.site_gates if not bool(mask[gates].all())]
    for part in torch.cat(shut).unique().split(32) if shut else ():
        trial = mask.repeat(len(part), 1)
        trial[torch.arange(len(part)), part] = True
        does = s.analysis.useful(trial)[torch.arange(len(part)), part] > 0.5
        cost = s.cost(trial.double())[:, KINDS.index("macs")]
        if bool((does & (cost <= limit)).any()):
            return False
    return True


def trains(dense: nn.Module, small: nn.Module, inputs: tuple[Any, ...]) -> bool | None:
    """Does a train-mode forward and backward run on the compact network? None where not on the dense one."""

    def run(model: nn.Module) -> bool:
        torch.manual_seed(0)
        model.train()
        tensors = torch.utils._pytree.tree_map(
            lambda x: x.repeat(2, *[1] * (x.dim() - 1)) if isinstance(x, Tensor) and x.dim() > 3 else x,
            inputs,
        )
        leaves = torch.utils._pytree.tree_leaves(_as_plain(model(*tensors)))
        losses = [x.float().square().mean() for x in leaves if isinstance(x, Tensor) and x.requires_grad]
        sum(losses).backward()  # type: ignore[union-attr]
        return all(p.grad is not None for p in model.parameters() if p.requires_grad and p.numel())

    try:
        whole = run(dense)
    except Exception:
        return None
    return run(small) or not whole


def _as_plain(out: Any) -> Any:
    """Named tuples and output classes as trees that PyTorch knows."""
    return dict(out) if hasattr(out, "keys") else tuple(out) if isinstance(out, (tuple, list)) else out


def with_torch_pruning(name: str, target: float, realisation: str) -> dict[str, Any]:
    """One row: what Torch-Pruning makes of the same network."""
    from benchmarks._torch_pruning import prune

    model, inputs = build(name)
    return prune(model, inputs, target, lambda m: macs(m, inputs))


TOOLS: dict[str, Callable[[str, float, str], dict[str, Any]]] = {
    "chipnet": with_chipnet,
    "torch-pruning": with_torch_pruning,
}


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _child(results: Any, tool: str, name: str, target: float, realisation: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        results.put(TOOLS[tool](name, target, realisation))
    except BaseException as error:
        results.put({"captured": False, "error": _said(error), "traceback": traceback.format_exc()})


def run(tool: str, name: str, target: float, realisation: str, limit: float) -> dict[str, Any]:
    """One tool on one model, in a process of its own that is ended after ``limit`` seconds."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_child, args=(results, tool, name, target, realisation))
    process.start()
    deadline = time.monotonic() + limit
    row: dict[str, Any] | None = None
    while row is None:
        try:
            row = results.get(timeout=0.2)
        except queue.Empty:
            if not process.is_alive() and results.empty():
                row = {"captured": False, "error": f"the process ended with code {process.exitcode}"}
            elif time.monotonic() > deadline:
                row = {"captured": False, "error": f"no result after {limit:.0f} s"}
    process.kill()
    process.join()
    return {"model": name, "tool": tool, **row}


# -- many models --------------------------------------------------------------------------------------------
def good(row: dict[str, Any]) -> bool:
    """Captured, pruned to the target, exact, and trains (or did not when dense)."""
    return bool(row["captured"] and row.get("target") and row.get("exact") and row.get("trains") is not False)


def _line(row: dict[str, Any]) -> str:
    marks = " ".join(f"{k}={row.get(k)!s:5}" for k in ("captured", "pruned", "target", "exact", "trains"))
    ratio = f"{100 * row['ratio']:5.2f} %" if row.get("ratio") is not None else "      -"
    seconds = f"{row['seconds']:5.1f} s" if row.get("seconds") is not None else "      -"
    return f"{row['model']:40} {row['tool']:13} {marks} {ratio} {seconds} {row.get('error', '')[:160]}"


def about(target: float, realisation: str) -> dict[str, Any]:
    """What was run, where and when."""
    import timm
    import torchvision

    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} CPUs, 1 thread a model",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "target": target,
        "realisation": realisation,
        "seed": 0,
    }


_HEAD = """
# Coverage

Which real networks can be pruned, and how far? One command writes this page (`benchmarks/zoo.py` says how each
column is checked):

```sh
python -m benchmarks.zoo --set torchvision --set torchvision-detection --set timm --set torchvision-attention \\
    --set timm-attention --tools chipnet torch-pruning --markdown docs/coverage.md
```

{date}, {machine}, Python {python}, torch {torch}, torchvision {torchvision}, timm {timm}, seed {seed}; random
weights, random masks, target {target} of the dense MACs, `{realisation}` realisation.

*sites free*: [sites](glossary.md#parts-of-a-network) with gates, of all sites. (The others follow the gates of
these, or are kept whole.)
*MACs*: what remains, counted by PyTorch on the compact network. A bare number means: at most the target, no further
channel fits, outputs equal those of the masked network in float64 to 1e-9, and a train-mode forward and backward
runs. *s*: seconds, for chipnet from the model to the compact network (export, trial, solving and surgery); for
Torch-Pruning, which has no solver, 50 steps of its iterative pruning until the target is reached
(`benchmarks/_torch_pruning.py`). There *not exact* means that the pruned network does not compute what the dense
one computes with those channels set to zero. Where a norm mixes channels, it cannot. Empty cells were not run.

Detectors are their backbone and dense head: boxes are selected by value, which `torch.export` refuses. In networks
of attention much stays whole (heads, what layer norms read, queries and keys of fused attention); where that alone
costs more than the target, half of the free channels are cut instead, and *above* says so.
"""


def markdown(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The rows as one table a set, and what falls short with its reason."""
    by_model: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["tool"]] = row
    lines = [_HEAD.format(**about).strip()]
    places = {n: s for s, names in reversed(SETS.items()) for n in names if s != "quick"}
    for place in dict.fromkeys(places.get(n, "other") for n in by_model):
        mine = {n: tools for n, tools in by_model.items() if places.get(n, "other") == place}
        met = sum(good(t["chipnet"]) for t in mine.values())
        lines += [f"\n### {place}: {met} of {len(mine)}\n"]
        lines += [
            "| network | sites free | MACs | s | MACs, Torch-Pruning | s |",
            "|---|---|---|---|---|---|",
        ]
        for name, tools in mine.items():
            ours, theirs = tools["chipnet"], tools.get("torch-pruning")
            free = f"{ours['free']} of {ours['sites']}" if "sites" in ours else ""
            cells = [name.partition("/")[2], free, _cell(ours), _seconds(ours)]
            lines.append("| " + " | ".join([*cells, _cell(theirs), _seconds(theirs)]) + " |")
        lines += [""] + [
            f"* `{n}`: {_short(t['chipnet'])}" for n, t in mine.items() if not good(t["chipnet"])
        ]
    return "\n".join(lines).rstrip() + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    """What became of the MACs, or what went wrong."""
    if row is None:
        return ""
    if not row["captured"]:
        return "not captured"
    if not row.get("pruned"):
        return "not pruned"
    wrong = [] if row.get("target") or row["tool"] != "chipnet" else ["above"]
    wrong += ["not exact"] if row["exact"] is False else ["unknown"] if row["exact"] is None else []
    wrong += ["does not train"] if row.get("trains") is False else []
    return f"{100 * row['ratio']:.2f} %" + (f" ({', '.join(wrong)})" if wrong else "")


def _seconds(row: dict[str, Any] | None) -> str:
    return f"{row['seconds']:.1f}" if row and row.get("seconds") is not None else ""


def _short(row: dict[str, Any]) -> str:
    said = row.get("error") or "see the table"
    reasons = "; ".join(row.get("pinned", [])[:3])
    return said.split(". Ask for")[0] + (f". Kept whole: {reasons}" if reasons else "")


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--set", action="append", default=[], choices=sorted(SETS), dest="sets")
    parser.add_argument("--tools", nargs="*", default=["chipnet"], choices=sorted(TOOLS))
    parser.add_argument("--realisation", default="plain", choices=["plain", "indexed"])
    parser.add_argument("--target", type=float, default=0.5, help="fraction of MACs that may remain")
    parser.add_argument("--limit", type=float, default=300, help="seconds a model and tool")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument(
        "--read", type=Path, nargs="*", default=[], metavar="FILE", help="rows of earlier runs"
    )
    a = parser.parse_args(None if arguments is None else list(arguments))
    names = [*a.models, *(n for s in a.sets for n in SETS[s])]
    if not names and not a.read:
        parser.error("name at least one model or --set")
    for library in ("torchvision.models", "timm", *(["torch_pruning"] if "torch-pruning" in a.tools else [])):
        importlib.import_module(library)  # once, before processes are forked
    rows = [row for file in a.read for row in json.loads(file.read_text())["rows"]]
    for name in names:
        for tool in a.tools:
            rows.append(run(tool, name, a.target, a.realisation, a.limit))
            print(_line(rows[-1]), flush=True)
        if a.json:
            text = json.dumps({"about": about(a.target, a.realisation), "rows": rows}, indent=1)
            write_atomically(a.json, text.encode())
    if a.markdown:
        merged = {
            (row["model"], row["tool"]): row for row in rows
        }  # a later run of the same replaces an earlier
        rows = list(merged.values())
        write_atomically(a.markdown, markdown(rows, about(a.target, a.realisation)).encode())
    mine = [r for r in rows if r["tool"] == "chipnet"]
    print(f"{sum(map(good, mine))} of {len(mine)}: captured, target met to the channel, exact, trains")
    return 0 if all(map(good, mine)) else 1


if __name__ == "__main__":
    sys.exit(main())
