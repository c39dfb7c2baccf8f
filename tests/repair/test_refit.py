"""A compact network repaired in closed form."""

import copy

import pytest
import torch
from torch import nn

import chipnet
from chipnet import Structure, compact, refit
from chipnet.errors import ChipNetError, ConfigError, PlanError
from chipnet.program.inputs import Inputs
from chipnet.repair.refit import Refit


def _double(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(*layers).double()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return net.eval()


def _images(count=96, channels=3, dims=2, size=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, *[size] * dims, generator=generator, dtype=torch.float64)


def _cut(net, images, left=0.5, seed=0, **options):
    s = Structure(net, images[:2], **options)
    scores = torch.rand(s.gates, generator=torch.Generator().manual_seed(seed))
    plan = s.plan(s.harden(scores, {"channels": left}, floor=0.3))
    return plan, compact(net, plan)


def _error(net, small, images):
    with torch.no_grad():
        wanted = net(images)
        return float((small(images) - wanted).square().sum() / wanted.square().sum())


class Residual(nn.Module):
    def __init__(self, bias: bool = False, norm: bool = True, branches: int = 1) -> None:
        super().__init__()

        def conv():
            return [nn.Conv2d(8, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8) if norm else nn.Identity()]

        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branches = nn.ModuleList(nn.Sequential(*conv(), nn.ReLU(), *conv()) for _ in range(branches))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        for branch in self.branches:
            x = (x + branch(x)).relu()
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One convolution at two places, of other inputs each time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.shared(self.stem(x).relu()).relu()
        return self.head(self.shared(x).relu().mean((2, 3)))


def _pool(dims):
    return [getattr(nn, f"AdaptiveAvgPool{dims}d")(1), nn.Flatten()]


def _chain(dims, **options):
    conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
    first = [conv(3, 8, 3, padding=1), norm(8), nn.ReLU()]
    return _double(*first, conv(8, 8, 3, **options), norm(8), nn.ReLU(), *_pool(dims), nn.Linear(8, 4))


NETWORKS = {
    **{f"{d}d": (lambda d=d: _chain(d, padding=1), d) for d in (1, 2, 3)},
    "dilated, strided": (lambda: _chain(2, padding=2, dilation=2, stride=2, bias=False), 2),
    "depthwise": (lambda: _chain(2, padding=1, groups=8, bias=False), 2),
    "wide groups": (lambda: _chain(2, padding=1, groups=2), 2),
    "transposed": (
        lambda: _double(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 2, stride=2),
        ),
        2,
    ),
    "grouped transposed": (
        lambda: _double(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 8, 3, groups=2),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1),
        ),
        2,
    ),
    "linear": (
        lambda: _double(
            nn.Flatten(), nn.Linear(108, 16), nn.ReLU(), nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 4)
        ),
        2,
    ),
    "no place for an offset": (
        lambda: _double(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1),
        ),
        2,
    ),
    "group norm": (
        lambda: _double(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)
        ),
        2,
    ),
    "residual": (lambda: _double(Residual())[0], 2),
    "residual without norms": (lambda: _double(Residual(bias=True, norm=False))[0], 2),
    "shared": (lambda: _double(Shared())[0], 2),
    "computed weight": (
        lambda: _double(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.Conv2d(8, 4, 1),
        ),
        2,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_gets_worse_and_the_whole_gets_better(name):
    make, dims = NETWORKS[name]
    net, images = make(), _images(dims=dims)
    plan, small = _cut(net, images)
    state, before = copy.deepcopy(small.state_dict()), _error(net, small, images)
    layers = refit(net, small, plan, images)
    assert layers and all(layer.after <= layer.before for layer in layers)
    assert _error(net, small, images) < before
    assert {n: (t.shape, t.dtype) for n, t in small.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_with_nothing_cut_the_weights_come_back(name):
    make, dims = NETWORKS[name]
    net, images = make(), _images(dims=dims)
    s = Structure(net, images[:2])
    plan = s.plan(torch.ones(s.gates, dtype=torch.bool))
    small = compact(net, plan)
    state = copy.deepcopy(small.state_dict())
    batches = [Inputs.of(half) for half in images.split(48)]
    assert Refit(copy.deepcopy(small), small, plan, batches, everything=True).run()
    for n, tensor in small.state_dict().items():
        torch.testing.assert_close(tensor, state[n], rtol=1e-6, atol=1e-6)
    assert not refit(net, small, plan, images)  # nothing is behind a cut: nothing is touched


@pytest.mark.parametrize("norm", [False, True])
def test_what_others_can_make_up_for_is_lost_by_no_cut(norm):
    """The second half of the channels is the first one, scaled: without it, the next layer can do as much."""
    net = _double(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, bias=not norm),
        nn.BatchNorm2d(6) if norm else nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )
    with torch.no_grad():
        net[0].weight[4:], net[0].bias[4:] = 2 * net[0].weight[:4], 2 * net[0].bias[:4]
    images = _images(64)
    s = Structure(net, images[:2], only="0")
    plan = s.plan(torch.arange(8) < 4)
    small = compact(net, plan)
    assert _error(net, small, images) > 1e-2
    refit(net, small, plan, images)
    assert _error(net, small, images) < 1e-9


def test_a_later_layer_makes_up_for_what_a_sum_is_off_by():
    """The stream loses channels before a branch; the branch's last layer is fitted to the sum."""
    net, images = _double(Residual(branches=3))[0], _images()
    plan, small = _cut(net, images, 0.5)
    alone = copy.deepcopy(small)
    refit(net, small, plan, images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chipnet.repair.watch.LayerCall, "added", False)
        refit(net, alone, plan, images)

    def stream(network):
        seen = []
        handle = network.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        network(images)
        handle.remove()
        return seen[0].detach()

    wanted = stream(net)[:, list(plan.keep["head.weight"][1])]
    assert (stream(small) - wanted).square().sum() < (stream(alone) - wanted).square().sum()


def test_index_maps():
    net, images = _double(Residual())[0], _images()
    plan, small = _cut(net, images, 0.5, realisation="indexed")
    before = _error(net, small, images)
    layers = refit(net, small, plan, images)
    assert all(layer.after <= layer.before for layer in layers)
    assert _error(net, small, images) < before


def test_a_norm_that_reads_no_layer_follows_the_mean():
    net = _double(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    images = _images()
    plan, small = _cut(net, images)
    refit(net, small, plan, images)
    kept = list(plan.keep["3.running_mean"][0])
    torch.testing.assert_close(
        small[3].running_mean, net[3].running_mean[kept]
    )  # its inputs are those of the dense


def test_modes_and_gradients_are_left_as_they_were():
    net, images = _double(Residual())[0], _images()
    plan, small = _cut(net, images)
    small.train()
    small.branches[0][1].eval()
    small.head.weight.requires_grad_(False)
    refit(net, small, plan, images)
    assert small.training and not small.branches[0][1].training and small.branches[0][4].training
    assert not small.head.weight.requires_grad and small.stem.weight.requires_grad
    assert all(not p.is_inference() and p.grad is None for p in small.parameters())


def test_half_precision_weights_stay_so():
    net, images = _double(Residual())[0].bfloat16(), _images().bfloat16()
    plan, small = _cut(net, images)
    layers = refit(net, small, plan, images)
    assert all(p.dtype == torch.bfloat16 for p in small.parameters())
    assert all(layer.after <= layer.before for layer in layers)


def test_the_same_inputs_give_the_same_bits():
    net, images = _double(Residual())[0].float(), _images().float()
    plan, small = _cut(net, images)
    other = copy.deepcopy(small)
    refit(net, small, plan, images)
    refit(net, other, plan, iter(images.split(48)))
    for a, b in zip(small.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_another_network_is_refused():
    net, images = _double(Residual())[0], _images()
    plan, _ = _cut(net, images)
    with pytest.raises(PlanError, match="give what compact"):
        refit(net, net, plan, images)
    with pytest.raises(PlanError, match="another network"):
        refit(nn.Linear(2, 2), net, plan, images)


def test_progress_is_told():
    net, images = _double(Residual())[0], _images()
    plan, small = _cut(net, images)
    told = []
    refit(net, small, plan, images, progress=lambda done, of: told.append((done, of)))
    assert told and told[-1][0] == told[-1][1] == len(told)


def test_what_is_not_finite_is_refused_and_nothing_is_written():
    net, images = _double(Residual())[0], _images()
    plan, small = _cut(net, images)
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(ConfigError, match="NaN or infinite"):
        refit(net, small, plan, images / 0)
    assert all(torch.equal(t, before[n]) for n, t in small.state_dict().items())
    small.head.weight.data[0] = torch.nan
    with pytest.raises(ChipNetError, match=r"head\.weight"):
        refit(net, small, plan, images)
    with pytest.raises(PlanError, match=r"Plan\.load"):
        refit(net, small, "plan.json", images)


def test_a_norm_that_training_has_all_but_shut():
    """Weights that decayed to 1e-40: nothing can be made up for through them."""
    net, images = _double(Residual(branches=2))[0].float(), _images().float()
    with torch.no_grad():
        net.branches[1][4].weight.fill_(1)
        net.branches[1][4].weight[:3] = 1e-40
    plan, small = _cut(net, images)
    layers = refit(net, small, plan, images)
    assert all(layer.after <= layer.before for layer in layers)
    assert all(bool(p.isfinite().all()) and p.abs().max() < 1e4 for p in small.parameters())


def test_layers_behind_a_branch_that_is_gone_are_fitted():
    """No tensor behind the branch is cut, but what they read has changed."""
    net, images = _double(Residual())[0], _images()
    s = Structure(net, images[:2])
    mask = torch.ones(s.gates, dtype=torch.bool)
    names = [site.name for site in s.sites]
    mask[s.analysis.site_gates[names.index("branches.0.1")]] = False
    plan = s.plan(s.canonical(mask))
    small = compact(net, plan)
    before = _error(net, small, images)
    assert [layer.layer for layer in refit(net, small, plan, images)] == ["head.weight"]
    assert _error(net, small, images) < before


def test_a_layer_of_very_many_columns_stays_as_it_was_cut(monkeypatch):
    """Its sums would not fit into memory; the others are fitted."""
    monkeypatch.setattr("chipnet.repair.refit.MOST_COLUMNS", 40)
    net, images = _double(Residual())[0], _images()  # its convolutions have 8 · 9 columns, or 4 · 9
    plan, small = _cut(net, images, 0.8)
    wide = {n for n, p in small.named_parameters() if p.dim() == 4 and p[0].numel() > 40}
    before = copy.deepcopy(small.state_dict())
    fitted = {layer.layer for layer in refit(net, small, plan, images)}
    assert wide and fitted and not wide & fitted
    assert all(torch.equal(small.state_dict()[n], before[n]) for n in wide)
