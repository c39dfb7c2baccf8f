"""Which modules are a norm over channels, however their forward is written?

Layer norm and RMS norm are written in many ways: with ``F.layer_norm`` between two permutes, with ``mean``, ``var``
and ``rsqrt``, in float32, with the channels first. So it is not the operators that are looked at: the module is
called on random inputs, in train and in eval mode, and must compute what one of the norms does: over channels, or
over all of an example.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from chipnet._util.torch_private import calls_around, parameters_of, value_of
from chipnet.graph.call import Forward
from chipnet.graph.labels import Param
from chipnet.graph.standard import STANDARD_NORM
from chipnet.program.capture import Captured, written_by
from chipnet.program.names import operator_name, shape_of

_STATISTICS = frozenset(["layer_norm", "rms_norm", "group_norm", "mean", "var_mean", "var"])
"""Operators of which a norm has at least one."""
_CASTS = frozenset(["to", "_to_copy", "alias", "detach", "contiguous", "clone"])
_MOST = 24
"""Operators that a norm has at most."""
_SCALES = (1e-3, 0.03, 1.0, 30.0)
"""Scales of inputs: among small ones the number under the root shows."""
_CLOSE = 3e-6
"""Relative difference of what is computed in float32."""


@dataclass(frozen=True)
class NormCall:
    """One call of a module that is a norm over the axis ``axis`` of its input and nothing else.

    ``x``: the node that it reads; ``nodes``: its operators. ``over``: the axes of the statistics, counted from the
    last; that of channels, or all but the first (group norm of one group). ``weight``, ``bias``: its affine
    parameters, along channels. ``unit``: what multiplies is 1 + weight. ``eps``: the attribute that is added under
    the root; "" where it is none. ``added``: what is added there.
    """

    x: Node
    nodes: tuple[Node, ...]
    axis: int
    over: tuple[int, ...]
    centred: bool
    weight: Param | None
    bias: Param | None
    unit: bool
    eps: str
    added: float


@dataclass(frozen=True)
class _Form:
    """What a module may compute."""

    axis: int
    over: tuple[int, ...]
    centred: bool
    unit: bool
    eps: float

    def __call__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        shape = [-1 if a == self.axis else 1 for a in range(x.dim())]
        x = x - x.mean(self.over, keepdim=True) if self.centred else x
        y = x * (x.square().mean(self.over, keepdim=True) + self.eps).rsqrt()
        if weight is not None:
            y = y * (weight.reshape(shape) + self.unit)
        return y if bias is None else y + bias.reshape(shape)


def norm_calls(forward: Forward, program: Captured, held: Mapping[str, str]) -> dict[Node, NormCall]:
    """Calls of modules that are norms over channels, by the node that they give.

    ``held``: placeholder -> the parameter or buffer.
    """
    inside: dict[str, list[Node]] = defaultdict(list)
    outer: set[str] = set()
    for node in program.graph.nodes:
        if node.op == "call_function" and (calls := list(calls_around(node))):
            outer.update(calls[:-1])
            inside[calls[-1]].append(node)
    found = {}
    for call, nodes in inside.items():
        if call in outer or len(nodes) > _MOST or not any(operator_name(n) in _STATISTICS for n in nodes):
            continue
        if (norm := _read(forward, nodes, held)) is not None:
            found[norm[0]] = norm[1]
    return found


def _read(forward: Forward, nodes: Sequence[Node], held: Mapping[str, str]) -> tuple[Node, NormCall] | None:
    path = forward.modules.around(nodes[0])
    module = forward.modules.get(path)
    if module is None or type(module) in STANDARD_NORM or any(any(written_by(n)) for n in nodes):
        return None
    own, nodes, same = _without_casts(nodes)
    read = dict.fromkeys(same.get(a, a) for n in nodes for a in n.all_input_nodes if a not in own)
    xs = [a for a in read if a.name not in held]
    given = [n for n in nodes if any(u not in own for u in n.users)]
    names = [held[a.name] for a in read if a.name in held]
    if len(xs) != 1 or len(given) != 1 or len(names) > 2:
        return None
    (x,), (y,) = xs, given
    if not all(isinstance(value_of(n), Tensor) and value_of(n).is_floating_point() for n in (x, y)):
        return None
    shape = shape_of(x)
    keys = {name.rpartition(".")[2]: name for name in names}
    params = {k: p for k, p in parameters_of(module).items() if p is not None and p.numel() > 1}
    if shape_of(y) != shape or params.keys() != keys.keys() or {*map(_owner, names)} - {path}:
        return None
    literals = {a for n in nodes for a in n.args if isinstance(a, float) and 0 < a < 1}
    found = _form(module, shape, params, literals)
    if found is None:
        return None
    form, weight, bias, eps = found
    weight_, bias_ = (Param(keys[k], tuple(params[k].shape)) if k else None for k in (weight, bias))
    return y, NormCall(
        x, tuple(nodes), form.axis, form.over, form.centred, weight_, bias_, form.unit, eps, form.eps
    )


def _without_casts(nodes: Sequence[Node]) -> tuple[set[Node], list[Node], dict[Node, Node]]:
    """The nodes without casts of what is read, as a set and in order; and casts, each with what it is of. A cast to
    the type that a tensor has is that tensor: others may read it."""
    own, same = set(nodes), dict[Node, Node]()
    for n in nodes:
        if operator_name(n) in _CASTS and (a := n.all_input_nodes[0]) not in own:
            own.remove(n)
            same[n] = same.get(a, a)
    return own, [n for n in nodes if n in own], same


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


@torch.no_grad()
def _form(
    module: nn.Module, shape: tuple[int, ...], params: Mapping[str, nn.Parameter], literals: Set[float]
) -> tuple[_Form, str, str, str] | None:
    """What a module computes, the names of its weight and bias, and of the attribute that is its eps."""
    trial = copy.deepcopy(module).double()
    generator = torch.Generator().manual_seed(0)
    values = {k: torch.randn(p.shape, generator=generator, dtype=torch.float64) for k, p in params.items()}
    for k, value in values.items():
        parameters_of(trial)[k] = nn.Parameter(value)
    numbers = {k: v for k, v in vars(module).items() if isinstance(v, float)}
    width = next((p.numel() for p in params.values()), None)
    for axis in [a for a in reversed(range(len(shape))) if shape[a] == (width or shape[a]) and shape[a] > 1]:
        small = tuple(n if a == axis else min(n, 3) for a, n in enumerate(shape))
        xs = [s * torch.randn(small, generator=generator, dtype=torch.float64) + 0.1 * s for s in _SCALES]
        xs *= 2
        try:  # dropout inside shows in train mode only, and where a network is random no trial of it would see it
            ys = [trial.train(i < len(_SCALES))(x) for i, x in enumerate(xs)]
        except (
            Exception
        ):  # channels lie along another axis of the same length; or it wants other sizes, or more
            continue
        for form in _forms(axis, len(shape), {*numbers.values(), *literals}):
            for weight, bias in _roles(list(params)):
                w, b = values.get(weight), values.get(bias)
                if form.unit and (bias or not weight):
                    continue
                if all(_same(form(x, w, b), y) for x, y in zip(xs, ys, strict=True)):
                    return form, weight, bias, _eps(trial, numbers, form, xs, w, b)
    return None


def _forms(axis: int, ndim: int, eps: Set[float]) -> Iterator[_Form]:
    """Norms over channels; or over all of an example, whose channels come first."""
    example = tuple(range(1 - ndim, 0))
    for over in dict.fromkeys([(axis - ndim,), *([example] if axis == 1 else [])]):
        for e in sorted({*eps, 0.0}):
            for centred in (True, False):
                for unit in (False, True):
                    yield _Form(axis, over, centred, unit, e)


def _roles(names: list[str]) -> list[tuple[str, str]]:
    """Which is the weight and which the bias."""
    return {0: [("", "")], 1: [(names[0], "")] if names else []}.get(len(names)) or [
        (names[0], names[1]),
        (names[1], names[0]),
    ]


def _eps(
    trial: Any,
    numbers: Mapping[str, float],
    form: _Form,
    xs: list[Tensor],
    w: Tensor | None,
    b: Tensor | None,
) -> str:
    """The attribute that is added under the root, if it is one that is read in each call."""
    for name in (n for n, v in numbers.items() if v == form.eps):
        setattr(trial, name, 4 * form.eps)
        other = replace(form, eps=4 * form.eps)
        same = all(_same(other(x, w, b), trial(x)) for x in xs)
        setattr(trial, name, form.eps)
        if same:
            return name
    return ""


def _same(a: Tensor, b: Any) -> bool:
    return (
        isinstance(b, Tensor) and a.shape == b.shape and bool((a - b).abs().max() <= _CLOSE * a.abs().max())
    )
