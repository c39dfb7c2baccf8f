"""Compact networks and weights on disk: safetensors with the plan inside, written all or nothing.

A file of `save` is one `.safetensors` file: the tensors of the compact network, and in the header's metadata

=================  ==========================================================================
`format`           `chipnet-compact`
`format_version`   what `load` must understand; see `FORMAT_VERSION`
`chipnet_version`  of the writer, for people
`network`          class of the network, for error messages
`plan`             the plan as JSON (`Plan.to_json`)
`sha256`           of the plan's text and of every tensor's name, dtype, shape and bytes
=================  ==========================================================================

Nothing here runs code from a file: there is no pickle. What a network is made of comes from the user's own
constructor.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from chipnet._util.files import write_atomically
from chipnet._util.given import NETWORK, new_file, path_of
from chipnet._util.modes import plainly
from chipnet._util.text import few
from chipnet._util.version import __version__
from chipnet.errors import LoadError, PlanError
from chipnet.surgery.apply import apply_plan
from chipnet.surgery.plan import PLAN, Plan

FORMAT = "chipnet-compact"
FORMAT_VERSION = "1"


def save(model: nn.Module, plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a compact network: its weights and the plan that made it, in one safetensors file.

    The file is written next to `path` and then renamed, so that `path` is at every moment the old file or the
    whole new one. Tensors that are tied are written once per name. The same network and plan make the same bytes.

    Args:
        model: what `compact` returned, fine-tuned or not.
        plan: the plan it was made with.
        path: where to; the folder must exist.

    Raises:
        PlanError: the network does not have the shapes that the plan leaves.
        CaptureError: ``model`` is no network.
        ConfigError: ``path`` is no path of a file in a folder that exists.
        OSError: the file could not be written (no permission, a full disk); an older file at
            `path` is as it was.

    Example:
        >>> import tempfile, torch
        >>> from chipnet.surgery.apply import compact
        >>> from chipnet.structure import Structure
        >>> def build():
        ...     return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> net = build()
        >>> plan = Structure(net, torch.ones(1, 3)).plan(torch.tensor([True, False, True, True]))
        >>> small = compact(net, plan)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(small, plan, f"{folder}/small.safetensors")
        ...     again = load(build, f"{folder}/small.safetensors")
        >>> torch.equal(again(torch.ones(1, 3)), small(torch.ones(1, 3)))
        True
    """
    NETWORK.check("model", model)
    PLAN.check("plan", plan)
    path = new_file("path", path)
    tensors = _tensors(model)
    # A plan knows tied tensors by their first name, which is the one that these iterators give.
    wrong = [
        f"{name}: {tuple(t.shape)} instead of {plan.shape(name)}"
        for name, t in [*model.named_parameters(), *model.named_buffers()]
        if name in plan.shapes and name in tensors and tuple(t.shape) != plan.shape(name)
    ]
    if wrong:
        raise PlanError(
            f"this {type(model).__name__} was not made with this plan: {few(wrong, 5, '; ')}. "
            "Give what chipnet.compact(model, plan) returned."
        )
    text = json.dumps(plan.to_json(), separators=(",", ":"))
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "chipnet_version": __version__,
        "network": type(model).__name__,
        "plan": text,
        "sha256": _digest(tensors, text),
    }
    write_atomically(path, _ordered(safetensors.torch.save(tensors, header)))


@plainly
def load(factory: Callable[[], nn.Module], path: str | os.PathLike[str]) -> nn.Module:
    """Rebuild a compact network: build the dense one, cut it by the stored plan, fill in the stored weights.

    Args:
        factory: called without arguments; returns the *dense* network as it was when it was pruned, with the
            same sizes. Its weights do not matter. For a class with arguments: `lambda: MyNet(width=16)`.
        path: a file of `save`.

    Returns:
        The compact network, on the device and in the mode (`train()` or `eval()`) that the factory gave, with
        the dtypes of the file. The same bits that were saved.

    Raises:
        LoadError: the file is missing, is not of `save`, is truncated or damaged, has a version that this
            chipnet does not know, or belongs to another network than the factory's.

    Example:
        See `save`.
    """
    path = path_of("path", path)
    _check_factory(factory)
    tensors, header = _read(path)
    text = _checked(path, tensors, header)
    try:
        plan = Plan.from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"the plan in {path} is damaged: {error}. Copy or save it again.") from error
    model = _built(factory)
    try:
        plan.check(model)
    except PlanError as error:
        raise LoadError(
            f"{path} was saved from a {header.get('network', 'network')} that the factory does not build: "
            f"{error} The factory must use the arguments that the dense network was built with (num_classes, "
            "in_channels, width)."
        ) from error
    try:
        apply_plan(model, plan)
    except (PlanError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise LoadError(
            f"the plan in {path} does not fit the {type(model).__name__} that the factory builds: {error}. "
            "Save it again."
        ) from error
    _fill(model, tensors, path)
    return model


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the state dict as plain safetensors, all or nothing; `chipnet.lab.models.load_weights` reads it.

    Args:
        model: any module whose state is tensors.
        path: where to; the folder must exist.

    Raises:
        CaptureError: ``model`` is no network.
        ConfigError: ``path`` is no path of a file in a folder that exists.
        OSError: the file could not be written; an older file at `path` is as it was.

    Example:
        >>> import tempfile
        >>> from chipnet.lab.models import load_weights
        >>> net, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(net, f"{folder}/net.safetensors")
        ...     load_weights(other, f"{folder}/net.safetensors")
        >>> torch.equal(net.weight, other.weight)
        True
    """
    NETWORK.check("model", model)
    path = new_file("path", path)
    write_atomically(path, safetensors.torch.save(_tensors(model), {"format": "pt"}))


# -- writing ----------------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise PlanError(
            f"the state of this {type(model).__name__} is not all tensors: {few(other, 5, '; ')}. Only tensors can "
            "be stored without pickle; keep the rest elsewhere."
        )
    # Clones, because safetensors refuses tensors that share memory, as tied ones do.
    return {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata in the order of their names: safetensors writes them in any order, and
    the same network and plan are the same bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def _digest(tensors: Mapping[str, Tensor], plan: str) -> str:
    sha = hashlib.sha256(plan.encode())
    for name in sorted(tensors):
        t = tensors[name]
        sha.update(f"\n{name} {t.dtype} {list(t.shape)}\n".encode())
        if t.numel():
            sha.update(t.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


# -- reading ----------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise LoadError(f"{path} {what}. Give the .safetensors file that chipnet.save wrote.")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # bytes that are no safetensors can fail in many ways
        raise LoadError(f"{path} {_what_is_wrong(path)} ({error}). Copy or save it again.") from error


def _what_is_wrong(path: Path) -> str:
    """Is the file cut off, or of another kind? By the layout: 8 bytes of length, a JSON header, tensors."""
    try:
        with open(path, "rb") as file:
            start, size = file.read(9), os.fstat(file.fileno()).st_size
    except OSError:
        return "cannot be read"
    if not start:
        return "is empty"
    if len(start) == 9 and start[8:] != b"{":
        return "is not a safetensors file"
    if len(start) < 9 or int.from_bytes(start[:8], "little") + 8 > size:
        return "is truncated"
    return "is truncated or damaged"


def _checked(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    if header.get("format") != FORMAT:
        raise LoadError(
            f"{path} holds weights but no plan: chipnet.save did not write it. For the weights of a dense "
            "network use chipnet.lab.models.load_weights."
        )
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise LoadError(
            f"{path} has format version {version!r}, of chipnet {header.get('chipnet_version', '?')}. "
            f"This chipnet ({__version__}) reads version {FORMAT_VERSION!r}: install that one, or a "
            "newer one."
        )
    text = header.get("plan", "")
    if _digest(tensors, text) != header.get("sha256"):
        raise LoadError(
            f"{path} is damaged: its content does not match its checksum. Copy it again from its origin."
        )
    return text


def _check_factory(factory: Any) -> None:
    if isinstance(factory, nn.Module) or not callable(factory):
        raise LoadError(
            f"factory is a {type(factory).__name__}; give a callable that builds the dense network, for "
            "example lambda: MyNet(num_classes=10)."
        )


def _built(factory: Callable[[], nn.Module]) -> nn.Module:
    model = factory()
    if not isinstance(model, nn.Module):
        raise LoadError(
            f"the factory returned a {type(model).__name__}; it must return the dense torch.nn.Module."
        )
    return model


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    mine = model.state_dict(keep_vars=True)
    wrong = [f"{n}: missing in the file" for n in mine if n not in tensors]
    wrong += [f"{n}: not in the network" for n in tensors if n not in mine]
    wrong += [
        f"{n}: {tuple(t.shape)} in the file, {tuple(mine[n].shape)} in the network"
        for n, t in tensors.items()
        if n in mine and mine[n].shape != t.shape
    ]
    wrong += [
        f"{n}: {t.dtype} in the file, {mine[n].dtype} in the network"
        for n, t in tensors.items()
        if n in mine and _family(t.dtype) != _family(mine[n].dtype)
    ]
    if wrong:
        raise LoadError(
            f"the weights in {path} do not fit their own plan: {few(wrong, 5, '; ')}. Save it again."
        )
    # The file's dtypes win: a network saved in bfloat16 is not silently widened. Changed through .data,
    # because load_state_dict(assign=True) would untie tied parameters.
    with torch.no_grad():
        for name, tensor in tensors.items():
            if mine[name].dtype != tensor.dtype:
                mine[name].data = mine[name].data.to(tensor.dtype)
    model.load_state_dict(dict(tensors), strict=True)


def _family(dtype: torch.dtype) -> tuple[bool, bool, bool]:
    """Within a family, the file's dtype is taken."""
    return dtype.is_floating_point, dtype.is_complex, dtype == torch.bool
