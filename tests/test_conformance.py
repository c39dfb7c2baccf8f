"""Every architecture, both realisations: what `harness.conforms` says of the compact network holds."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.models as tv
from harness import conforms, outputs, random_mask, randomised
from torch import Tensor, nn

from chipnet import Structure, compact, masked
from chipnet.lab.models import get_model
from chipnet.lab.models.preresnet import PreResNet


def vgg(make: Callable[..., nn.Module]) -> nn.Module:
    """VGG with a narrow classifier: the real one's 120 million weights take a gigabyte in float64."""
    model = make()
    model.classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 61),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(61, 53),
        nn.ReLU(True),
        nn.Linear(53, 10),
    )
    return model


def cbr(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers = cbr(3, 12), nn.ModuleList(cbr(12 + 7 * i, 7) for i in range(4))
        self.narrow, self.fc = nn.Conv2d(40, 20, 1), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.fc(F.avg_pool2d(self.narrow(x), 2).mean((2, 3)))


class UNet(nn.Module):
    """Down, up again by a transposed convolution and by interpolation, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 8), cbr(8, 12), cbr(12, 16)
        self.up, self.d = nn.ConvTranspose2d(16, 12, 2, stride=2), cbr(24, 12)
        self.e, self.out = cbr(20, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        y = self.d(torch.cat([b, self.up(self.c(F.max_pool2d(b, 2)))], 1))
        y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(self.e(torch.cat([a, y], 1)))


def from_timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name)


Build = Callable[[], nn.Module]
IMAGE = (3, 64, 64)
MODELS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "resnet18": (tv.resnet18, IMAGE),
    "resnet50": (tv.resnet50, IMAGE),
    "vgg11": (lambda: vgg(tv.vgg11), (3, 32, 32)),
    "densenet": (
        lambda: tv.DenseNet(12, (2, 3, 2, 2), 24),
        (3, 32, 32),
    ),  # of 121 layers: in docs/coverage.md
    "mobilenet_v2": (tv.mobilenet_v2, IMAGE),
    "mobilenet_v3_small": (tv.mobilenet_v3_small, IMAGE),
    "shufflenet_v2_x0_5": (tv.shufflenet_v2_x0_5, IMAGE),
    "googlenet": (lambda: tv.googlenet(aux_logits=True, init_weights=False), IMAGE),
    "regnet_y_400mf": (tv.regnet_y_400mf, IMAGE),
    "r3d_18": (tv.video.r3d_18, (3, 4, 32, 32)),
    "lraspp": (lambda: tv.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None), IMAGE),
    "byobnet": (from_timm("test_byobnet"), IMAGE),
    "nfnet": (from_timm("test_nfnet"), IMAGE),
    "convnext-timm": (from_timm("test_convnext"), IMAGE),
    "efficientnet-timm": (from_timm("test_efficientnet"), IMAGE),
    "resnest14d": (from_timm("resnest14d"), IMAGE),
    "ghostnet_050": (from_timm("ghostnet_050"), IMAGE),
    "mobilevit_xxs": (from_timm("mobilevit_xxs"), IMAGE),
    "preresnet20": (lambda: get_model("preresnet20"), (3, 16, 16)),
    "preresnet-bottleneck": (lambda: PreResNet(1, bottleneck=True), (3, 16, 16)),
    "wrn-16-1": (lambda: get_model("wrn-16-1"), (3, 16, 16)),
    "resnet20": (lambda: get_model("resnet20"), (3, 16, 16)),
    "dense": (Dense, (3, 16, 16)),
    "unet": (UNet, (3, 16, 16)),
}
# Elsewhere one density in the middle says most.
SMALL = {
    "shufflenet_v2_x0_5",
    "byobnet",
    "nfnet",
    "convnext-timm",
    "efficientnet-timm",
    "preresnet20",
    "preresnet-bottleneck",
    "wrn-16-1",
    "resnet20",
    "dense",
    "unet",
}
# Where a capture takes seconds, one realisation.
ONCE = {
    **dict.fromkeys(("vgg11", "googlenet", "ghostnet_050", "resnest14d"), "plain"),
    **dict.fromkeys(("resnet50", "r3d_18", "lraspp", "regnet_y_400mf", "mobilevit_xxs"), "indexed"),
}
ONNX = ("resnet20", "shufflenet_v2_x0_5", "dense", "unet", "nfnet")


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return randomised(MODELS[name][0]())


@functools.lru_cache(maxsize=2)  # tests of one model stand together, so old ones may go
def captured(name: str, realisation: str) -> tuple[nn.Module, Tensor, Structure]:
    model = made(name)
    x = torch.randn(1, *MODELS[name][1], dtype=torch.float64)
    return model, x, Structure(model, x, realisation=realisation)


CASES = [
    pytest.param(name, realisation, marks=pytest.mark.xdist_group(name))
    for name in MODELS
    for realisation in ("plain", "indexed")
    if ONCE.get(name, realisation) == realisation
]


@pytest.mark.parametrize(("name", "realisation"), CASES)
def test_compact_networks_conform(name, realisation):
    model, x, s = captured(name, realisation)
    assert s.untraced == ()
    masks = [random_mask(s, density) for density in ((0.5, 0.9, 0.2) if name in SMALL else (0.5,))]
    assert not any(mask.all() for mask in masks)
    found = conforms(model, x, s, masks, factory=lambda: made(name))
    for _, plan, scale in found:
        assert scale > 1e-6
        assert plan.compact.macs < plan.dense.macs


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in ONNX])
def test_compact_networks_export_to_onnx(name):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model, x, s = captured(name, "plain")
    conforms(model, x, s, [random_mask(s, 0.5)], onnx=True, train=False)


@pytest.mark.xdist_group("googlenet")
def test_auxiliary_heads_of_masked_and_compact_networks_agree():
    model, x, s = captured("googlenet", "plain")
    plan = s.plan(random_mask(s, 0.5))
    heads = []
    for network in (masked(model, plan), compact(model, plan, verify=False)):
        network = copy.deepcopy(network).train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
        heads.append(outputs(network, (x,)))
    assert len(heads[0]) == 3
    for a, b in zip(*heads, strict=True):
        assert a.abs().max() > 1e-6
        torch.testing.assert_close(b, a, rtol=1e-9, atol=float(1e-9 * a.abs().max()))
