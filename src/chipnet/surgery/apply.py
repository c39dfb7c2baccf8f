"""Carry a plan out: the same class, the same forward, smaller tensors. Verified by default."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chipnet._util.modes import plainly
from chipnet._util.torch_private import (
    ConvNd,
    ConvTransposeNd,
    NormBase,
    buffers_of,
    children_of,
    parameters_of,
    refresh,
)
from chipnet.errors import PlanError
from chipnet.gates.hooks import strip_gates
from chipnet.graph.facts import Frozen
from chipnet.graph.groups import small_groups
from chipnet.graph.rules.layers import LAYERS
from chipnet.graph.standard import STANDARD_MIX
from chipnet.program.ready import copied
from chipnet.program.removal import removable, removed
from chipnet.program.spelling import spell, unspell
from chipnet.surgery.masked import check_compact, zero
from chipnet.surgery.modules import DenseNorm, stand_in
from chipnet.surgery.plan import PLAN, Plan, Remap, Size


class ConvSame2d(nn.Conv2d):
    """A convolution that pads as TensorFlow does: as much as makes the output ``ceil(size / stride)``, the odd
    pixel after the end."""

    def forward(self, input: Tensor) -> Tensor:
        widths: list[int] = []
        for n, k, s, d in zip(input.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True):
            total = max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
            widths = [total // 2, total - total // 2, *widths]
        return super().forward(nn.functional.pad(input, widths))


class IndexHook:
    """Forward hook that applies an index map to a module's input or output."""

    def __init__(self, name: str, side: str, axis: int, scatter: bool, size: int) -> None:
        self.name, self.side, self.axis, self.scatter, self.size = name, side, axis, scatter, size

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (self._apply(module, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": self._apply(module, kwargs["input"])}

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self._apply(module, output)

    def _apply(self, module: nn.Module, x: Tensor) -> Tensor:
        index = getattr(module, f"{self.name}_from")
        if not self.scatter:
            return x.index_select(self.axis, index)
        shape = list(x.shape)
        shape[self.axis] = self.size
        target = getattr(module, f"{self.name}_to")
        return x.new_zeros(shape).index_copy(self.axis, target, x.index_select(self.axis, index))


@plainly
def compact(
    model: nn.Module,
    plan: Plan,
    example_inputs: Any = None,
    *,
    verify: bool = True,
) -> nn.Module:
    """A smaller network of the model's own class that computes what the masked model computes.

    Args:
        model: the dense network the plan was made for (its weights are read; it is not changed).
        plan: from ``Pruner.harden()``, ``Structure.plan()`` or a file.
        example_inputs: for verification; defaults to those the plan was made with.
        verify: compare outputs of the masked and the compact network, in float64 where the model allows it.

    Returns:
        A deep copy with smaller parameters, on the model's device, without gates.

    Raises:
        PlanError: the plan is for another network, weights are not finite, the outputs differ, or they have no
            finite number that could be compared (nothing of the model is changed).
        CaptureError: ``model`` is no network, or does not run on the inputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from chipnet.structure import Structure
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> plan = Structure(net, torch.ones(1, 3)).plan(torch.tensor([True, False, True, True]))
        >>> compact(net, plan)[0].weight.shape
        torch.Size([3, 3])
    """
    PLAN.check("plan", plan)
    plan.check(model)
    inputs = plan.called(example_inputs)
    small = strip_gates(copied(model))
    freeze(small, plan)
    zero(small, plan)
    _cut(small, plan)
    if verify and (empty := next((n for n, p in model.named_parameters() if p.is_meta), None)) is not None:
        raise PlanError(
            f"'{empty}' holds no numbers (it is on the meta device), so there is nothing to verify with. Give the "
            "network memory and weights, or cut its shapes with verify=False."
        )
    if verify and inputs is not None:
        check_compact(model, small, plan, inputs)
    return small


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Make the dense model the plan's compact one, in place."""
    freeze(model, plan)
    _cut(model, plan)


def freeze(model: nn.Module, plan: Plan) -> None:
    """Put plain layers, with the weight as it is now, in the place of those that compute it."""
    layers = [(model.get_submodule(f.module), f) for f in plan.frozen]
    _put(model, [(layer, plain_layer(layer, f)) for layer, f in layers])


def plain_layer(layer: nn.Module, frozen: Frozen) -> nn.Module:
    """A layer with the weight that ``layer`` computes in eval mode: of its own class where a parametrisation
    computes it, else a plain one of ``torch.nn``."""
    if removable(layer):
        return removed(layer)
    kind = next(k for k in STANDARD_MIX if isinstance(layer, k))
    first = next(layer.parameters())
    like: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
    bias = parameters_of(layer).get("bias")
    if isinstance(layer, ConvNd):
        extra = {"output_padding": layer.output_padding} if isinstance(layer, ConvTransposeNd) else {}
        new = torch.nn.utils.skip_init(
            ConvSame2d if frozen.same else kind,
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=0 if frozen.same else layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=bias is not None,
            **extra,
            **like,
        )
        sizes = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        x = torch.zeros(1, layer.in_channels, *sizes, **like)
    else:
        assert isinstance(layer, nn.Linear)
        new = torch.nn.utils.skip_init(kind, layer.in_features, layer.out_features, bias is not None, **like)
        x = torch.zeros(1, layer.in_features, **like)
    training = layer.training
    with torch.no_grad(), _Seen() as seen:
        layer.eval()(x)
    layer.train(training)
    assert seen.weight is not None
    new.weight = nn.Parameter(seen.weight.detach().clone(), first.requires_grad)
    if bias is not None:
        new.bias = bias
    return new.train(training)


class _Seen(TorchFunctionMode):
    """Remembers the weight of the layer operator that is called."""

    weight: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in LAYERS:
            self.weight = args[1] if len(args) > 1 else kwargs["weight"]
        return func(*args, **kwargs)


def _cut(model: nn.Module, plan: Plan) -> None:
    """Cut the model's tensors in place, fix its modules' sizes, put stand-ins and index maps in."""
    modules = dict(spell(model).named_modules(remove_duplicate=False))
    done: dict[int, nn.Parameter | Tensor] = {}
    for path, module in modules.items():
        for store in (parameters_of(module), buffers_of(module)):
            for key, tensor in list(store.items()):
                if tensor is None:
                    continue
                name = f"{path}.{key}" if path else key
                if name in plan.keep and id(tensor) not in done:
                    cut = kept(tensor.detach(), plan.keep[name]).contiguous()
                    new = nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut
                    done[id(tensor)] = new
                    done[id(new)] = new
                if id(tensor) in done:
                    store[key] = done[id(tensor)]
    for module in model.modules():
        fit_attributes(module)
    for size in plan.sizes:
        _set_size(modules[size.module], size)
    for scale in plan.scales:
        value = getattr(modules[scale.module], scale.name)
        if isinstance(value, Tensor):
            value.data.mul_(scale.factor)
        else:
            setattr(modules[scale.module], scale.name, value * scale.factor)
    for rows in plan.rows:
        owner, _, name = rows.parameter.rpartition(".")
        scaled = parameters_of(modules[owner])[name].data
        scaled[list(rows.at)] *= rows.factor
    dead = {s.module for s in plan.stand_ins}
    counted = [live for live in plan.live if live.norm.dense and live.norm.module not in dead]
    _put(
        model,
        [(modules[c.norm.module], DenseNorm(modules[c.norm.module], c.norm, c.channels)) for c in counted],
    )
    _put(model, [(modules[s.module], stand_in(modules[s.module], s)) for s in plan.stand_ins])
    unspell(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    for remap in plan.remaps:
        _add_remap(modules[remap.module], remap)


def kept(tensor: Tensor, keep: Mapping[int, Sequence[int]]) -> Tensor:
    """What a plan leaves of a tensor: of every axis the indices named, of the others all."""
    for axis, indices in keep.items():
        tensor = tensor.index_select(axis, torch.tensor(indices, dtype=torch.int64, device=tensor.device))
    return tensor


def fit_attributes(module: nn.Module) -> None:
    """Make a module's size attributes say what its tensors are."""
    weight = getattr(module, "weight", None)
    if isinstance(module, ConvNd) and isinstance(weight, Tensor):
        first, second = module.in_channels, module.out_channels
        if not isinstance(module, ConvTransposeNd):
            first, second = second, first
        groups = module.groups
        if small_groups(groups, module.in_channels):
            groups = weight.shape[0] // (first // groups)
            module.groups = max(1, groups)  # of a dead layer none is left
        first, second = weight.shape[0], weight.shape[1] * groups
        if not isinstance(module, ConvTransposeNd):
            first, second = second, first
        module.in_channels, module.out_channels = first, second
    elif isinstance(module, nn.Linear) and isinstance(weight, Tensor):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, NormBase):
        known = next((t for t in (weight, module.running_mean) if isinstance(t, Tensor)), None)
        if known is not None:
            module.num_features = known.shape[0]
    elif isinstance(module, nn.GroupNorm) and isinstance(weight, Tensor):
        groups = module.num_groups * weight.shape[0] // module.num_channels
        module.num_groups = max(1, groups)  # several groups are removed whole, one gets narrower
        module.num_channels = weight.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and isinstance(weight, Tensor):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.all_weights[0][0].shape[1]
        refresh(module)  # it keeps its parameters in a list, too
    elif isinstance(module, nn.RNNCellBase):
        module.input_size = int(module.weight_ih.shape[1])
    elif isinstance(module, nn.PReLU) and isinstance(weight, Tensor):
        module.num_parameters = weight.shape[0]


def _set_size(module: nn.Module, size: Size) -> None:
    if size.index is None:
        setattr(module, size.name, size.value)
    else:
        values = list(getattr(module, size.name))
        values[size.index] = size.value
        setattr(module, size.name, type(getattr(module, size.name))(values))


def _put(model: nn.Module, places: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Put the second of each pair in the place of the first, under all of its names."""
    new = {id(old): module for old, module in places}
    for parent in list(model.modules()):
        for name, module in children_of(parent).items():
            if id(module) in new:
                setattr(parent, name, new[id(module)])


def _add_remap(module: nn.Module, remap: Remap) -> None:
    name = f"_chipnet_{remap.side}"
    take = [i for i in remap.index if i >= 0]
    scatter = len(take) < len(remap.index)
    device = next((t.device for t in [*module.parameters(), *module.buffers()]), None)
    module.register_buffer(
        f"{name}_from", torch.tensor(take, dtype=torch.int64, device=device), persistent=False
    )
    if scatter:
        to = [k for k, i in enumerate(remap.index) if i >= 0]
        module.register_buffer(
            f"{name}_to", torch.tensor(to, dtype=torch.int64, device=device), persistent=False
        )
    hook = IndexHook(name, remap.side, remap.axis, scatter, len(remap.index))
    if remap.side == "input":
        module.register_forward_pre_hook(hook.before, with_kwargs=True)
    else:
        module.register_forward_hook(hook.after)
