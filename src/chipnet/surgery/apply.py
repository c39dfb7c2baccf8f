"""Carry a plan out: the same class, the same forward, smaller tensors. Verified by default."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chipnet._util.device import device_of
from chipnet._util.finite import check_finite
from chipnet._util.given import NETWORK
from chipnet._util.modes import plainly
from chipnet._util.torch_private import (
    ConvNd,
    ConvTransposeNd,
    NormBase,
    TorchDispatchMode,
    buffers_of,
    children_of,
    parameters_of,
    refresh,
    tree_leaves,
)
from chipnet.errors import ChipNetError, PlanError
from chipnet.gates.hooks import add_gates, strip_gates
from chipnet.gates.values import Constants
from chipnet.graph.facts import Frozen
from chipnet.graph.groups import small_groups
from chipnet.graph.rules.layers import LAYERS
from chipnet.graph.standard import STANDARD_MIX
from chipnet.program.inputs import Inputs
from chipnet.program.ready import check_runs, copied
from chipnet.program.removal import removable, removed
from chipnet.program.spelling import spell, unnested, unspell
from chipnet.surgery.modules import stand_in
from chipnet.surgery.plan import PLAN, Plan, Remap, Size
from chipnet.surgery.verify import Comparison, compare, compare_training, outputs, repeatable

_log = logging.getLogger("chipnet")


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
    _zero(small, plan)
    _cut(small, plan)
    if verify and (empty := next((n for n, p in model.named_parameters() if p.is_meta), None)) is not None:
        raise PlanError(
            f"'{empty}' holds no numbers (it is on the meta device), so there is nothing to verify with. Give the "
            "network memory and weights, or cut its shapes with verify=False."
        )
    if verify and inputs is not None:
        _verify(model, small, plan, inputs)
    return small


@plainly
def masked(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the dense model with the shut gates' rows set to zero: what the compact one must equal. Norms over
    channels have the statistics of those that stay.

    Layers that compute their weight go on computing it; their shut channels are set to zero after each call, as are
    those of modules without affine parameters.

    Raises:
        PlanError: the plan is for another network.
    """
    PLAN.check("plan", plan)
    plan.check(model)
    out = unnested(strip_gates(copied(model)))
    _zero(out, plan, {f"{f.module}.weight" for f in plan.frozen})
    for name, (axis, channels) in plan.shut.items():
        out.get_submodule(name).register_forward_hook(_Shut(axis, channels))
    values = Constants([live.channels for live in plan.live])
    values.set(torch.cat([torch.zeros(0), *(_ones(live.channels, live.kept) for live in plan.live)]))
    add_gates(out, [], values, norms=[live.norm for live in plan.live])
    return out


def _ones(size: int, at: Sequence[int]) -> Tensor:
    return torch.zeros(size).index_fill(0, torch.tensor(at, dtype=torch.int64), 1)


class _Shut:
    """Forward hook that sets channels of a layer's output to zero."""

    def __init__(self, axis: int, channels: tuple[int, ...]) -> None:
        self.axis, self.channels = axis, torch.tensor(channels, dtype=torch.int64)

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.index_fill(self.axis, self.channels.to(output.device), 0)


def agree(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    inputs: Inputs,
    blind: frozenset[int] = frozenset(),
) -> bool:
    """Do masked and compact networks compute the same? They do not where an output, but for those in ``blind``, has
    nothing that could be compared. Raises what their forwards raise."""
    return _same(_compared(model, small, plan, inputs), small, plan, inputs, blind=blind)


@plainly
def verify_compact(model: nn.Module, small: nn.Module, plan: Plan, inputs: Any) -> Comparison:
    """Largest difference between the masked and the compact outputs on ``inputs``, and the outputs' scale.

    Runs in eval mode and in float64 where both networks do. Numbers that are not finite must stand in the same
    places; where outputs have no others, or the inputs are constant, random inputs of the same shapes are used too.

    Returns:
        A `Comparison`, which unpacks as ``difference, scale`` and knows how many numbers were compared. Where none
        were, the difference is NaN: nothing is verified.

    Raises:
        PlanError: the plan is for another network, or neither it nor the caller has inputs.
        CaptureError: one of both is no network, or the model does not run on the inputs.
    """
    PLAN.check("plan", plan)
    plan.check(model)
    NETWORK.check("small", small)
    called = plan.called(inputs)
    if called is None:
        raise PlanError(
            "this plan was read from a file, which holds no inputs: give inputs to compare outputs on"
        )
    return _compared_for(model, small, plan, called)


def _compared_for(model: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> Comparison:
    """As `_compared`. Inputs that the model itself does not run on are refused in words."""
    try:
        return _compared(model, small, plan, inputs)
    except ChipNetError:
        raise
    except Exception:
        check_runs(copied(model).eval(), inputs.to(device_of(model)))
        raise


def _compared(model: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> Comparison:
    """What is compared, as `verify_compact` says. Raises what the forwards raise."""
    device = device_of(model)
    try:
        big, other = masked(model, plan).double(), copy.deepcopy(small).double()
        return compare(big, other, inputs.to(device, torch.float64))
    except (RuntimeError, TypeError):  # a forward that makes tensors of its own dtype: as it is, then
        return compare(masked(model, plan), copy.deepcopy(small), inputs.to(device))


def _verify(model: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> None:
    """Raise `PlanError` unless the compact network has been seen to compute what the masked one does."""
    check_finite(model, kind=PlanError)
    found = _compared_for(model, small, plan, inputs)
    if any(size.value != size.was for size in plan.sizes):  # a number that follows may be a value in training
        _verify_training(model, small, plan, inputs.to(device_of(model)))
    blind = frozenset(found.unverified)
    same = found.compared == 0 or _same(found, small, plan, inputs, least=1e-12, blind=blind)
    if found.difference == math.inf or not same:
        raise PlanError(
            f"the compact network does not compute what the masked one does: outputs differ by "
            f"{found.difference:.3g} at scale {found.scale:.3g}. This is a bug of chipnet's rules for one of the "
            "model's operators; please report it. Exclude the layers concerned with ignore=[...]."
        )
    if found.complete:
        if found.drawn:
            _log.info(
                "verified on random inputs too: example inputs or their outputs are constant or not finite"
            )
        return
    which = f"in output {', '.join(map(str, found.unverified))}" if found.unverified else "in any output"
    raise PlanError(
        f"the compact network cannot be verified: there is no finite number to compare {which} of this "
        f"{type(model).__name__}, neither on the example inputs nor on random ones. Give example_inputs on which "
        "its outputs are finite and not empty, or verify=False."
    )


def _verify_training(model: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> None:
    """Raise `PlanError` where the compact network computes something else in train mode, nothing random aside."""
    if plan.frozen or not repeatable(big := masked(model, plan), inputs):
        return
    found = compare_training(big, small, inputs)
    if not same_in_training(found, small):
        raise PlanError(
            "the compact network computes in train mode something else than the masked one: outputs differ by "
            f"{found.difference:.3g} at scale {found.scale:.3g}. A number of the model's that holds a width is "
            "used as a value in training: exclude the layers concerned with ignore=[...]."
        )


def same_in_training(found: Comparison, small: nn.Module) -> bool:
    """Is what was compared in train mode the same? Statistics of a batch blow rounding up."""
    return found.within(1e-6 if _is_double(small) else 1e-2, least=1e-12)


def _same(found: Comparison, small: nn.Module, plan: Plan, inputs: Inputs, **known: Any) -> bool:
    """Is what was compared in eval mode the same, but for rounding?

    In float64 rounding is tiny. Where constants make up most of an output, a small difference may be all that shows
    of an error. It is rounding only where a forward computes in a smaller type, whatever its inputs are, or where
    surgery has rounded parameters.
    """
    if found.within(1e-9, **known):
        return True
    rounded = bool(plan.scales or plan.rows or plan.frozen) or not _computes_in_double(small, inputs)
    return rounded and found.within(_limit(small, plan), **known)


class _Narrow(TorchDispatchMode):
    """Notes whether an operator gives floating-point numbers that are no float64."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        floats = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
        self.found |= any(t.dtype != torch.float64 for t in floats)
        return out


@torch.no_grad()
def _computes_in_double(small: nn.Module, inputs: Inputs) -> bool:
    """Does a network in float64 compute in nothing smaller? False where it does not run so."""
    try:
        double, given = copy.deepcopy(small).double(), inputs.to(device_of(small), torch.float64)
        with _Narrow() as narrow:
            outputs(double, given)
    except Exception:  # a forward that makes tensors of its own dtype
        return False
    return not narrow.found


def _limit(small: nn.Module, plan: Plan) -> float:
    """How much outputs may differ, relative to their scale. Parameters that surgery multiplies are as exact as
    their type can hold them."""
    if _is_double(small):
        return 1e-9
    types = (
        {p.dtype for p in small.parameters() if p.is_floating_point()} if plan.scales or plan.rows else set()
    )
    return max(1e-4, *(4 * torch.finfo(t).eps for t in types), 0.0)


def _is_double(model: nn.Module) -> bool:
    return all(p.dtype == torch.float64 for p in model.parameters())


@torch.no_grad()
def _zero(model: nn.Module, plan: Plan, skip: Set[str] = frozenset()) -> None:
    tensors = dict(model.named_parameters())
    for name in plan.zero.keys() - skip:
        axis, indices = plan.zero[name]
        p = tensors[name]
        p.index_fill_(axis, torch.tensor(indices, dtype=torch.int64, device=p.device), 0)


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
        whole = module.num_groups * weight.shape[0] // module.num_channels
        module.num_groups = max(1, whole)  # several groups are removed whole, one gets narrower
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
    """Of each pair the second in the place of the first, under all of its names."""
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
