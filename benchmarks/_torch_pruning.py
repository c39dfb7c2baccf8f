"""Torch-Pruning on one network, as its documentation recommends, and whether what it built is exact.

`prune` runs `BasePruner` with the group L2 magnitude (`GroupMagnitudeImportance(p=2)`), local ratios, no rounding
of widths, the output layers ignored, attention heads given and the rest at its defaults, in STEPS small steps
until the MACs are at or below the target (the loop of Torch-Pruning's own benchmarks). Parameters outside a layer
are left to its own rule.

`exact` asks whether the pruned network computes what the dense network computes with the removed channels set to
zero. Each step's groups say which output channels go; those are numbered in the network as already pruned, so
the original numbers still alive are kept for each layer and side. The dense network then gets zeros in the
removed rows of weight and bias (of norms: scale and shift; of free parameters: their entries), and both are run
in eval mode in float64. Before that, the record is held against the pruned weights themselves: were the record
wrong, `exact` would be None and not False. A LayerNorm or GroupNorm that lost channels takes its statistics over
fewer of them, so such a network is not exact; `note` says so.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

STEPS = 50
TOLERANCE = 1e-9  # of the largest absolute output, in float64

_Conv = nn.modules.conv._ConvNd
_PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_ACROSS_CHANNELS = (nn.LayerNorm, nn.GroupNorm)
# (layer, "out" or "in") or (parameter, "out" and its dimension) -> original channels still alive
_Kept = dict[tuple[str, str], list[int]]


class _UnmaskableError(Exception):
    """The dense network cannot be masked as the pruned one was pruned."""


def prune(model: nn.Module, inputs: tuple, target: float, macs: Callable[[nn.Module], int]) -> dict[str, Any]:
    """Prune a copy of `model` to `target` of its MACs with Torch-Pruning, and examine the result.

    An exception of Torch-Pruning's, or of the network it built, is a result; only its absence raises.

    Returns:
        captured: the dependency graph was built.
        pruned: every step went through and the MACs fell.
        ratio: MACs after / before, as `macs` counts them.
        exact, difference: see above; `difference` is relative to the largest absolute output.
        seconds: of building the graph and pruning, without counting MACs.
        runs: the pruned network's forward gives outputs of the dense network's shapes.
        trains: forward in train mode and backward go through.
        error: the first exception, in one line.  note: anything else worth knowing.
    """
    try:
        import torch_pruning
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError("the comparison needs Torch-Pruning: pip install torch-pruning") from e

    result: dict[str, Any] = dict.fromkeys(("captured", "pruned", "runs", "trains"), False)
    result |= dict.fromkeys(("ratio", "exact", "difference", "seconds"), None) | {"error": "", "note": ""}

    @contextmanager
    def recorded() -> Iterator[None]:
        try:
            yield
        except Exception as e:
            first = (str(e).strip().splitlines() or [""])[0]
            result["error"] = result["error"] or f"{type(e).__name__}: {first}"

    with warnings.catch_warnings(), torch.enable_grad(), recorded():
        warnings.simplefilter("ignore")
        dense = copy.deepcopy(model).eval()
        for m in dense.modules():
            if hasattr(m, "fused_attn"):  # off, as its timm examples have it: fused, the scale would change
                m.__dict__["fused_attn"] = False
        small = copy.deepcopy(dense)
        kept: _Kept = {}
        _run(torch_pruning, small, inputs, target, macs, kept, result)
        with recorded():
            with torch.no_grad():
                shapes = [[y.shape for y in _outputs(m.eval(), inputs)] for m in (dense, small)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"the outputs' shapes went from {shapes[0]} to {shapes[1]}")
            result["runs"] = True
        if result["runs"]:
            if result["pruned"]:
                with recorded():
                    _compare(dense, copy.deepcopy(small), inputs, kept, result)
            with recorded():
                small.train().zero_grad()
                two = tree_map(_twice, inputs)  # of one image, a BatchNorm on 1 x 1 has no variance
                sum(y.square().mean() for y in _outputs(small, two)).backward()  # type: ignore[union-attr]
                result["trains"] = True
    return result


def pruned(model: nn.Module, inputs: tuple, target: float, cost: Callable[[nn.Module], int]) -> nn.Module:
    """A copy of `model` that Torch-Pruning brought to `target` of its `cost`, or below; for training.

    Raises:
        ValueError: it stops above the target.
    """
    import torch_pruning

    small = copy.deepcopy(model).eval()
    result: dict[str, Any] = {"seconds": None}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        _run(torch_pruning, small, inputs, target, cost, {}, result)
    if result["ratio"] > target:
        raise ValueError(f"Torch-Pruning stops at {result['ratio']:.4f} of the cost, asked were {target:.4f}")
    return small


def _run(
    tp: Any,
    model: nn.Module,
    inputs: tuple,
    target: float,
    macs: Callable[[nn.Module], int],
    kept: _Kept,
    result: dict[str, Any],
) -> None:
    before = after = macs(model)
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())  # its graph is autograd's
    qkv: dict[Any, nn.Linear] = {}
    for m in model.modules():
        layer = getattr(m, "qkv", getattr(m, "qkv_proj", None))
        if hasattr(m, "num_heads") and isinstance(layer, nn.Linear):
            qkv[m] = layer
    heads: dict[nn.Linear, int] = {layer: m.num_heads for m, layer in qkv.items()}
    names = {m: name for name, m in model.named_modules()}
    ignored = _output_layers(model, inputs)
    with _timed(result):
        pruner = tp.pruner.BasePruner(
            model,
            inputs,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1.0,
            iterative_steps=STEPS,
            ignored_layers=ignored,
            num_heads=heads,
            in_channel_groups={},  # its defaults for these two are shared between calls
            out_channel_groups={},
        )
    result["captured"] = True
    while after > target * before and pruner.current_step < STEPS:
        with _timed(result):
            for group in pruner.step(interactive=True):
                for dep, idxs in group:
                    out = pruner.DG.is_out_channel_pruning_fn(dep.handler)
                    _record(kept, model, names, dep.target, out, idxs)
                group.prune()
            for m, layer in qkv.items():  # what its timm examples adapt by hand
                m.num_heads, m.head_dim = heads[layer], layer.out_features // (3 * heads[layer])
                m.attn_dim = m.num_heads * m.head_dim
        after = macs(model)
    result["pruned"], result["ratio"] = after < before, after / before
    if after > target * before:
        result["note"] = f"nothing left to prune at {after / before:.3f} of the MACs"


@contextmanager
def _timed(result: dict[str, Any]) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        result["seconds"] = (result["seconds"] or 0.0) + time.perf_counter() - start


def _outputs(model: nn.Module, inputs: tuple) -> list[torch.Tensor]:
    leaves = [y for y in tree_leaves(model(*inputs)) if isinstance(y, torch.Tensor) and y.is_floating_point()]
    if not leaves:
        raise TypeError("the network returns no floating-point tensor")
    return leaves


def _twice(x: Any) -> Any:
    return torch.cat([x, x]) if isinstance(x, torch.Tensor) and x.dim() else x


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _output_layers(model: nn.Module, inputs: tuple) -> list[nn.Module]:
    """The layers whose channels are the output's: the first conv or linear on each way back from an output."""
    made: dict[Any, nn.Module] = {}
    hooks = [
        m.register_forward_hook(lambda m, _, y: made.__setitem__(y.grad_fn, m))
        for m in model.modules()
        if isinstance(m, (_Conv, nn.Linear))
    ]
    try:
        stack, seen = [y.grad_fn for y in _outputs(model, inputs)], set()
    finally:
        for hook in hooks:
            hook.remove()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if node not in made:
                stack += [n for n, _ in node.next_functions]
    return list(dict.fromkeys(made[n] for n in made if n in seen))


def _record(kept: _Kept, model: nn.Module, names: dict, node: Any, out: bool, idxs: list[int]) -> None:
    """Strike the channels `idxs`, numbered as the layer is now, from the layer's list of original channels."""
    layer = node.module
    if isinstance(layer, nn.Parameter):
        key = (next(name for name, p in model.named_parameters() if p is layer), f"out{node.pruning_dim}")
        size = layer.shape[node.pruning_dim]
    elif layer not in names:
        return  # an operation, not a layer
    else:
        key = (names[layer], "out" if out else "in")
        sides = "out_channels out_features num_features num_channels embedding_dim num_parameters"
        sides = sides if out else "in_channels in_features"
        sizes = [getattr(layer, s) for s in sides.split() if hasattr(layer, s)]
        size = sizes[0] if sizes else getattr(layer, "normalized_shape", [0])[-1]
    alive = kept.setdefault(key, list(range(size)))
    gone = set(idxs)
    kept[key] = [c for i, c in enumerate(alive) if i not in gone]


def _mask(dense: nn.Module, small: nn.Module, kept: _Kept) -> set[str]:
    """Zero in `dense` what `small` lacks. Returns the kinds of norm that now see fewer channels."""
    layers, parameters = dict(dense.named_modules()), dict(dense.named_parameters())
    across = set()
    for (name, side), alive in kept.items():
        if name in parameters:
            _zero(parameters[name], int(side.removeprefix("out")), alive)
            continue
        layer = layers[name]
        groups, transposed = getattr(layer, "groups", 1), getattr(layer, "transposed", False)
        if isinstance(layer, nn.PReLU):
            continue  # 0 stays 0
        if not isinstance(layer, (_Conv, nn.Linear, nn.Embedding, *_PER_CHANNEL, *_ACROSS_CHANNELS)):
            raise _UnmaskableError(f"{name} is a {type(layer).__name__}")
        if "weight" not in layer._parameters:
            raise _UnmaskableError(f"the weight of {name} is computed")
        if transposed and groups not in (1, layer.out_channels):
            raise _UnmaskableError(f"{name} is a grouped transposed convolution")
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
            raise _UnmaskableError(f"{name} normalises over several dimensions")
        dim = int(isinstance(layer, nn.Embedding) or (transposed and groups == 1))  # of the output channels
        if layer.weight is not None and (groups == 1 or layer.weight.shape[1] == 1):
            expected = layer.weight.data
            for which, d in ("out", dim), ("in", 1 - dim):
                if (name, which) in kept:
                    expected = expected.index_select(d, torch.tensor(kept[name, which]))
            if not torch.equal(expected, small.get_parameter(f"{name}.weight")):
                raise _UnmaskableError(f"{name} does not hold the channels that the groups left")
        if side == "out":
            _zero(layer.weight, dim, alive)
            _zero(getattr(layer, "bias", None), 0, alive)
            if isinstance(layer, _PER_CHANNEL) and layer.weight is None:
                _zero(layer.running_mean, 0, alive)  # its input is zero there, and so is its output now
            if isinstance(layer, _ACROSS_CHANNELS):
                across.add(type(layer).__name__)
    return across


def _zero(tensor: torch.Tensor | None, dim: int, alive: list[int]) -> None:
    if tensor is not None:
        gone = torch.tensor(sorted(set(range(tensor.shape[dim])) - set(alive)), dtype=torch.long)
        tensor.data.index_fill_(dim, gone, 0)


def _compare(dense: nn.Module, small: nn.Module, inputs: tuple, kept: _Kept, result: dict[str, Any]) -> None:
    """Set `exact` and `difference`."""
    dense, small = dense.double().eval(), small.double().eval()
    inputs = tree_map(_double, inputs)
    across = _mask(dense, small, kept)
    with torch.no_grad():
        pairs = list(zip(_outputs(small, inputs), _outputs(dense, inputs), strict=True))
    if not all(b.isfinite().all() and b.abs().max() > 0 for _, b in pairs):
        raise _UnmaskableError("the masked dense network's output is all zero or not finite")
    result["difference"] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    result["exact"] = result["difference"] <= TOLERANCE
    if across and not result["exact"]:
        result["note"] += f"{', '.join(sorted(across))} over fewer channels"
