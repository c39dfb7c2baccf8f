"""Networks by name: ours first, then torchvision's, then timm's, then the user's `module:callable`."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from chipnet._util.given import NAME
from chipnet._util.imports import call_user, import_callable, optional_import
from chipnet._util.sizes import MAX, check_size
from chipnet._util.text import amount
from chipnet.errors import ConfigError
from chipnet.lab.models.mobilenet import MobileNetV2
from chipnet.lab.models.preresnet import PreResNet
from chipnet.lab.models.resnet import ResNet
from chipnet.lab.models.vgg import VGG, VGG_GROUPS


def _resnet(blocks: int, widen: int = 1) -> Callable[..., nn.Module]:
    return partial(ResNet, (blocks,) * 3, (16 * widen, 32 * widen, 64 * widen))


def _deep_resnet(blocks: tuple[int, ...]) -> Callable[..., nn.Module]:
    return partial(ResNet, blocks, (64, 128, 256, 512), stem=64, bottleneck=True)


_OWN: dict[str, Callable[..., nn.Module]] = {
    "resnet8": _resnet(1),
    "resnet20": _resnet(3),
    "resnet32": _resnet(5),
    "resnet56": _resnet(9),
    "resnet110": _resnet(18),
    "resnet50-cifar": _deep_resnet((3, 4, 6, 3)),
    "resnet101-cifar": _deep_resnet((3, 4, 23, 3)),
    "preresnet20": partial(PreResNet, 3),
    "preresnet56": partial(PreResNet, 9),
    "preresnet164": partial(PreResNet, 18, bottleneck=True),
    "mobilenetv2-cifar": MobileNetV2,
    **{f"vgg{depth}-cifar": partial(VGG, depth) for depth in VGG_GROUPS},
    **{f"vgg{depth}-bn-cifar": partial(VGG, depth, batch_norm=True) for depth in VGG_GROUPS},
}
# Of the family wrn-<depth>-<k> these are listed; every other member can be built.
_LISTED_WRN = ("wrn-16-2", "wrn-26-12", "wrn-28-10")
_OWN_WORDS = "module:callable, for example mypackage.nets:MyNet, gives a network of your own"


def list_models() -> tuple[str, ...]:
    """The names of the networks defined here, sorted; `get_model` takes torchvision's and timm's as well.

    Example:
        >>> "resnet20" in list_models()
        True
    """
    return tuple(sorted((*_OWN, *_LISTED_WRN)))


def get_model(name: str, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build a network by name, with freshly initialised weights. Nothing is ever downloaded.

    | name | network |
    |---|---|
    | one of `list_models()` | for small images, defined here; case does not matter, `_` is `-` |
    | `wrn-<depth>-<k>` | wide residual network, k times the width; see below |
    | `tv/NAME` | torchvision's classification network NAME |
    | `timm/NAME` | timm's NAME |
    | bare NAME | the first of the above that has it, in this order |
    | `module:callable` | `callable(num_classes=..., in_channels=...)`, each where its signature has it |

    A WRN of depth 6n + 4 (16, 22, 28, 40) is the pre-activation network of Zagoruyko and Komodakis. One of
    depth 6n + 2 (20, 26) is the post-activation ResNet of that depth, widened: this is what WRN-26-12 is in
    the code that the authors of ChipNet published.

    With `in_channels` other than 3, the first convolution of a torchvision network is replaced by a new one.

    Args:
        name: which network.
        num_classes: size of the output.
        in_channels: channels of the images.

    Returns:
        A module that maps float [N, in_channels, H, W] to logits [N, num_classes], in training mode.

    Raises:
        ConfigError: the name is unknown, a size in it or beside it is too large, the package it needs is not
            installed, the network cannot be built for that many channels, or the user's callable does not
            return a module.

    Example:
        >>> import torch
        >>> net = get_model("ResNet20", num_classes=7, in_channels=1)
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 7])
        >>> get_model("wrn-16-2").fc
        Linear(in_features=128, out_features=10, bias=True)
    """
    NAME.check("the name of a network", name)
    check_size("num_classes", num_classes)
    check_size("in_channels", in_channels)
    name = name.strip()
    if ":" in name:
        return _from_callable(name, num_classes, in_channels)
    prefix, slash, rest = name.partition("/")
    if slash and prefix.lower() in ("tv", "torchvision"):
        return _from_torchvision(rest, num_classes, in_channels)
    if slash and prefix.lower() == "timm":
        return _from_timm(rest, num_classes, in_channels)

    own = name.lower().replace("_", "-")
    build = _OWN.get(own) or _wrn(own)
    if build is not None:
        return build(num_classes=num_classes, in_channels=in_channels)
    if _installed("torchvision") and _torchvision_name(name) in _torchvision_names():
        return _from_torchvision(name, num_classes, in_channels)
    if _installed("timm") and _is_timm(name):
        return _from_timm(name, num_classes, in_channels)
    raise ConfigError(_unknown(name))


def is_known(name: str) -> bool:
    """Is it a name of ours, torchvision's or timm's, without a prefix?

    >>> is_known("resnet8"), is_known("resnet9000")
    (True, False)
    """
    own = name.lower().replace("_", "-")
    return (
        own in _OWN
        or own.startswith("wrn-")
        or (_installed("torchvision") and _torchvision_name(name) in _torchvision_names())
        or (_installed("timm") and _is_timm(name))
    )


def _wrn(name: str) -> Callable[..., nn.Module] | None:
    match = re.fullmatch(r"wrn-([0-9]+)-([0-9]+)", name)
    if match is None:
        return None
    for digits, called in ((match[1], "depth"), (match[2], "width")):
        if len(digits) > 9:  # int() refuses thousands of them
            raise ConfigError(f"There is no {name[:60]}: its {called} has {amount(len(digits), 'digit')}.")
    depth, widen = int(match[1]), int(match[2])
    check_size("depth", depth, f"the depth of {name}")
    # In each of three stages, of 16, 32 and 64 times k channels, are (depth - 2) / 3 convolutions of 3x3.
    params = (depth - 2) // 3 * 9 * (16**2 + 32**2 + 64**2) * widen**2
    if params > MAX:
        raise ConfigError(
            f"{name} has about {amount(params, 'parameter')}, and at most {MAX:,} are built: lower k."
        )
    if depth >= 8 and widen >= 1 and depth % 6 == 4:
        return partial(PreResNet, (depth - 4) // 6, widen=widen)
    if depth >= 8 and widen >= 1 and depth % 6 == 2:
        return _resnet((depth - 2) // 6, widen)
    raise ConfigError(
        f"There is no {name}: the depth of wrn-<depth>-<k> is 6n + 4 (10, 16, 22, 28, 34, 40, ...) or, for "
        f"the "
        f"post-activation form, 6n + 2 (8, 14, 20, 26, ...), and k is at least 1."
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _torchvision() -> Any:
    return optional_import("torchvision.models", needed_for="A torchvision network", install="torchvision")


def _timm() -> Any:
    return optional_import("timm", needed_for="A timm network", install="timm")


def _torchvision_names() -> list[str]:
    models = _torchvision()
    return list(models.list_models(module=models))  # without segmentation, detection and video


def _torchvision_name(name: str) -> str:
    return name.lower().replace("-", "_")


def _is_timm(name: str) -> bool:
    return bool(name) and bool(_timm().is_model(name))


def _from_torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    models = _torchvision()
    name = _torchvision_name(name)
    if name not in _torchvision_names():
        raise ConfigError(_unknown("tv/" + name))
    # The auxiliary heads of these two return tuples in training, and their own initialisation is very slow.
    plain = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **plain)
    if in_channels != 3:
        _replace_first_conv(model, name, in_channels)
    return model


def _replace_first_conv(model: nn.Module, name: str, in_channels: int) -> None:
    path, old = next(((p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if old is None or old.groups != 1:
        why = "no convolution" if old is None else f"groups in its first convolution, {path}"
        raise ConfigError(
            f"tv/{name} has {why}, so it cannot be adapted to {in_channels} input channels: use images of 3 "
            f"channels, or give your own network as module:callable."
        )
    same = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    options: dict[str, Any] = {key: getattr(old, key) for key in same}
    new = nn.Conv2d(
        in_channels, **options, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _from_timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    timm = _timm()
    if not _is_timm(name):
        raise ConfigError(_unknown("timm/" + name))
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=in_channels
        )
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AssertionError,
    ) as error:  # e.g. an unknown tag after the dot
        raise ConfigError(
            f"timm cannot build {name!r} with num_classes={num_classes}, in_chans={in_channels}: {error}"
        ) from error
    return model


def _from_callable(reference: str, num_classes: int, in_channels: int) -> nn.Module:
    build = import_callable(reference)
    model = call_user(reference, build, {"num_classes": num_classes, "in_channels": in_channels})
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"{reference!r} returned a {type(model).__name__}; it must return a torch.nn.Module."
        )
    return model


def _unknown(name: str) -> str:
    """The message for an unknown name; the candidates are those of the place the name asks for."""
    prefix, slash, rest = name.partition("/")
    place = prefix if slash and prefix in ("tv", "timm") else ""
    candidates: dict[str, str] = {}
    if not place:
        candidates.update({n: n for n in list_models()})
    if place != "timm" and _installed("torchvision"):
        candidates.update({n: "tv/" + n for n in reversed(_torchvision_names()) if n not in candidates})
    if place != "tv" and _installed("timm"):
        candidates.update({n: "timm/" + n for n in _timm().list_models() if n not in candidates})
    wanted = (rest if place else name).lower()
    both = [wanted.replace("_", "-"), wanted.replace("-", "_")]
    close: list[str] = []
    for spelling in both:
        for n in difflib.get_close_matches(spelling, list(candidates), n=5, cutoff=0.6):
            if candidates[n] not in close:
                close.append(candidates[n])
    absent = [p for p in ("torchvision", "timm") if not _installed(p)]
    parts = [f"There is no network {name!r}."]
    if close:
        parts.append(f"Close names: {', '.join(close[:5])}.")
    if absent:
        parts.append(f"Not installed, so not searched: {', '.join(absent)}.")
    parts.append(f"chipnet.lab.models.list_models() lists ours; {_OWN_WORDS}.")
    return " ".join(parts)
