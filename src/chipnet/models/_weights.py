"""Weights from a file into a network, all or nothing."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._errors import ConfigError

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and by torch.compile


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in `path` into `model`, in place; on any mismatch nothing is copied.

    Args:
        model: the network to fill.
        path: a `.safetensors` file, or what `torch.save` wrote from a state dict or from a dict that holds
            one under `state_dict`, `model` or `model_state_dict`. It is read with `weights_only=True`: a file
            cannot run code. The prefixes `module.` (DataParallel) and `_orig_mod.` (torch.compile) are taken
            off the keys.

    Raises:
        ConfigError: the file is missing, cannot be read or holds no weights; or keys are missing, unexpected
            or of the wrong shape, all listed in one message. Counters of batches that old files lack are not
            missed.

    Example:
        >>> import tempfile, torch
        >>> from chipnet.models import get_model, load_weights
        >>> saved, fresh = get_model("resnet8"), get_model("resnet8")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(saved.state_dict(), f"{folder}/net.pt")
        ...     load_weights(fresh, f"{folder}/net.pt")
        >>> torch.equal(saved.fc.weight, fresh.fc.weight)
        True
    """
    path = Path(path).expanduser()
    expected = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    state = _strip(_read(path), expected)
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    shapes = [
        f"{k} (file {list(v.shape)}, network {list(expected[k].shape)})"
        for k, v in state.items()
        if k in expected and v.shape != expected[k].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise ConfigError(
            f"The weights in {path} do not fit this {type(model).__name__}. " + "; ".join(problems) + ". "
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
        raise ConfigError(f"The weights file {path} {what}. Give a .safetensors, .pt or .pth file.")


def _read(path: Path) -> dict[str, Tensor]:
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
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            reason = "it holds Python objects, not only tensors (was the whole network saved?)"
        else:
            reason = "it is truncated, or torch.save did not write it"
        raise ConfigError(
            f"{path} cannot be read as weights: {reason}. Save them with torch.save(model.state_dict(), "
            f"path)."
        ) from error
    except Exception as error:  # bytes that are no pickle can fail in any way
        reason = (str(error) or "the file ends early").splitlines()[0]
        raise ConfigError(
            f"{path} cannot be read as weights ({reason}). Copy it again, or save it again with "
            f"torch.save(model.state_dict(), path)."
        ) from error
    return _find_state(content, path)


def _find_state(content: Any, path: Path) -> dict[str, Tensor]:
    candidates = [content]
    if isinstance(content, Mapping):
        candidates = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)] or [content]
    for candidate in candidates:
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in candidate.items())
        ):
            return dict(candidate)
    if isinstance(content, Mapping):
        holds = f"a dict with the keys {', '.join(map(str, list(content)[:5])) or '(none)'}"
    else:
        holds = f"a {type(content).__name__}"
    raise ConfigError(
        f"{path} holds no state dict but {holds}. Wanted: a dict of tensors, or one under "
        f"{', '.join(map(repr, _WRAPPERS))}. Save it with torch.save(model.state_dict(), path)."
    )


def _strip(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take wrappers' prefixes off, but not one that all keys of the network have: a child may be called
    `module`.
    """

    def wrapped(keys: Mapping[str, Tensor], prefix: str) -> bool:
        return bool(keys) and all(key.startswith(prefix) for key in keys)

    while True:
        found = [p for p in _PREFIXES if wrapped(state, p) and not wrapped(expected, p)]
        if not found:
            return state
        state = {key.removeprefix(found[0]): value for key, value in state.items()}
