"""What holds for every network and every mask, in one place: `conforms`. And what must never change: `snapshot`."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from toys import counted_macs, counted_params

import chipnet
from chipnet import Plan, Structure
from chipnet.graph.facts import PinCode


class Pruned(NamedTuple):
    """A compact network that conformed. ``scale``: of the output that differed most from the masked network's."""

    network: nn.Module
    plan: Plan
    scale: float


RULES_MAY_FAIL = False
"""A rule that fails only keeps more whole: a mistake in one would not show. Tests that make rules fail set this."""


def conforms(
    model: nn.Module,
    inputs: Any,
    structure: Structure,
    masks: Iterable[Tensor],
    *,
    factory: Callable[[], nn.Module] | None = None,
    onnx: bool = False,
    train: bool = True,
) -> list[Pruned]:
    """Prune ``model`` by every mask, and raise where a promise is broken.

    The compact network is of the same class, computes what the masked one does, has the predicted parameters and
    multiply-accumulates to the last integer, and trains wherever the dense one does.

    Args:
        model: in float64 and eval mode, what ``structure`` was made of.
        inputs: a tensor or a tuple, in float64, to compare outputs on. Costs are counted on the structure's own.
        factory: builds the dense network again; the first compact network then goes to disk and back.
        onnx: the first compact network goes through ONNX, too.
        train: the dense network has a train-mode forward and backward; so must the compact ones.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    assert not model.training
    assert structure.cost.dense.params == counted_params(model)
    assert structure.cost.dense.macs == counted_macs(model, *structure.analysis.inputs)
    for site in structure.sites:
        assert site.reason or (site.gates >= 0).all(), f"{site.name} is kept whole without a reason"
    failed = {str(pin) for pin in structure.graph.pins.values() if pin.code is PinCode.RULE_FAILED}
    assert RULES_MAY_FAIL or not failed
    learns = gradients(model, inputs).keys() if train else set()
    found = []
    for mask in masks:
        plan = structure.plan(mask)
        assert plan.compact == structure.cost.exact(mask)
        for site in structure.sites:
            shut = [i for i, gate in enumerate(site.gates.tolist()) if gate >= 0 and not mask[gate]]
            held = {**plan.zero, **plan.shut}.get(site.host.weight, (0, ()))[1]
            assert set(shut) <= set(held), f"{site.name} is not shut"
        small = chipnet.compact(model, plan, verify=False)
        assert type(small) is type(model)
        difference, scale = chipnet.verify_compact(model, small, plan, inputs)
        assert difference <= 1e-9 * max(scale, 1e-12), f"outputs differ by {difference:.2g} of {scale:.2g}"
        assert plan.compact.params == counted_params(small), "parameters"
        assert plan.compact.macs == counted_macs(small, *structure.analysis.inputs), "multiply-accumulates"
        if train:
            present = {n for n, p in small.named_parameters() if p.numel() and p.requires_grad}
            untrained = (present - gradients(small, inputs).keys()) & learns
            if untrained:  # what changes nothing in the masked network either
                slopes = gradients(chipnet.masked(model, plan), inputs)
                untrained = {n for n in untrained if slopes.get(n, 0.0) > 1e-9 * max(slopes.values())}
            assert not untrained, f"no gradient for {sorted(untrained)}"
        if not found and factory is not None:
            _goes_to_disk_and_back(small, plan, inputs, factory)
        if not found and onnx:
            _goes_through_onnx(small, inputs)
        found.append(Pruned(small, plan, scale))
    return found


def _goes_to_disk_and_back(
    small: nn.Module, plan: Plan, inputs: tuple[Any, ...], factory: Callable[[], nn.Module]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        chipnet.save(small, plan, path)
        again = chipnet.load(factory, path).eval()
    for x, y in zip(outputs(small, inputs), outputs(again, inputs), strict=True):
        assert torch.equal(x, y), "another network came out of the file"


def _goes_through_onnx(small: nn.Module, inputs: tuple[Any, ...]) -> None:
    """In float32, as networks are deployed."""
    import onnxruntime

    small = copy.deepcopy(small).float()
    inputs = tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, inputs)
    file = io.BytesIO()
    program = torch.onnx.export(small, inputs, dynamo=True, verbose=False)
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), tree_leaves(inputs), strict=True)}
    for x, y in zip(outputs(small, inputs), session.run(None, feeds), strict=True):
        difference = (x - torch.from_numpy(y)).abs().max()
        assert difference <= 1e-4 * x.abs().max(), f"ONNX differs by {difference:.2g}"


@torch.no_grad()
def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Tensors that the model returns."""
    return [x for x in tree_leaves(model(*copy.deepcopy(inputs))) if isinstance(x, Tensor)]


def gradients(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, float]:
    """Parameters that a backward pass in train mode reaches, with their largest slope. One image becomes two, for
    batch norms."""

    def batch(x: Any) -> Any:
        return torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() > 1 and x.shape[0] == 1 else x

    model = copy.deepcopy(model).train()
    outs = tree_leaves(model(*tree_map(batch, copy.deepcopy(inputs))))
    sum(x.sum() for x in outs if isinstance(x, Tensor) and x.requires_grad).backward()  # type: ignore[union-attr]
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: float(g.abs().max()) if g.numel() else 0.0 for n, g in grads.items()}


# -- networks and masks -----------------------------------------------------------------------------------
@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """In float64 and eval mode. Every channel matters: no zero biases, unit statistics or layer scales of 1e-6."""
    for module in model.modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            mean.normal_(0, 0.3)
            var.uniform_(0.5, 1.5)
    for name, p in model.named_parameters():
        if bool((p == p.flatten()[0]).all()):
            if name.endswith("bias"):
                p.normal_(0, 0.3)
            else:
                p.uniform_(0.5, 1.5)
    return model.double().eval()


def random_mask(s: Structure, density: float) -> Tensor:
    """Random gates; where they disconnect the network, the solver's own connected mask for random scores."""
    generator = torch.Generator().manual_seed(int(1000 * density))
    scores = torch.rand(s.gates, generator=generator, dtype=torch.float64)
    mask = scores < density
    for gates in s.analysis.site_gates:  # two of every site: otherwise deep networks are never connected
        mask[gates[torch.randperm(len(gates), generator=generator)[:2]]] = True
    mask = s.canonical(mask)
    return mask if s.connected(mask) else s.harden(scores, {"params": max(density, 0.3)})


def corner_masks(s: Structure) -> Iterator[Tensor]:
    """Everything open; every site at one channel; every site dead: as far as the network stays connected."""
    masks = [torch.ones(s.gates, dtype=torch.bool)]
    for gates in s.analysis.site_gates:
        for kept in (1, 0):
            mask = masks[0].clone()
            mask[gates[kept:]] = False
            masks.append(mask)
    return (mask for mask in masks if s.connected(mask))


# -- what must not change -----------------------------------------------------------------------------------
def snapshot(model: nn.Module, weights: bool = True) -> dict[str, Any]:
    """All that a model is made of, path by path: every attribute of every module, with identities, hooks and flags.

    ``weights=False``: without values and gradients of parameters.
    """

    def frozen(value: Any) -> Any:
        if isinstance(value, nn.Parameter) and not weights:
            return id(value), value.requires_grad, value.dtype, tuple(value.shape)
        if isinstance(value, Tensor):
            grad = None if value.grad is None else value.grad.tolist()
            return id(value), value.detach().clone(), value.requires_grad, grad
        if isinstance(value, dict):
            return {k: frozen(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value), [frozen(v) for v in value]
        simple = value is None or isinstance(value, (bool, int, float, str, set, torch.Size))
        return copy.copy(value) if simple else (type(value), id(value))

    return {
        f"{path}.{name}": frozen(value)
        for path, module in model.named_modules(remove_duplicate=False)
        for name, value in {**vars(module), "itself": (type(module), id(module))}.items()
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Nothing differs between two snapshots; says where something does."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict) and isinstance(b, dict):
            return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            return len(a) == len(b) and all(map(same, a, b))
        return bool(a == b)

    assert before.keys() == after.keys()
    changed = [path for path, value in before.items() if not same(value, after[path])]
    assert not changed, f"changed: {changed}"
