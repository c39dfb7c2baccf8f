"""Networks in quantisation-aware training: fake quantisation keeps zeros, and scales are cut with the channels."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.ao.quantization as quantization
import torch.nn.functional as F
from harness import corner_masks, random_mask
from rule_cases import reasons
from torch import Tensor, nn
from toys import counted_macs, counted_params

from chipnet import Structure, compact, verify_compact

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.bn(self.a(x))))).mean((2, 3)))


def in_training(backend: str) -> nn.Module:
    """A network that has seen data in quantisation-aware training."""
    torch.manual_seed(0)
    model = Net().train()
    model.qconfig = quantization.get_default_qat_qconfig(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = quantization.prepare_qat(model)
    for _ in range(3):
        model(torch.randn(4, 3, 6, 6))
    return model.eval()


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])  # weights by channel, or by tensor
@pytest.mark.parametrize("realisation", ["plain", "indexed"])
def test_a_network_in_quantisation_aware_training_stays_one(backend, realisation):
    model, x = in_training(backend).apply(quantization.disable_observer), torch.randn(2, 3, 6, 6)
    s = Structure(model, x, realisation=realisation)
    assert {site.name: site.free for site in s.sites if site.free} == {"bn": 7, "b": 5}
    for mask in [random_mask(s, 0.5), *corner_masks(s)]:
        plan = s.plan(mask)
        small = compact(model, plan, verify=False)
        difference, scale = verify_compact(model, small, plan, x)
        assert difference <= 1e-5 * scale
        assert plan.compact.params == counted_params(small)
        assert plan.compact.macs == counted_macs(small, x)
        for layer in (small.a, small.b, small.fc):
            assert type(layer) is type(model.get_submodule("fc" if layer is small.fc else "a"))
            wrapped = layer.weight_fake_quant
            if backend == "fbgemm":
                observer = wrapped.activation_post_process
                for scales in (wrapped.scale, wrapped.zero_point, observer.min_val, observer.max_val):
                    assert scales.shape == layer.weight.shape[:1]
        small.apply(quantization.enable_observer).train()(x).sum().backward()
        assert len(copy.deepcopy(small).eval()(x)) == 2


def test_an_observer_that_still_observes_is_the_reason():
    s = Structure(in_training("fbgemm"), torch.randn(2, 3, 6, 6))
    assert s.gates == 0
    assert "apply disable_observer first" in reasons(s)


class Functional(nn.Module):
    """A convolution whose weight is rounded by its own scales, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight, self.fc = (
            nn.Conv2d(3, 8, 3),
            nn.Parameter(torch.randn(6, 8, 3, 3)),
            nn.Linear(6, 3),
        )
        self.register_buffer("scale", torch.rand(6) * 0.02 + 0.01)
        self.register_buffer("zero", torch.zeros(6, dtype=torch.int32))
        self.register_buffer("scales", torch.rand(8) * 0.02 + 0.01)
        self.register_buffer("zeros", torch.ones(8, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_channel_affine(self.a(x), self.scales, self.zeros, 1, -128, 127)
        w = torch.fake_quantize_per_channel_affine(self.weight, self.scale, self.zero, 0, -128, 127)
        return self.fc(
            torch.fake_quantize_per_tensor_affine(F.relu(F.conv2d(x, w)), 0.01, 0, 0, 255).mean((2, 3))
        )


def test_scales_along_channels_of_weights_and_features_are_cut():
    torch.manual_seed(0)
    model, x = Functional().eval(), torch.randn(2, 3, 6, 6)
    s = Structure(model, x)
    assert {site.name: site.free for site in s.sites if site.free} == {"a": 7, "weight": 5}
    plan = s.plan(random_mask(s, 0.25))
    small = compact(model, plan, x)
    assert len(small.scale) == len(small.zero) == len(small.weight) < 6
    assert len(small.scales) == len(small.zeros) == small.a.out_channels < 8
