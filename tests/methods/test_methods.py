"""Every method keeps the promises of all methods, and does what its paper says on cases worked out by hand."""

import copy
import sys

import pytest
import torch
from small import STEPS, fresh, made, train
from torch import nn
from torch.utils._pytree import tree_leaves
from toys import TOYS
from toys import made as toy_made

import chipnet
from chipnet import BudgetError, ConfigError, Pruner, Structure
from chipnet.analysis.kinds import KINDS
from chipnet.budget.ranking import Solution
from chipnet.methods import METHODS, Gradual
from chipnet.methods.bar import barrier, transition

# -- what holds for all -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_meets_every_budget(method, kind):
    _, structure, *_ = made()
    reached = 0
    for fraction in (0.25, 0.06, 0.03):
        budget = {kind: fraction}
        try:
            run = fresh(method, budget)
        except BudgetError:
            continue  # refused before training, for every method alike
        reached += 1
        pruner, net, _ = run
        train(*run, STEPS)
        plan = pruner.harden()
        mask = torch.tensor(plan.mask)
        assert structure.connected(mask)
        assert plan.compact[kind] <= structure.limits(budget)[kind]
        assert all(torch.isfinite(p).all() for p in net.parameters())
        pruner.detach()
        small = chipnet.compact(net, plan)
        assert torch.isfinite(small(made()[2])).all()
    assert reached == (2 if kind == "channels" else 3)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_method_continues_as_if_it_had_not_stopped(method):
    for stop in (3, 10):  # before and after masks are final
        whole = fresh(method, {"macs": 0.25})
        train(*whole, stop)
        pruner, net, optimizer = fresh(
            method, {"macs": 0.25}, seed=1
        )  # all that differs must come from the state
        net.load_state_dict(whole[1].state_dict())
        pruner.load_state_dict(copy.deepcopy(whole[0].state_dict()))
        train(*whole, STEPS - stop)
        train(pruner, net, optimizer, STEPS - stop)
        assert torch.equal(pruner.mask, whole[0].mask)
        for (name, a), b in zip(net.state_dict().items(), whole[1].state_dict().values(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_decided_by_its_seed(method):
    masks = []
    for seed in (3, 3, 4):
        run = fresh(method, {"params": 0.25}, seed=seed)
        torch.manual_seed(len(masks))  # the global generator must not matter
        train(*run, STEPS)
        masks.append(run[0].mask)
    assert torch.equal(masks[0], masks[1])
    if method == "random":
        assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("method", METHODS)
def test_after_detach_the_model_is_bare(method):
    pruner, net, _ = fresh(method, {"macs": 0.25})
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    assert sum(hooks) > 0
    copied = copy.deepcopy(net)
    assert torch.isfinite(copied(made()[2])).all()  # a copy's hooks are inert
    small = chipnet.compact(net, pruner.harden())  # and a compact network has none
    pruner.detach()
    for model in (net, small):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_names_its_source(method):
    text = METHODS[method].__doc__
    assert method in ("random", "uniform", "chipnet-2026a") or "arXiv" in text


@pytest.mark.parametrize("method", ["chipnet-2026a:floor=0", "random:floor=0"])
def test_once_masks_are_final_what_is_trained_is_what_ships(method):
    """Also behind a branch that died, where the stream's gates are open and a norm would emit its constant."""
    run, net, optimizer = fresh(method, {"macs": 0.5}, steps=STEPS)
    x = made()[2]
    mask = torch.ones(run.structure.gates, dtype=torch.bool)
    branch = next(i for i, s in enumerate(run.structure.sites) if s.host.module == "norm_a")
    mask[run.structure.analysis.site_gates[branch]] = False
    run._solver = lambda limits, ranking: Solution(mask)
    with torch.no_grad():
        net.norm_b.bias.fill_(1.0)
    train(run, net, optimizer, STEPS)
    assert run.method.final and not run.structure.analysis.existing(mask).all()
    net.eval()
    with torch.no_grad():
        trained = net(x)
        with run.hardened():
            shipped = net(x)
        plan = run.harden()
        run.detach()
        assert torch.equal(trained, shipped)
        assert torch.allclose(chipnet.compact(net, plan)(x), trained, atol=1e-5)


# -- options ----------------------------------------------------------------------------------------------


def test_settings_come_with_the_name():
    pruner, *_ = fresh("taylor: floor=0, refreshes=7", {"macs": 0.5})
    assert (pruner.method.floor, pruner.method.refreshes) == (0.0, 7)
    assert METHODS["taylor"].floor == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slimmin", "unknown method 'slimmin'; known: chipnet,.*, or module:Class for one of your own"),
        ("chipnet-2026a:floor=nan", "floor of chipnet-2026a must be from 0 to 1, not nan"),
        ("taylor:floor=-5,memory=2", r"floor of taylor must be .*; memory of taylor must be from 0 to"),
        ("taylor:refreshes=-3", "refreshes of taylor must be at least 0 and finite, not -3"),
        ("taylor:together=-1", "together of taylor must be at least 0 and finite, not -1"),
        ("chipnet-2026a:travel=inf", "travel of chipnet-2026a must be at least 0 and finite, not inf"),
        ("bar:beta=0,slope=0", "beta of bar must be at least 0.001 and finite, not 0.0; slope"),
        ("bar:gamma=0.5", "gamma of bar must be from -inf to -0.001, not 0.5"),
        ("random:floor=0,floor=0.5", "floor is given twice in the method"),
        ("random:", "cannot read '' in the method"),
        ("no.such:Method", "there is no module 'no'"),
        (
            "chipnet.methods:read_method",
            "chipnet.methods:read_method is no method: write a class that extends",
        ),
        ("chipnet.methods:Gradual", "the method chipnet.methods:Gradual lacks scores"),
        ("chipnet.methods:Method", "the method chipnet.methods:Method lacks scores, step, values"),
        (5, "method is a name, module:Class or a class of Method, not 5"),
        (nn.Linear, "Linear is no method"),
        ("chipnet-2026a:flor=0,travl=1", r"did you mean 'floor'\?; chipnet-2026a has no setting 'travl'"),
        ("random:zzzzzz=1", "it has shrink, freeze, refreshes, floor"),
        ("chipnet-2026a:most_layers=0.5", "most_layers of chipnet-2026a is a whole number, not 0.5"),
        ("chipnet-2026a:most_layers=nan", "most_layers of chipnet-2026a is a whole number, not nan"),
        ("chipnet-2026a:travel=far", "cannot read 'travel=far' in the method"),
        ("chipnet:travel", "cannot read 'travel' in the method"),
    ],
)
def test_settings_that_cannot_be_used(text, message):
    with pytest.raises(ConfigError, match=message):
        fresh(text, {"macs": 0.5})


class Last(Gradual):
    """The last channels of every site."""

    step_size: float = 1.0

    def scores(self):
        return torch.arange(self.analysis.gates, dtype=torch.float32)


@pytest.mark.parametrize("method", ["test_methods:Last: floor=0", Last])
def test_a_method_of_ones_own(method):
    pruner, net, optimizer = fresh(method, {"macs": 0.25})
    train(pruner, net, optimizer, STEPS)
    assert type(pruner.method).__name__ == "Last" and pruner.soft_cost()["macs"] <= 0.25
    for gates in filter(len, pruner.structure.analysis.site_gates):
        kept = pruner.mask[gates]
        assert kept[-1] and (kept.int().diff() >= 0).all()
    with pytest.raises(ConfigError, match="own has no setting 'size'; did you mean 'step_size'"):
        fresh("test_methods:Last:size=1", {"macs": 0.25})


def test_a_method_of_ours_is_one_file(tmp_path, monkeypatch):
    lines = ["from chipnet.methods.gradual import Gradual", "class New(Gradual):", "    name = 'brand-new'"]
    (tmp_path / "brand.py").write_text("\n".join([*lines, "    scores = None"]))
    monkeypatch.setattr(chipnet.methods, "__path__", [*chipnet.methods.__path__, str(tmp_path)])
    found = chipnet.methods._ours()
    del sys.modules["chipnet.methods.brand"]
    assert found.pop("brand-new").__name__ == "New"
    assert found == METHODS and next(iter(METHODS)) == "chipnet"


def test_without_refreshes_the_cut_comes_once_at_the_end():
    pruner, net, optimizer = fresh("slimming:refreshes=0,freeze=1,floor=0", {"macs": 0.25})
    train(pruner, net, optimizer, STEPS - 1)
    assert pruner.method.current.all()
    train(pruner, net, optimizer, 1)
    assert pruner.method.final
    assert pruner.soft_cost()["macs"] <= 0.25


# -- what each paper says ---------------------------------------------------------------------------------


def two_channels():
    """x -> linear (2 gates, norm) -> linear: small enough to differentiate by hand."""
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False)).double()
    return net, Structure(net, torch.zeros(1, 3, dtype=torch.float64))


def gradients_by_image(net, x, loss):
    """dL_n/dz at z = 1, from its definition: multiply the norm's output, image by image. `[images, gates]`"""
    hidden = net[1](net[0](x)).detach()
    z = torch.ones(len(x), 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(net[2](hidden * z)), z)
    return grad


@pytest.mark.parametrize("method", ["taylor", "fisher"])
def test_taylor_squares_the_mean_and_fisher_each_image(method):
    net, structure = two_channels()
    x = torch.randn(5, 3, dtype=torch.float64)

    def loss(y):
        return (y**2).mean()

    grads = gradients_by_image(net.train(), x, loss)
    pruner = Pruner(net, structure, {"params": 0.9}, steps=1000, method=method)
    loss(net(x)).backward()
    pruner.step()
    expected = grads.sum(0).square() if method == "taylor" else grads.square().sum(0)
    scores = pruner.method.scores()
    torch.testing.assert_close(scores / scores.sum(), (expected / expected.sum()).to(scores.dtype))
    torch.testing.assert_close(pruner.method.sensitivity().double(), expected, rtol=1e-5, atol=1e-12)


def test_fisher_adds_sites_that_share_a_gate_before_it_squares():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm_a = nn.Linear(3, 5), nn.BatchNorm1d(5)
            self.b, self.norm_b = nn.Linear(3, 5), nn.BatchNorm1d(5)
            self.out = nn.Linear(5, 1, bias=False)

        def forward(self, x):
            return self.out(self.norm_a(self.a(x)) + self.norm_b(self.b(x)))

    net = Stream().double()
    x = torch.randn(7, 3, dtype=torch.float64)
    structure = Structure(net, x[:1])
    assert structure.gates == 5
    both = (net.norm_a(net.a(x)) + net.norm_b(net.b(x))).detach()
    z = torch.ones(7, 5, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad((net.out(both * z) ** 2).sum(), z)
    pruner = Pruner(net, structure, {"params": 0.9}, steps=100, method="fisher")
    (net(x) ** 2).sum().backward()
    pruner.step()
    torch.testing.assert_close(
        pruner.method.sensitivity().double(), grad.square().sum(0), rtol=1e-5, atol=1e-9
    )


def test_slimming_pulls_on_gated_norm_scales_and_nothing_else():
    pruner, net, _ = fresh("slimming:l1=0.5,published_steps=1", {"macs": 0.25})
    pruner.loss().backward()
    pulled = {n for n, p in net.named_parameters() if p.grad is not None}
    assert pulled == {"norm.weight", "norm_a.weight", "norm_b.weight"}
    assert torch.equal(net.norm.weight.grad, torch.full((31,), 0.5))


def test_slimming_has_one_threshold_for_all_layers():
    pruner, net, _ = fresh("slimming:floor=0", {"channels": 0.6})
    with torch.no_grad():
        net.norm_a.weight.fill_(0.2)  # a whole layer below
        net.norm.weight.fill_(0.9)
        net.norm_b.weight.fill_(0.9)
    sites = {site.name: site.gates for site in made()[1].sites}
    mask = pruner.mask
    assert not mask[sites["norm_a"]].any()
    assert mask[sites["norm"]].all()


def test_the_scores_of_magnitude_by_hand():
    net, structure = two_channels()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([-3.0, 1.0]))
    pruner = Pruner(net, structure, {"params": 0.9}, steps=10, method="magnitude")
    assert pruner.method.scores().tolist() == [1.5, 0.5]


def test_methods_that_read_weights_take_layers_that_compute_theirs():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 7)), nn.ReLU(), nn.Linear(7, 2))
    structure = Structure(net, torch.zeros(1, 3))
    for method in ("magnitude", "slimming", "fisher"):
        pruner = Pruner(net, structure, {"params": 0.5}, steps=4, method=method)
        assert pruner.harden().compact.params <= 0.5 * structure.cost.dense.params
        pruner.detach()


def test_the_barrier_of_bar():
    low, high = torch.tensor(0.25), torch.tensor(1.01)
    costs = torch.linspace(0, 2, 201)
    f = barrier(costs, low, high)
    assert (f[costs <= 0.25] == 0).all()
    assert (f.diff() >= 0).all()
    assert f.max() == 1000
    half = (low + high) / 2
    assert barrier(half, low, high) == pytest.approx(0.5)  # x = 1/2: (1/4) / (1/2)
    assert (transition(0.0), transition(0.5), transition(1.0)) == (0.0, 0.5, 1.0)


def test_the_gates_of_bar_are_hard_concrete():
    pruner, *_ = fresh("bar:start=0", {"macs": 0.25})
    samples = []
    for _ in range(60):
        samples.append(pruner.method.values(0.0).detach())
        pruner.method.noise = None
    z = torch.stack(samples)
    # At log_alpha = 0: P(z = 0) = sigmoid(beta log(-gamma / zeta)) = sigmoid(-1.5986), and P(z = 1) equals it.
    for edge in (0, 1):
        assert (z == edge).float().mean().item() == pytest.approx(0.1682, abs=0.02)
    with torch.no_grad():
        assert pruner.method.values(0.0).sub(0.5).abs().max() < 0.02  # in evaluation: the middle, no noise


def test_bar_brings_the_cost_down_to_the_budget():
    run = fresh("bar", {"macs": 0.25}, steps=40)
    assert run[0].method.distills == (4.0, 0.9)
    train(*run, 40)
    assert run[0].soft_cost()["macs"] < 0.5


# -- on every toy network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("realisation", ["plain", "indexed"])
@pytest.mark.parametrize("name", TOYS)
def test_fisher_sees_image_by_image_what_the_gates_gradient_sums_up(name, realisation):
    toy = TOYS[name]
    model, _, structure = toy_made(toy, realisation=realisation)
    if not structure.gates:
        pytest.skip("nothing to prune")
    if structure.analysis.norms:
        pytest.skip("a gate is also in the statistics of live channels, which no activation shows")
    model = copy.deepcopy(model)
    x = torch.randn(3, *toy.shape[1:], dtype=torch.float64)
    found = []
    for method in ("fisher", "taylor"):
        pruner = Pruner(model, structure, {"channels": 0.999}, steps=1000, method=method)
        if method == "taylor":
            pruner.method.sensed = lambda grad: found.append(grad) or grad
        loss = sum(y.sin().sum() for y in tree_leaves(model(x)))
        probes = getattr(pruner.method, "probes", None)
        images = {} if probes is None else dict(probes._images)
        for zeros in images.values():
            zeros.retain_grad()
        loss.backward()
        if method == "fisher":
            unseen, whole = probes.unseen.clone(), torch.zeros(structure.gates)
            squares = torch.zeros(structure.gates)
            for (group, number), zeros in images.items():
                assert zeros.shape == (number, len(probes.groups[group]))
                whole[probes.groups[group]] += zeros.grad.sum(0)
                squares[probes.groups[group]] += zeros.grad.square().sum(0)
            pruner.method.learn = lambda sample: found.append(sample)
        pruner.step()
        pruner.detach()
    sample, grad = found
    # Both in float32: sums of many terms that nearly cancel.
    scale = grad.abs().max().clamp(min=1e-6)
    expected = torch.where(unseen, grad, whole)
    torch.testing.assert_close(expected / scale, grad / scale, rtol=1e-3, atol=1e-4)
    expected = torch.where(unseen, grad.square(), squares)
    torch.testing.assert_close(sample / scale**2, expected / scale**2, rtol=1e-3, atol=1e-4)
    assert not unseen.any()


@pytest.mark.parametrize("method", ["slimming", "magnitude", "bar", "fisher"])
@pytest.mark.parametrize("name", TOYS)
def test_methods_take_every_toy(name, method):
    toy = TOYS[name]
    model, _, structure = toy_made(toy)
    if not structure.gates:
        pytest.skip("nothing to prune")
    model = copy.deepcopy(model)
    budget = {"params": 0.9}
    pruner = Pruner(model, structure, budget, steps=2, method=method)
    x = torch.randn(3, *toy.shape[1:], dtype=torch.float64)
    for _ in range(2):
        (sum(y.sin().sum() for y in tree_leaves(model(x))) + pruner.loss()).backward()
        pruner.step()
    assert pruner.harden().compact.params <= structure.limits(budget)["params"]
    pruner.detach()
