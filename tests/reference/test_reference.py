"""`chipnet-paper` against the slow reference: every loss, every mask and every weight, step by step."""

import pytest
import torch
import torch.nn.functional as F
from paper_reference import (
    EPOCHS,
    Reference,
    continuation,
    cost,
    heaviside,
    logistic,
    projected,
    second_logistic,
)
from torch import nn

from chipnet import Pruner, Structure
from chipnet.methods.losses import budget_loss, crispness
from chipnet.methods.projections import project, sharpen
from chipnet.methods.schedules import Continuation

# Wide enough that "one of this layer's channels is open", of which the paper's V knows nothing, is 1 in the soft
# reading, 1 - prod(1 - z), to some ten digits.
WIDTHS, CLASSES, SIDE = (101, 103), 5, 4
STEPS, TOTAL = (
    60,
    600,
)  # steps compared, of a run of so many: in shorter runs layers die, and V by hand ends there


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0])
        self.b, self.norm_b = nn.Conv2d(*WIDTHS, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[1])
        self.fc = nn.Linear(WIDTHS[1], CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm_a(self.a(x)))
        x = torch.relu(self.norm_b(self.b(x)))
        return self.fc(x.mean((2, 3)))


def both(kind, fraction, steps=TOTAL):
    """A pruner and a reference that start from the same weights and the same psi, in float64."""
    torch.manual_seed(0)
    net = Net().double()
    with torch.no_grad():
        for norm in (net.norm_a, net.norm_b):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
    structure = Structure(net, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64))
    assert [site.free for site in structure.sites if site.free] == list(WIDTHS)
    pruner = Pruner(net, structure, {kind: fraction}, steps=steps, method="chipnet-paper")
    pruner.method.psi.data = pruner.method.psi.data.double()
    assert pruner.method.psi.min() >= 0 and pruner.method.psi.max() <= 0.01
    # A budget is an integer: a quarter of 73 channels is 18 of 73.
    target = float(pruner.method.target)
    whole = cost(kind, *WIDTHS, SIDE**2, CLASSES)
    assert target == pytest.approx(int(fraction * whole) / whole)
    reference = Reference(dict(net.named_parameters()), pruner.method.psi, kind, target, rate=28 / steps)
    return net, pruner, reference


def data():
    generator = torch.Generator().manual_seed(1)
    while True:
        y = torch.randint(CLASSES, (8,), generator=generator)
        x = torch.randn(8, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
        x[torch.arange(8), y % 3] += y.reshape(-1, 1, 1) / 2
        yield x, y


def close(a, b):
    torch.testing.assert_close(a.detach(), torch.as_tensor(b, dtype=torch.float64), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "fraction"), [("channels", 0.25), ("volume", 0.5), ("params", 0.0625), ("macs", 0.25)]
)
def test_soft_pruning_step_by_step(kind, fraction):
    net, pruner, reference = both(kind, fraction)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-3)
    batches = data()
    for step in [*range(STEPS // 2), *range(TOTAL // 2, TOTAL // 2 + STEPS // 2)]:  # smooth, and sharp
        x, y = next(batches)
        pruner.taken = step
        at = pruner.method.continuation(step / TOTAL)
        expected = reference.step(x, y, *at)

        task = F.cross_entropy(net(x), y)
        close(task, expected["task"])
        z_tilde, z = project(pruner.method.psi, at.beta, at.gamma)
        close(z, expected["z"])
        close(pruner.method.values(step / TOTAL), expected["z"])
        close(crispness(z_tilde, z), expected["crispness"])
        v = pruner.method.cost_fraction(sharpen(z, at.s))
        close(v[0], expected["v"])
        close(budget_loss(v, pruner.method.target), expected["budget"])
        alpha_2 = 45 if fraction < 0.1 else 30
        close(pruner.loss(), 10 * expected["crispness"] + alpha_2 * expected["budget"])

        (task + pruner.loss()).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        close(pruner.method.psi, reference.psi.detach())
        for name, parameter in net.named_parameters():
            close(parameter, reference.weights[name].detach())

    psi = pruner.method.psi.detach()
    assert psi.abs().max() > 0.1  # far from where it began, in [0, 0.01]


def test_hard_masks_hold_the_papers_threshold_set():
    net, pruner, reference = both("macs", 0.25)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-3)
    batches = data()
    for step in range(STEPS):
        x, y = next(batches)
        reference.step(x, y, *pruner.method.continuation(step / TOTAL))
        (F.cross_entropy(net(x), y) + pruner.loss()).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    mine, papers = pruner.mask, torch.tensor(reference.hard(SIDE**2, CLASSES))
    assert (mine | ~papers).all()  # ours only adds channels that still fit
    whole = cost("macs", *WIDTHS, SIDE**2, CLASSES)
    assert (
        cost("macs", int(mine[: WIDTHS[0]].sum()), int(mine[WIDTHS[0] :].sum()), SIDE**2, CLASSES)
        <= 0.25 * whole
    )


@pytest.mark.parametrize("kind", ["channels", "volume", "params", "macs"])
def test_costs_written_by_hand(kind):
    _, pruner, _ = both(kind, 0.5)
    structure = pruner.structure
    assert structure.cost.dense[kind] == cost(kind, *WIDTHS, SIDE**2, CLASSES)
    mask = torch.ones(sum(WIDTHS), dtype=torch.bool)
    mask[: WIDTHS[0] - 20], mask[-WIDTHS[1] : -20] = False, False
    assert structure.cost.exact(mask)[kind] == cost(kind, 20, 20, SIDE**2, CLASSES)


def test_projections_one_number_at_a_time():
    for psi in (-5.0, -0.3, 0.0, 0.01, 2.0):
        for beta, gamma in ((1.0, 2.0), (1.4, 256.0)):
            one = heaviside(logistic(psi, beta), gamma)
            tensor = torch.tensor([psi], dtype=torch.float64)
            for z_tilde, z in (project(tensor, beta, gamma), projected(tensor, beta, gamma)):
                assert z_tilde.item() == pytest.approx(logistic(psi, beta), rel=1e-12)
                assert z.item() == pytest.approx(one, rel=1e-12, abs=1e-15)
            assert sharpen(z, 30.0).item() == pytest.approx(second_logistic(one, 30.0), rel=1e-12)


def test_our_schedules_are_the_papers_at_the_start_of_every_epoch():
    ours = Continuation.paper()
    for epoch in range(EPOCHS):
        beta, gamma, s = continuation(epoch)
        at = ours(epoch / EPOCHS)
        assert at == pytest.approx((beta, gamma, s))
        late = ours(
            (epoch + 0.999) / EPOCHS
        )  # inside an epoch only beta differs (the paper raises s by the step)
        assert late.gamma == gamma
        assert late.beta - beta <= 0.02
