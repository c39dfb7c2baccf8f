"""One harness over every architecture: the compact network computes what the masked one does and costs what was
predicted, to the last bit of float64 and the last integer, in both realisations."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from chipnet import Structure, compact, verify_compact
from chipnet.models import get_model
from chipnet.models._preresnet import PreResNet


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


Build = Callable[[], nn.Module]
MODELS: dict[str, tuple[Build, int]] = {
    "resnet18": (tv.resnet18, 64),
    "resnet50": (tv.resnet50, 64),
    "vgg11": (lambda: vgg(tv.vgg11), 32),
    "vgg11_bn": (lambda: vgg(tv.vgg11_bn), 32),
    "densenet121": (tv.densenet121, 32),
    "mobilenet_v2": (tv.mobilenet_v2, 64),
    "mobilenet_v3_small": (tv.mobilenet_v3_small, 64),
    "shufflenet_v2_x0_5": (tv.shufflenet_v2_x0_5, 64),
    "googlenet": (lambda: tv.googlenet(aux_logits=False, init_weights=False), 64),
    "efficientnet_b0": (tv.efficientnet_b0, 64),
    "regnet_y_400mf": (tv.regnet_y_400mf, 64),
    "convnext_tiny": (tv.convnext_tiny, 64),
    "preresnet20": (lambda: get_model("preresnet20"), 16),
    "preresnet-bottleneck": (lambda: PreResNet(1, bottleneck=True), 16),
    "wrn-16-1": (lambda: get_model("wrn-16-1"), 16),
    "resnet20": (lambda: get_model("resnet20"), 16),
}
# Where a run costs seconds, one density in the middle says most.
BIG = {"resnet50", "vgg11", "vgg11_bn", "densenet121", "efficientnet_b0", "convnext_tiny", "googlenet"}


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Every channel matters: no zero biases, no unit statistics, no layer scale of 1e-6."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
        elif getattr(module, "bias", None) is not None and isinstance(module.bias, nn.Parameter):
            module.bias.normal_(0, 0.1)
        if isinstance(getattr(module, "layer_scale", None), nn.Parameter):
            module.layer_scale.uniform_(0.5, 1.5)
    return model.double().eval()


@functools.lru_cache(maxsize=2)  # tests of one model stand together, so old ones may go
def captured(name: str, realisation: str) -> tuple[nn.Module, Tensor, Structure]:
    torch.manual_seed(0)
    build, size = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = randomised(build())
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    return model, x, Structure(model, x, realisation=realisation)


def random_mask(s: Structure, density: float) -> Tensor:
    """Random gates; where they disconnect the network, the solver's own connected mask for random scores."""
    generator = torch.Generator().manual_seed(int(1000 * density))
    scores = torch.rand(s.gates, generator=generator, dtype=torch.float64)
    mask = scores < density
    for gates in s.site_gates:  # two of every site: otherwise deep networks are never connected
        mask[gates[torch.randperm(len(gates), generator=generator)[:2]]] = True
    mask = s.canonical(mask)
    return mask if s.connected(mask) else s.harden(scores, {"params": max(density, 0.3)})


CASES = [
    pytest.param(
        name, realisation, densities, id=f"{name}-{realisation}", marks=pytest.mark.xdist_group(name)
    )
    for name in MODELS
    for realisation in ("plain", "indexed")
    for densities in [(0.5,) if name in BIG else (0.9, 0.5, 0.2)]
]


@pytest.mark.parametrize(("name", "realisation", "densities"), CASES)
def test_compact_equals_masked_and_costs_what_was_predicted(name, realisation, densities):
    model, x, s = captured(name, realisation)
    assert s.gates > 0
    for density in densities:
        mask = random_mask(s, density)
        assert not mask.all()
        plan = s.plan(mask)
        small = compact(model, plan, verify=False)
        difference, scale = verify_compact(model, small, plan, (x,))
        assert scale > 1e-6
        assert difference <= 1e-9 * scale
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            small(x)
        assert plan.compact.params == sum(p.numel() for p in small.parameters())
        assert 2 * plan.compact.macs == counter.get_total_flops()
        assert plan.compact.macs < plan.dense.macs
        assert type(small) is type(model)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in MODELS])
def test_dense_cost_is_the_cost_of_the_model_itself(name):
    model, x, s = captured(name, "plain")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(x)
    assert s.cost.dense.params == sum(p.numel() for p in model.parameters())
    assert 2 * s.cost.dense.macs == counter.get_total_flops()
