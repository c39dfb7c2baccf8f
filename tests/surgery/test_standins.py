"""What stands for a dead layer has what the layer is asked for, and goes through fusion of convolution and norm."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion
from torch.utils.flop_counter import FlopCounterMode

from chipnet import Structure, compact

KINDS = {
    "1d": (nn.Conv1d, nn.BatchNorm1d, 1),
    "2d": (nn.Conv2d, nn.BatchNorm2d, 2),
    "3d": (nn.Conv3d, nn.BatchNorm3d, 3),
    "transposed 1d": (nn.ConvTranspose1d, nn.BatchNorm1d, 1),
    "transposed 2d": (nn.ConvTranspose2d, nn.BatchNorm2d, 2),
    "linear": (nn.Linear, nn.BatchNorm1d, 0),
}


class Block(nn.Module):
    """stem 3>7 - relu - [c1 7>11 - b1 - relu - c2 11>7 - b2] + - relu - head 7>3: the branch can die."""

    def __init__(self, layer, norm, bias, pre):
        super().__init__()
        options = {} if layer is nn.Linear else {"padding": 1}
        size = () if layer is nn.Linear else (3,)
        self.pre = pre
        self.stem, self.head = layer(3, 7, *size, **options), layer(7, 3, *size, **options)
        self.c1, self.c2 = (
            layer(7, 11, *size, **options, bias=bias),
            layer(11, 7, *size, **options, bias=bias),
        )
        self.b1, self.b2 = norm(7 if pre else 11), norm(11 if pre else 7)
        for m in self.modules():
            if isinstance(m, norm):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        if self.pre:
            y = self.c2(torch.relu(self.b2(self.c1(torch.relu(self.b1(x))))))
        else:
            y = self.b2(self.c2(torch.relu(self.b1(self.c1(x)))))
        return self.head(torch.relu(x + y))


def pruned(kind, bias=False, pre=False, dead=("b1", "b2")):
    torch.manual_seed(0)
    layer, norm, dims = KINDS[kind]
    model = Block(layer, norm, bias, pre).double().eval()
    x = torch.randn(2, 3, *[5] * dims, dtype=torch.float64)
    structure = Structure(model, x)
    mask = torch.ones(structure.gates, dtype=torch.bool)
    for site, gates in zip(structure.sites, structure.analysis.site_gates, strict=True):
        if site.name in dead:
            mask[gates] = False
    plan = structure.plan(structure.canonical(mask))
    assert plan.stand_ins
    return compact(model, plan), plan, x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fusing_a_dead_branch_changes_nothing(kind, bias):
    small, plan, x = pruned(kind, bias)
    fused = copy.deepcopy(small)
    for conv, norm in (("c1", "b1"), ("c2", "b2")):
        a, b = getattr(fused, conv), getattr(fused, norm)
        assert isinstance(a, KINDS[kind][0])
        assert isinstance(b, KINDS[kind][1])
        if kind == "linear":
            new = fusion.fuse_linear_bn_eval(a, b)
        else:
            new = fusion.fuse_conv_bn_eval(a, b, transpose="transposed" in kind)
        setattr(fused, conv, new)
        setattr(fused, norm, nn.Identity())
    assert torch.allclose(fused(x), small(x), rtol=1e-12, atol=1e-12)
    with FlopCounterMode(display=False) as counter:
        small(x)
    assert counter.get_total_flops() // 2 == plan.compact.macs
    assert sum(p.numel() for p in small.parameters()) == plan.compact.params


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_stand_ins_have_what_the_layer_is_asked_for(kind, pre):
    small, plan, x = pruned(kind, pre=pre, dead=("b1", "b2", "c1"))
    before = dict(KINDS[kind][0](4, 4, *[3] * (kind != "linear")).__dict__)
    for d in plan.stand_ins:
        m = small.get_submodule(d.module)
        if isinstance(m, KINDS[kind][0]):
            assert before.keys() <= vars(m).keys()
            sizes = (m.out_features, m.in_features) if kind == "linear" else (m.out_channels, m.in_channels)
            assert tuple(m.weight.shape[:2]) == (sizes[::-1] if "transposed" in kind else sizes)
            assert (sizes[0], m.weight.dtype, m.weight.any()) == (d.channels, torch.float64, False)
        else:
            assert isinstance(m.weight, nn.Parameter)
            sizes = [t.shape for t in (m.running_mean, m.running_var, m.weight, m.bias)]
            assert sizes == [(m.num_features,)] * 4
            assert (m.eps, m.momentum, m.affine, m.track_running_stats) == (1e-5, 0.1, True, True)
            assert m.num_features == d.channels
            m.reset_running_stats()
            m.reset_parameters()
    again = pickle.loads(pickle.dumps(small))
    assert torch.equal(again(x), small(x))
    again.load_state_dict(dict(small.state_dict()))
    assert torch.equal(again.float()(x.float()), again(x.float()))
    assert all(b.dtype != torch.float64 for b in again.buffers())
    small.train()(x).sum().backward()


def test_norms_become_synchronised_ones_that_still_give_zeros():
    small, _, _ = pruned("2d", pre=True)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(small)).eval()
    assert type(synced.b1) is nn.SyncBatchNorm
    y = torch.randn(2, synced.b1.num_features, 5, 5, dtype=torch.float64)
    assert not nn.functional.batch_norm(
        y, synced.b1.running_mean, synced.b1.running_var, synced.b1.weight, synced.b1.bias
    ).any()


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(2, ceil_mode=True)])
def test_a_pooling_without_channels_is_a_pooling(pool):
    model = nn.Sequential(nn.Conv2d(3, 7, 1), nn.BatchNorm2d(7), nn.ReLU(), pool, nn.Conv2d(7, 3, 1)).eval()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.other = model, nn.Conv2d(3, 3, 1, stride=2)

        def forward(self, x):
            return self.branch(x) + self.other(x)

    net, x = Net(), torch.randn(2, 3, 6, 6)
    structure = Structure(net, x)
    small = compact(net, structure.plan(structure.canonical(torch.zeros(structure.gates, dtype=torch.bool))))
    assert isinstance(small.branch[3], type(pool))
    assert small.branch[3].kernel_size == 2
    assert small.branch[3].ceil_mode is pool.ceil_mode
    pickle.dumps(small.branch)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(7), nn.BatchNorm2d(7, affine=False), nn.BatchNorm2d(7)])
def test_a_norm_without_parameters_keeps_no_channel(norm):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b, self.skip = (
                nn.Conv2d(3, 7, 1),
                norm,
                nn.Conv2d(7, 3, 1),
                nn.Conv2d(3, 3, 1),
            )

        def forward(self, x):
            return self.skip(x) + self.b(torch.relu(self.norm(self.a(x))))

    net, x = Net().double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    structure = Structure(net, x)
    assert not [r for r in structure.report() if "plain torch.nn" in r["reason"]]
    plan = structure.plan(structure.canonical(torch.zeros(structure.gates, dtype=torch.bool)))
    small = compact(net, plan)
    assert small.a.out_channels == small.norm.num_features == 0
    assert sum(p.numel() for p in small.parameters()) == plan.compact.params


class Depthwise(nn.Module):
    """stem 3>6 - [norm - relu - depthwise, under two names - norm] and a skip around it: the branch can die."""

    def __init__(self, layer):
        super().__init__()
        self.stem, self.first, self.last = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.mix = self.twin = layer(6, 6, 1, groups=6)
        self.head, self.skip = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.head(self.last(self.mix(torch.relu(self.first(self.stem(x)))))) + self.skip(x)


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_layer_of_many_groups_dies_whole(layer):
    model, x = Depthwise(layer).eval(), torch.randn(2, 3, 4, 4)
    structure = Structure(model, x)
    assert not [site.reason for site in structure.sites if "outputs change" in site.reason]
    small = compact(
        model, structure.plan(structure.canonical(torch.zeros(structure.gates, dtype=torch.bool)))
    )
    assert small.mix is small.twin
    assert (small.mix.in_channels, small.mix.out_channels, small.mix.groups) == (0, 0, 1)
    fused = copy.deepcopy(small)
    fused.mix = fusion.fuse_conv_bn_eval(small.mix, small.last, transpose=layer is nn.ConvTranspose2d)
    fused.last = nn.Identity()
    assert torch.equal(fused(x), small(x))
