"""Weights from a file into a network, all or nothing.

One idea: a file is its tensors, each under the names of all that it is nested in (`state_dict.model.conv.weight`).
Whatever wrapped the network when it was saved is then a prefix, and the prefix is found, not guessed: it is the one
under which every entry of the network is there.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.given import NETWORK, path_of
from chipnet._util.text import amount
from chipnet._util.torch_private import rebuild_parameter, rebuild_tensor
from chipnet.errors import ConfigError
from chipnet.lab.sanity import log

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Names that torch.compile, FSDP and activation checkpointing put anywhere into those of a network's entries."""
_AVERAGES = ("ema", "averag", "swa", "teacher")
"""Parts of names of weights that go beside the network's own."""


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in `path` into `model`, in place; on any mismatch nothing is copied.

    The file is read without running code that it names. Whatever wrapped the network there (a dict's `state_dict`,
    a LightningModule's `model.`, DataParallel's `module.`, an average of weights) is taken off its keys where all
    entries of the network are found below it; that is said (`info` of the logger `chipnet`).

    Args:
        model: the network to fill.
        path: a `.safetensors` file, or what `torch.save` wrote: a state dict, or dicts of any depth with one in
            them, such as Lightning's `.ckpt`. Its numbers may have another precision.

    Raises:
        ConfigError: the file is missing, cannot be read or holds no weights; or keys are missing, unexpected
            or of the wrong shape, all listed in one message. Counters of batches that old files lack are not
            missed.

    Example:
        >>> import tempfile, torch
        >>> from chipnet.lab.models import get_model, load_weights
        >>> saved, fresh = get_model("resnet8"), get_model("resnet8")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     wrapped = {f"net.{key}": value for key, value in saved.state_dict().items()}
        ...     torch.save({"epoch": 3, "state_dict": wrapped}, f"{folder}/net.ckpt")
        ...     load_weights(fresh, f"{folder}/net.ckpt")
        >>> torch.equal(saved.fc.weight, fresh.fc.weight)
        True
    """
    NETWORK.check("model", model)
    path = path_of("path", path)
    expected = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    state = _found(_read(path), expected, path)
    missing = [k for k in expected if k not in state and _needed(k)]
    unexpected = [k for k in state if k not in expected]
    both = [(k, v, expected[k]) for k, v in state.items() if k in expected]
    parameters = {name for name, _ in model.named_parameters()}
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": [
            f"{k} (file {list(v.shape)}, network {list(own.shape)})"
            for k, v, own in both
            if v.shape != own.shape
        ],
        "not floating point": [
            f"{k} ({v.dtype})" for k, v, own in both if own.is_floating_point() and not v.is_floating_point()
        ],
        "not finite": [k for k, v, _ in both if k in parameters and not torch.isfinite(v.float()).all()],
    }
    texts = [
        f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in problems.items()
        if keys
    ]
    if texts:
        raise ConfigError(
            f"The weights in {path} do not fit this {type(model).__name__}. " + "; ".join(texts) + ". "
            "Build the network with the name, num_classes and in_channels that the weights were saved with."
        )
    # Not strict only for the counters above; everything else has just been checked.
    model.load_state_dict(state, strict=False)


def find_weights(path: str | Path) -> None:
    """Refuse what is no file.

    Raises:
        ConfigError: there is no file of that name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ConfigError(f"The weights file {path} {what}. Give a .safetensors, .pt, .pth or .ckpt file.")


def _needed(key: str) -> bool:
    return not key.endswith("num_batches_tracked")


# -- which of the tensors are the network's ---------------------------------------------------------------


def _found(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under the prefix that fits the network, by its own keys; the closest where none fits."""
    own = {_bare(key): key for key in expected}
    shared = _shared(own)
    held = {_bare(key): value for key, value in tensors.items()}
    right: Counter[tuple[str, str]] = Counter()
    there: Counter[tuple[str, str]] = Counter()
    for key, value in held.items():
        for at in _starts(key):
            for added in shared:
                name = own.get(added + key[at:])
                same = at and added and f".{key[:at]}".endswith(f".{added}")  # both off is neither off
                if name is not None and _needed(name) and not same:
                    there[key[:at], added] += 1
                    right[key[:at], added] += value.shape == expected[name].shape
    need = sum(map(_needed, expected))
    fits = [place for place, count in right.items() if count == need]
    fits.sort(key=lambda place: (_average(place[0]), len(place[1])))  # of equals the first in the file
    best = fits[0] if fits else max(there, key=lambda place: there[place], default=("", ""))
    prefix, added = best
    others = tuple(place[0] for place in fits[1:] if place[0].startswith(prefix) and place[0] != prefix)
    state = {}
    for key, value in held.items():
        if key.startswith(prefix) and not (others and key.startswith(others)):
            name = added + key[len(prefix) :]
            state[own.get(name, name)] = value
    if fits and best != ("", ""):
        _tell(path, best, [place[0] for place in fits[1:]], len(held) - len(state))
    return state


def _tell(path: Path, taken: tuple[str, str], others: list[str], left: int) -> None:
    prefix, added = taken
    text = f"{path.name}: the network's weights are below '{prefix}'" if prefix else f"{path.name}"
    text += f"; the network calls them '{added}...'" if added else ""
    if prefix and left:
        text += f"; left out: {amount(left, 'other tensor')}"
    if others:
        text += (
            f"; weights that fit are also below {', '.join(map(repr, others))}: save those alone to take them"
        )
    log.info("%s", text)


def _bare(key: str) -> str:
    """A key without the names that PyTorch's own wrappers put into it."""
    for wrapper in _WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _starts(key: str) -> Iterator[int]:
    """The places in a key at which its last names begin: `a.b.c` at `a`, `b` and `c`."""
    at = 0
    while True:
        yield at
        at = key.find(".", at) + 1
        if not at:
            return


def _shared(keys: Mapping[str, str]) -> list[str]:
    """The prefixes that all keys have, the empty one first: what wraps the network here, not in the file."""
    first = next(iter(keys), "")
    return [first[:at] for at in _starts(first) if all(key.startswith(first[:at]) for key in keys)]


def _average(prefix: str) -> bool:
    return any(word in prefix.lower() for word in _AVERAGES)


# -- reading, without running anything that a file names --------------------------------------------------


def _read(path: Path) -> dict[str, Tensor]:
    """Every tensor in the file, under the names of all that it is nested in."""
    find_weights(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{path} cannot be read as safetensors ({error}). Copy or save it again."
            ) from error
    content = _unpickled(path)
    tensors = dict(_flat(content, ""))
    if tensors:
        return tensors
    if pickled := _pickled_network(content):
        where, name = pickled
        raise ConfigError(
            f"{path} holds a whole pickled network ({name}), and reading that runs code which the file names. "
            f"Convert it where you trust it: torch.save(torch.load({path.name!r}, weights_only=False){where}"
            ".state_dict(), 'weights.pt')."
        )
    if isinstance(content, Mapping):
        holds = f"a dict with the keys {', '.join(map(str, list(content)[:5])) or '(none)'}"
    else:
        holds = f"a {type(content).__name__}"
    raise ConfigError(
        f"{path} holds no state dict but {holds}. Wanted: a dict of tensors, or dicts with one in them. Save it "
        "with torch.save(model.state_dict(), path)."
    )


def _unpickled(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipped:  # it names other objects than tensors: a trainer's settings, or a whole network
            return _inertly(path)
        raise ConfigError(
            f"{path} cannot be read as weights: it is truncated, or holds other objects than tensors, or "
            "torch.save did not write it. Save them with torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # bytes that are no pickle can fail in any way
        if zipped and any(name.endswith("constants.pkl") for name in zipfile.ZipFile(path).namelist()):
            raise ConfigError(
                f"{path} cannot be read as weights: it is a TorchScript file. Convert it: "
                f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')."
            ) from error
        reason = (str(error) or "the file ends early").splitlines()[0]
        raise ConfigError(
            f"{path} cannot be read as weights ({reason}). Copy it again, or save it again with "
            f"torch.save(model.state_dict(), path)."
        ) from error


class _Inert:
    """Stands for an object of a class that is not imported. It does nothing, whatever is done with it."""

    def __new__(cls, *args: Any, **options: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None: ...
    def __call__(self, *args: Any, **options: Any) -> _Inert:
        return self

    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...
    def __hash__(self) -> int:
        return id(self)

    append = extend = add = update = __init__


_READ = {
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
}
"""All that a file may name: what makes tensors and dicts."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _READ:
            return _READ[module, name]
        return type(name, (_Inert,), {"__module__": module})


def _inertly(path: Path) -> Any:
    """What a file of `torch.save` holds, with `_Inert` in place of all that is neither tensor nor plain value."""
    reader = SimpleNamespace(Unpickler=_InertUnpickler, __name__="inert")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be read as weights: it holds Python objects, not only tensors. Save them with "
            "torch.save(model.state_dict(), path)."
        ) from error


def _flat(content: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        if name:
            yield name[:-1], content
    elif isinstance(content, Mapping) and depth < 16:
        for key, value in content.items():
            yield from _flat(value, f"{name}{key}.", depth + 1)


def _pickled_network(content: Any) -> tuple[str, str] | None:
    """(how to get at it, its class) of a pickled object that may be a network."""
    if isinstance(content, _Inert):
        return "", f"{type(content).__module__}.{type(content).__name__}"
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, _Inert) and any(word in str(key) for word in ("model", "net", "ema")):
                return f"[{key!r}]", f"{type(value).__module__}.{type(value).__name__}"
    return None
