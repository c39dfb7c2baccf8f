"""A network, unlabelled inputs and a budget in; a smaller network out."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import chipnet
from chipnet.errors import BudgetError, ConfigError
from chipnet.program.inputs import Inputs
from chipnet.widths.distance import between


def _net(seed=0, classes=4) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 24),
        nn.ReLU(),
        nn.Linear(24, classes),
    )
    return net.eval()


IMAGES = torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "budget", ["macs=0.5", "params=0.3", "channels=0.5", "macs=0.5,volume=0.6", "memory=0.7"]
)
def test_every_kind_of_budget(budget):
    net = _net()
    found = chipnet.shrink(net, IMAGES, budget)
    small, plan = found
    structure = chipnet.Structure(net, IMAGES[:1])
    limits = structure.limits(budget)
    costs = {kind: plan.compact[kind] for kind in limits}
    assert all(costs[kind] <= limits[kind] for kind in limits)
    assert type(small) is type(net) and small(IMAGES).shape == (96, 4)
    assert found.refitted < found.cut and all(layer.after <= layer.before for layer in found.layers)
    assert chipnet.Plan.from_json(plan.to_json()).mask == plan.mask


def test_it_beats_random_widths_and_channels():
    """On average over networks, at the same costs and with the same refit."""
    mine, others = 0.0, 0.0
    for seed in range(3):
        net = _net(seed)
        found = chipnet.shrink(net, IMAGES, "macs=0.3")
        mine += found.refitted
        s = chipnet.Structure(net, IMAGES[:1])
        plan = s.plan(
            s.harden(torch.rand(s.gates, generator=torch.Generator().manual_seed(seed)), "macs=0.3")
        )
        small = chipnet.compact(net, plan)
        chipnet.refit(net, small, plan, IMAGES)
        (error,) = between(net, [small.eval()], [Inputs.of(IMAGES)])
        others += error
    assert mine < 0.7 * others


def test_the_model_is_left_as_it_was():
    net = _net().train()
    state = copy.deepcopy(net.state_dict())
    small, _ = chipnet.shrink(net, IMAGES, "macs=0.5")
    assert all(torch.equal(t, state[n]) for n, t in net.state_dict().items())
    assert net.training and small.training


def test_a_loader_with_labels_and_what_is_told():
    told = []
    loader = DataLoader(TensorDataset(IMAGES, torch.zeros(96)), batch_size=32)
    _, plan = chipnet.shrink(_net(), loader, "macs=0.5", distance="kl", progress=lambda *n: told.append(n))
    assert {what for what, *_ in told} == {"curves", "refit"}
    assert all(1 <= done <= of for _, done, of in told)
    assert plan.inputs is not None and plan.inputs.args[0].shape == (1, 3, 6, 6)


def test_a_family_is_nested():
    large, middle, small = chipnet.shrink_family(_net(), IMAGES, ["macs=0.6", "macs=0.3", "macs=0.1"])
    for wide, thin in ((large, middle), (middle, small)):
        assert all(w or not t for w, t in zip(wide.plan.mask, thin.plan.mask, strict=True))
        assert thin.plan.compact.macs < wide.plan.compact.macs
    with pytest.raises(ConfigError, match="at least one"):
        chipnet.shrink_family(_net(), IMAGES, [])


def test_options_of_the_structure():
    _, plan = chipnet.shrink(_net(), IMAGES, "macs=0.5", round_to=4, ignore="7", min_channels=4)
    kept = {site.name: site.kept for site in plan.sites}
    assert kept["7"] == 24 and all(n % 4 == 0 and n >= 4 for name, n in kept.items() if name != "9")


def test_a_structure_may_be_given_in_place_of_examples():
    net = _net()
    structure = chipnet.Structure(net, IMAGES[:1], round_to=4)
    one = chipnet.shrink(net, IMAGES, "macs=0.5", example_inputs=structure)
    two = chipnet.shrink(net, IMAGES, "macs=0.5", round_to=4)
    assert one.plan.mask == two.plan.mask and one.refitted == pytest.approx(two.refitted)
    with pytest.raises(ConfigError, match="a Structure is given, and round_to too"):
        chipnet.shrink(net, IMAGES, "macs=0.5", example_inputs=structure, round_to=4)
    with pytest.raises(ConfigError, match="of another network"):
        chipnet.shrink(nn.Sequential(nn.Linear(4, 2)), IMAGES, "macs=0.5", example_inputs=structure)


def test_several_outputs_of_any_shape():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.mask, self.box = (
                nn.Conv2d(3, 16, 3, padding=1),
                nn.Conv2d(16, 2, 1),
                nn.Linear(16, 4),
            )

        def forward(self, x):
            x = self.body(x).relu()
            return {"mask": self.mask(x), "box": self.box(x.mean((2, 3))), "count": torch.tensor(len(x))}

    found = chipnet.shrink(Two(), IMAGES, "macs=0.5")
    assert 0 <= found.refitted < found.cut


def test_a_budget_that_nothing_meets_is_refused_before_anything_is_measured():
    def images():
        yield IMAGES[:4]
        raise AssertionError("read on")

    with pytest.raises(BudgetError, match="smallest reachable"):
        chipnet.shrink(_net(), images(), "macs=5", images=4)
    with pytest.raises(ConfigError, match="empty"):
        chipnet.shrink(_net(), [], "macs=0.5")


def test_distances():
    wanted, other = nn.Identity(), nn.Linear(2, 2)
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    with torch.no_grad():
        other.weight.copy_(torch.eye(2))
        other.bias.copy_(torch.tensor([1.0, 0.0]))
    (error,) = between(wanted, [other], [Inputs.of(x)])
    assert error == pytest.approx(2 / 14)
    (apart,) = between(wanted, [other], [Inputs.of(x)], "kl")
    logits = torch.nn.functional.kl_div(
        other(x).log_softmax(1), x.log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert apart == pytest.approx(logits.item(), rel=1e-5)
    assert between(wanted, [nn.Linear(2, 3)], [Inputs.of(x)]) == [float("inf")]


def test_the_widths_that_come_nearest_are_taken(monkeypatch):
    """Rankings from worst to best: the last one wins."""
    from chipnet.budget.ranking import Ranking
    from chipnet.widths import shrink

    def three(analysis, curves, limits, within):
        for part in (1, 4, 16):  # of the first site only so many gates are wanted
            scores = torch.arange(analysis.gates, 0, -1, dtype=torch.float64)
            scores[curves[0].gates[part:]] = 0
            yield Ranking(scores)

    seen = []
    real = shrink.between
    monkeypatch.setattr(shrink, "rankings", three)
    monkeypatch.setattr(shrink, "between", lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
    found = chipnet.shrink(_net(), IMAGES, "macs=0.5")
    assert found.refitted == min(after for _, after in (pair for pair in seen if len(pair) == 2))


def test_wrong_arguments_are_refused_before_anything_is_measured():
    net, some = _net(), IMAGES[:4]
    with pytest.raises(ConfigError, match="distance must be one of 'error', 'kl', not 'x'"):
        chipnet.shrink(net, some, "macs=0.5", distance="x")
    with pytest.raises(ConfigError, match=r"budgets='macs=0\.5'"):
        chipnet.shrink_family(net, some, "macs=0.5")
    with pytest.raises(ConfigError, match="macs grows"):
        chipnet.shrink_family(net, some, ["macs=0.4", "macs=0.6"])
    with pytest.raises(ConfigError, match="does not take call 1"):
        chipnet.shrink(net, IMAGES[0], "macs=0.5")
    with pytest.raises(ConfigError, match="NaN or infinite"):
        chipnet.shrink(net, some / 0, "macs=0.5")


def test_outputs_that_cannot_be_compared_are_refused():
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x):
            return self.net(x).argmax(1)

    with pytest.raises(ConfigError, match="argmax"):
        chipnet.shrink(Classes(), IMAGES, "macs=0.5")
