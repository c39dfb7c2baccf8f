"""May the network be captured, without changing it?"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chipnet._util.text import first_line
from chipnet._util.torch_private import STORES, FakeTensor, buffers_of, parameters_of
from chipnet.errors import CaptureError
from chipnet.program.inputs import Inputs
from chipnet.program.lines import is_users
from chipnet.program.outputs import tensors


def ready(model: nn.Module, inputs: Inputs, train: bool = False) -> tuple[nn.Module, Inputs]:
    """A deep copy of ``model`` that has run once on ``inputs`` in eval (or train) mode, and the inputs.

    What a forward makes at its first call (grids, caches, buffers) is there in the copy, as real tensors. In the
    inputs the choice of outputs is settled.

    Raises:
        CaptureError: it cannot be copied or does not run. The message says what to do.
        ConfigError: the outputs that are chosen are not there.
    """
    own, inputs = with_numbers(copied(model).train(train), inputs)
    try:
        with torch.no_grad():
            out = inputs(own)
    except Exception as error:
        raise CaptureError(
            f"{refusal(model, inputs, 'its forward', error)}Check that it runs on them."
        ) from error
    if inputs.outputs is not None and not train:
        found = inputs.outputs(out)
        inputs = replace(inputs, outputs=inputs.outputs.settled(out))
    else:
        found = list(tensors(out))
    if not found:
        raise CaptureError(
            f"the forward of {type(model).__name__} returns no tensor: nothing needs to be kept"
        )
    return own, inputs


def check_runs(model: nn.Module, inputs: Inputs) -> None:
    """Refuse inputs that a network does not take: it is called once, as it is.

    Raises:
        CaptureError: its forward fails.
    """
    try:
        with torch.no_grad():
            inputs(model)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} does not run on the inputs, {inputs}.\n{first_line(error)}\n"
            f"{_user_line(error)}Give inputs as its forward takes them, of its type of numbers."
        ) from error


def copied(model: nn.Module, *, shared: bool = False) -> nn.Module:
    """A deep copy of a model. ``shared``: with the model's own parameters and buffers.

    Tensors in attributes lose their gradient history, since such tensors cannot be copied: what a training step
    left there, or a weight that a hook computes before every call.

    Raises:
        CaptureError: it cannot be copied. The message names the attribute at fault, and says what to do.
    """
    memo = {id(t): t for t in [*model.parameters(), *model.buffers()]} if shared else {}
    memo |= {id(t): t.detach().clone() for t in attributes(model) if not t.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        name, fix = _at_fault(model)
        raise CaptureError(
            f"{type(model).__name__} cannot be copied, and what is pruned is a copy: "
            f"{name or first_line(error)}. {fix}"
        ) from error


def with_numbers(own: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """``own``, changed in place, and ``inputs``, both with numbers in place of tensors on the meta device.

    What can be pruned depends on no weight, but pruned copies must run.
    """
    generator = torch.Generator().manual_seed(0)

    def real(x: Tensor) -> Tensor:
        drawn = 0.5 + torch.rand(x.shape, generator=generator)
        return (drawn if x.is_floating_point() else torch.zeros(x.shape)).to(x.dtype)

    new: dict[int, Any] = {}  # a tensor with two names stays one
    for module in own.modules():
        for store in (parameters_of(module), buffers_of(module)):
            for name, t in store.items():
                if t is not None and t.is_meta:
                    made = nn.Parameter(real(t), t.requires_grad) if isinstance(t, nn.Parameter) else real(t)
                    store[name] = new.setdefault(id(t), made)
    return own, inputs.mapped(lambda v: real(v) if isinstance(v, Tensor) and v.is_meta else v)


def attributes(model: nn.Module) -> Iterator[Tensor]:
    """Tensors in attributes of modules, also those in lists and dicts. Parameters and buffers are left out."""

    def inside(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for v in value:
                yield from inside(v)
        elif isinstance(value, Mapping):
            yield from inside(list(value.values()))

    for module in model.modules():
        for name, value in vars(module).items():
            if name not in STORES:
                yield from inside(value)


def _at_fault(model: nn.Module) -> tuple[str, str]:
    """The attribute that cannot be copied, with its kind, and what to do about it."""
    general = "copy.deepcopy(model) must work: set that attribute to None before, and again after."
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            parts = value.items() if name in ("_parameters", "_buffers") else [(name, value)]
            for key, part in parts if name != "_modules" else ():
                try:
                    copy.deepcopy(part, {id(m): m for m in model.modules()})
                except Exception:
                    where = ".".join(p for p in (path, key) if p)
                    if not isinstance(part, FakeTensor):
                        return f"'{where}' (of type {type(part).__name__})", general
                    return (
                        f"'{where}' (a FakeTensor, which holds no numbers)",
                        f"An earlier export left it there: set model.{where} again, or build the network again.",
                    )
    return "", general


def refusal(model: nn.Module, inputs: Inputs, who: str, error: Exception) -> str:
    """Why a model could not be captured, with the user's line."""
    said = str(error).strip().split("\n")[0]
    return (
        f"{type(model).__name__} could not be captured with example inputs {inputs}.\n"
        f"{who} said: {type(error).__name__}: {said}\n"
        f"{_user_line(error)}"
    )


def _user_line(error: BaseException) -> str:
    lines = []
    tb = error.__traceback__
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        if is_users(name):
            lines.append(f"{name}:{tb.tb_lineno} in {tb.tb_frame.f_code.co_name}")
        tb = tb.tb_next
    return f"at {lines[-1]}\n" if lines else ""


# -- what cannot be captured ----------------------------------------------------------------------------------
_WRAPPERS = {
    "DistributedDataParallel": "Give the network inside, model.module, and wrap it again after",
    "FullyShardedDataParallel": "Give the network inside, before it is sharded",
    "FSDPModule": "Give the network before it is sharded",
    "ScriptModule": "TorchScript cannot be changed: give the nn.Module that it was made of",
    "_StatefulGraphModule": "It is a torch.export program: give the nn.Module that was exported",
}
"""Classes whose forward cannot be captured, and what to give in their place."""


def check_ready(model: nn.Module, inputs: Inputs) -> None:
    """Refuse what cannot be captured, before anything takes long.

    Raises:
        CaptureError: the message says what to give in its place.
    """
    _check_model(model)
    _check_inputs(inputs)


def _check_model(model: nn.Module) -> None:
    kinds = [kind.__name__ for kind in type(model).__mro__]
    for kind in kinds:
        if kind in _WRAPPERS:
            raise CaptureError(f"a {kinds[0]} cannot be captured. {_WRAPPERS[kind]}.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise CaptureError(
                f"'{name}' has no shape yet: {kinds[0]} has lazy modules. Run it once before: "
                "model(*example_inputs)"
            )
        if isinstance(tensor, FakeTensor):
            raise CaptureError(
                f"'{name}' is a FakeTensor, which holds no numbers, and pruned copies are run: an earlier export "
                "left it there. Build the network again"
            )


def _check_inputs(inputs: Inputs) -> None:
    for x in inputs.tensors():
        if isinstance(x, FakeTensor):
            raise CaptureError(
                "the example inputs are FakeTensors, which hold no numbers, and pruned copies are run: give real "
                "tensors, such as torch.randn(...)"
            )
        if x.is_nested or x.is_quantized:
            kind, how = ("nested", "to_padded_tensor(0.0)") if x.is_nested else ("quantised", "dequantize()")
            raise CaptureError(f"example inputs must be plain tensors, not {kind} ones: give x.{how}")
        if x.dim() and x.shape[0] == 0:
            raise CaptureError(
                f"the example inputs are a batch of nothing: a tensor has shape {tuple(x.shape)}. "
                "Give one image or more"
            )


# -- what is the user's ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """While the block lasts, copies of a model may write to what they share: attributes of the modules' classes,
    and the global random generators. Afterwards these are as before."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    own = [kind for kind in kinds if not kind.__module__.startswith(("torch.", "builtins", "typing"))]
    before = [(kind, {n: v for n, v in vars(kind).items() if not n.startswith("__")}) for kind in own]
    held: dict[int, tuple[Any, Any]] = {}
    for _, attributes in before:
        _containers(attributes, held)
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for kind, attributes in before:
            for name in [n for n in vars(kind) if not n.startswith("__") and n not in attributes]:
                delattr(kind, name)
            for name, value in attributes.items():
                if vars(kind).get(name) is not value:
                    setattr(kind, name, value)
        for container, content in held.values():
            _refill(container, content)


def _containers(value: Any, found: dict[int, tuple[Any, Any]]) -> None:
    """Find all lists, dicts and sets in a value, itself included, and copy each."""
    if isinstance(value, (list, dict, set)) and id(value) not in found:
        found[id(value)] = value, copy.copy(value)
        for inner in list(value.values() if isinstance(value, dict) else value):
            _containers(inner, found)


def _refill(container: Any, content: Any) -> None:
    """Make a list, dict or set hold what its copy holds, if that has changed."""
    if isinstance(container, dict):
        now, then = [*container, *container.values()], [*content, *content.values()]
    else:
        now, then = list(container), list(content)
    if len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True)):
        return
    container.clear()
    container.extend(content) if isinstance(container, list) else container.update(content)
