"""Landing on a latency budget: with a clock that is told what to say, and whole prunings with the real one."""

import json

import pytest
import torch
from command import prune
from timed import X, net, own_cache  # noqa: F401 (a fixture)
from torch import nn

import chipnet
from chipnet import BudgetError, Plan
from chipnet.budget.landing import Landing
from chipnet.timing.landing import land


def test_neither_luck_nor_a_busy_machine_makes_a_network_look_faster():
    of_ratio, of_time = (
        Landing(asked, 1000.0, 480.0, 0.53, 0.5, 0.6, 0.1, 1, "cpu", 1) for asked in (0.5, 500)
    )
    assert (of_ratio.left, of_ratio.measured) == (0.53, 0.53)  # the shortest times were luck
    assert of_time.measured == 530
    busy = Landing(
        0.5, 1000.0, 480.0, 0.2, 0.1, 0.9, 0.1, 1, "cpu", 1
    )  # rounds of the longer one were disturbed
    assert busy.measured == 0.48


def landing(target, clock, modelled=1000, least=0):
    """Land with masks that are one gate per unit of the limit, and a clock that says ``clock(gates)``."""
    calls = []

    def solve(limits):
        if limits["latency"] < least:
            raise BudgetError("below")
        mask = torch.zeros(modelled, dtype=torch.bool)
        mask[: limits["latency"]] = True
        return mask

    def measure(mask, count):
        calls.append(int(mask.sum()))
        took = clock(int(mask.sum()))
        return Landing(target, 1000.0, took, took / 1000, 0.4, 0.6, 0.1, 1, "cpu", count)

    return calls, lambda: land({"latency": 500}, target, solve, measure)


@pytest.mark.parametrize(
    "clock",
    [
        lambda gates: 1.0 * gates,  # the model is right
        lambda gates: 1.6 * gates,  # too slow
        lambda gates: 0.6 * gates,  # too fast: budget is left
        lambda gates: 300 + 0.7 * gates,  # a fixed part that the model does not know
        lambda gates: gates**1.3 / 10,
    ],
)
def test_landing_meets_what_was_asked_and_uses_it(clock):
    calls, go = landing(0.5, clock)
    solution = go()
    mask, found = solution.mask, solution.landing
    assert found.measured == clock(int(mask.sum())) / 1000
    assert 0.5 * 0.95 <= found.measured <= 0.5
    assert len(calls) == found.networks <= 7


def test_landing_in_milliseconds():
    _, go = landing(400, lambda gates: 1.1 * gates)
    found = go().landing
    assert 0.95 * 400 <= found.compact <= 400
    assert "asked 0.0004 ms" in str(found)


def test_a_landing_that_fails_names_the_fastest():
    calls, go = landing(0.3, lambda gates: 400 + gates, least=50)
    with pytest.raises(
        BudgetError,
        match=r"at most 30.00% of the dense time when it is measured\. The fastest .* asked 30.00%",
    ):
        go()
    assert min(calls) < 100


def test_a_whole_pruning_lands_on_what_was_asked():
    network = net()
    pruner = chipnet.Pruner(network, X, "latency=0.6,params=0.9", steps=8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(8):
        loss = network.train()(torch.randn(4, 3, 20, 20)).square().mean() + pruner.loss()
        loss.backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.landing is not None  # masks are final before the end, so they were measured before the end
    plan = pruner.harden()
    found = Landing(**plan.latency)
    assert found == pruner.landing
    assert found.left <= 0.6
    assert plan.compact.params <= 0.9 * plan.dense.params
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).latency == plan.latency
    state = pruner.state_dict()
    again = chipnet.Pruner(net(), X, "latency=0.6,params=0.9", steps=8)
    again.load_state_dict(state)
    assert again.harden().mask == plan.mask  # and it is not measured again
    assert again.landing == found


def test_methods_without_final_masks_land_in_harden():
    network = net()
    pruner = chipnet.Pruner(network, X, "latency=0.6", steps=8, method="chipnet-paper")
    assert pruner.landing is None
    for _ in range(2):  # masks may have changed in between, so they are measured each time
        plan = pruner.harden()
        assert Landing(**plan.latency).left <= 0.6
    everything = torch.ones(pruner.structure.gates, dtype=torch.bool)
    assert pruner.harden(everything).latency is None  # a mask of the user's own has not been measured


def wide_net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 96, 3, padding=1),
        nn.BatchNorm2d(96),
        nn.ReLU(),
        nn.Conv2d(96, 96, 3, padding=1),
        nn.BatchNorm2d(96),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, num_classes),
    )


def test_the_command(tmp_path):
    out, options = tmp_path / "run", {"--budget": "latency=0.7", "--model": "test_landing:wide_net"}
    done = prune(out, **options, **{"--epochs": "1,1,0", "--batch-size": "128", "--method": "magnitude"})
    assert done.exit_code == 0, done.output
    result = json.loads((out / "result.json").read_text())
    assert result["latency"]["asked"] == 0.7
    assert Landing(**result["latency"]).left <= 0.7
    assert "asked 70.00% of the dense time" in done.stdout
    assert "latency left" in (out / "report.html").read_text()
    assert chipnet.Plan.load(out / "plan.json").latency == result["latency"]
