"""Gates folded into affine parameters compute what multiplying outputs would, and leave no trace."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from toys import TOYS, Chain, Residual, assert_same_outputs, made, outputs, random_mask, randomised

import chipnet
from chipnet import Pruner, Structure, compact, masked
from chipnet.gates.hooks import add_gates, hooks
from chipnet.gates.values import Constants
from chipnet.methods import METHODS


class Both(nn.Module):
    """conv1 3>7(g: rows and bias) - relu - conv2 7>11 - bn2(g) - relu - up 11>7 transposed(g) - relu - fc 7>5"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 7, 3)
        self.conv2 = nn.Conv2d(7, 11, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(11)
        self.up = nn.ConvTranspose2d(11, 7, 3, 2)
        self.fc = nn.Linear(7, 5)
        self.break_at: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(F.relu(self.conv1(x))))
        if self.break_at == "forward":
            raise RuntimeError("stop here")
        return self.fc(F.relu(self.up(F.relu(x))).mean((2, 3)))


def multiplied(model: Both, x: Tensor, z: dict[str, Tensor]) -> Tensor:
    """The slow reference: every gated layer's output times its gate values."""

    def times(name: str, y: Tensor) -> Tensor:
        return y * z[name].reshape(-1, 1, 1)

    x = F.relu(times("conv1", model.conv1(x)))
    x = F.relu(times("bn2", model.bn2(model.conv2(x))))
    return model.fc(F.relu(times("up", model.up(x))).mean((2, 3)))


def hang(model: nn.Module, s: Structure, values: Callable[[], list[Tensor]]) -> list[object]:
    """Gates of those values, one tensor for every site."""
    numbers = [i for i, site in enumerate(s.sites) if site.free]
    sites = [s.sites[i] for i in numbers]
    return add_gates(
        model, sites, Constants([t.channels for t in sites]), lambda: [values()[i] for i in numbers]
    )


def gated(model: nn.Module, x: Tensor) -> tuple[Structure, Tensor, list[object], Callable[[], Tensor]]:
    """A model with gates of random value in (0, 1), as one leaf tensor over all channels of all sites."""
    s = Structure(model, x)
    z = torch.rand(sum(t.channels for t in s.sites), dtype=torch.float64).mul_(0.8).add_(0.1).requires_grad_()
    open_where_ungated = torch.cat([torch.from_numpy(t.gates < 0) for t in s.sites])

    def values() -> Tensor:
        return torch.where(open_where_ungated, torch.ones_like(z), z)

    sizes = [t.channels for t in s.sites]
    return s, z, hang(model, s, lambda: values().split(sizes)), values


@pytest.fixture
def both() -> tuple[Both, Tensor]:
    torch.manual_seed(0)
    return randomised(Both()), torch.randn(3, 3, 9, 9, dtype=torch.float64)  # type: ignore[return-value]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_folded_gates_equal_multiplied_outputs_with_all_gradients(both, training):
    model, x = both
    model.train(training)
    plain = copy.deepcopy(model)
    s, z, _, values = gated(model, x)
    assert {t.name for t in s.sites if t.free} == {"conv1", "bn2", "up"}
    by_site = dict(zip([t.name for t in s.sites], values().split([t.channels for t in s.sites]), strict=True))

    out, reference = model(x), multiplied(plain, x, by_site)
    torch.testing.assert_close(out, reference, rtol=1e-12, atol=1e-12)
    (dz,) = torch.autograd.grad((reference**3).sum(), z, retain_graph=True)
    (reference**3).sum().backward(inputs=list(plain.parameters()))
    (out**3).sum().backward()
    assert z.grad is not None
    assert (dz != 0).any()
    torch.testing.assert_close(z.grad, dz, rtol=1e-9, atol=1e-9 * float(dz.abs().max()))
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None, name
        assert q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9 * float(q.grad.abs().max() + 1))


def test_parameters_and_keys_are_untouched_after_a_forward(both):
    model, x = both
    keys = list(model.state_dict())
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = {n: id(p) for n, p in model.named_parameters()}
    gated(model, x)
    for _ in range(2):
        model(x)
    assert list(model.state_dict()) == keys
    assert {n: id(p) for n, p in model.named_parameters()} == ids
    assert all(torch.equal(p, values[n]) for n, p in model.named_parameters())
    assert all(
        isinstance(p, nn.Parameter) for m in model.modules() for p in m._parameters.values() if p is not None
    )


def test_only_gated_layers_are_folded_and_only_while_they_run(both):
    model, x = both
    gated(model, x)
    seen: dict[str, bool] = {}
    for name in ("conv1", "bn2", "fc"):
        layer = getattr(model, name)
        weight = layer.weight
        original = layer.forward

        def forward(
            *args: Tensor,
            name: str = name,
            layer: nn.Module = layer,
            weight: Tensor = weight,
            original=original,
        ):  # type: ignore[no-untyped-def]
            seen[name] = layer.weight is weight
            return original(*args)

        layer.forward = forward
    model(x)
    assert seen == {"conv1": False, "bn2": False, "fc": True}


@pytest.mark.parametrize("where", ["forward", "inside"])
def test_an_exception_in_forward_restores_the_parameters(both, where):
    model, x = both
    ids = {n: id(p) for n, p in model.named_parameters()}
    gated(model, x)
    expected = model(x)
    if where == "forward":
        model.break_at = "forward"
        with pytest.raises(RuntimeError, match="stop here"):
            model(x)
        model.break_at = None
    else:
        with pytest.raises(RuntimeError):
            model(x[:, :2])  # conv1 itself fails, with its gates folded in
    assert {n: id(p) for n, p in model.named_parameters()} == ids
    assert torch.equal(model(x), expected)


def test_removing_the_handles_removes_the_gates(both):
    model, x = both
    before = model(x)
    *_, handles, _ = gated(model, x)
    assert not torch.equal(model(x), before)
    for h in handles:
        h.remove()
    assert torch.equal(model(x), before)
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called for m in model.modules()
    )


def test_a_module_called_twice_is_gated_at_both_calls():
    model, x, s = made(TOYS["called_twice"])
    model = copy.deepcopy(model)
    z = torch.rand(sum(t.channels for t in s.sites), dtype=torch.float64)
    site = dict(zip([t.name for t in s.sites], z.split([t.channels for t in s.sites]), strict=True))
    by_hand = F.relu(model.bn0(model.conv0(x)) * site["bn0"].reshape(-1, 1, 1))
    for _ in range(2):
        by_hand = F.relu(model.bn(model.conv(by_hand)) * site["bn"].reshape(-1, 1, 1))
    by_hand = model.head(by_hand)
    hang(model, s, lambda: [site[t.name] for t in s.sites])
    torch.testing.assert_close(model(x), by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["chipnet", "random"])
def test_gradients_accumulate_over_two_forwards_and_two_backwards(method):
    """Two micro-batches a step, as one batch of both: eval mode, so that batch statistics do not differ."""
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    grads = []
    for parts in ([x], [x[:2], x[2:]]):
        torch.manual_seed(0)
        model = randomised(Residual())
        pruner = Pruner(model, x, {"macs": 0.5}, steps=4, method=method)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            for part in parts:
                loss = (model(part) ** 2).sum() + pruner.loss() / len(parts)
                loss.backward()
            grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
            optimizer.step()
            pruner.step()
    one, two = grads[:2], grads[2:]
    for a, b in zip(one[0], two[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(a.abs().max() + 1))


def test_two_forwards_before_one_backward_share_a_graph():
    model = randomised(Residual())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    pruner = Pruner(model, x, {"macs": 0.5}, steps=4)
    for _ in range(3):
        loss = (model(x) ** 2).mean() + (model(-x) ** 2).mean() + pruner.loss()
        loss.backward()
        pruner.step()
    assert all(p.grad is not None for p in model.parameters())


def test_evaluation_without_gradients_between_training_steps():
    model = randomised(Residual())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    pruner = Pruner(model, x, {"macs": 0.5}, steps=4)
    for _ in range(3):
        model.train()
        ((model(x) ** 2).mean() + pruner.loss()).backward()
        model.eval()
        with torch.no_grad():
            out = model(x)
        with torch.inference_mode():
            model(x)
        assert not out.requires_grad
        model.train()
        pruner.step()


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
def test_what_is_trained_with_hard_masks_is_what_ships(name, share):
    """The gated model under hard masks, the masked model and the compact model give one output."""
    torch.manual_seed(0)
    model = randomised(TOYS[name].build())
    x = torch.randn(TOYS[name].shape, dtype=torch.float64)
    pruner = Pruner(model, x, {"macs": 0.999}, steps=2, method="random", share=share)
    tried = 0
    for seed, density in enumerate((0.8, 0.6, 0.4)):
        mask = random_mask(pruner.structure, density, seed)
        if mask is None:
            continue
        tried += 1
        plan = pruner.structure.plan(mask)
        with pruner.hardened(mask):
            for a, b, c in zip(
                outputs(model, x),
                outputs(masked(model, plan), x),
                outputs(compact(model, plan), x),
                strict=True,
            ):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * float(b.abs().max()))
                torch.testing.assert_close(a, c, rtol=0, atol=1e-9 * float(b.abs().max()))
    assert tried


def test_a_weight_that_two_modules_share_trains_as_it_ships():
    class Shared(nn.Module):
        """conv0 3>7 - relu - a 7>7 - relu - b 7>7 with a's weight - relu - c 7>11(g) - relu - head 11>5"""

        def __init__(self) -> None:
            super().__init__()
            self.conv0 = nn.Conv2d(3, 7, 1)
            self.a, self.b = nn.Conv2d(7, 7, 1, bias=False), nn.Conv2d(7, 7, 1, bias=False)
            self.b.weight = self.a.weight
            self.c, self.head = nn.Conv2d(7, 11, 1), nn.Conv2d(11, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.conv0, self.a, self.b, self.c):
                x = torch.relu(layer(x))
            return self.head(x)

    torch.manual_seed(0)
    model = randomised(Shared())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    pruner = Pruner(model, x, {"macs": 0.9}, steps=2, method="random", share=False)
    mask = random_mask(pruner.structure, 0.6, 0)
    assert mask is not None
    plan = pruner.structure.plan(mask)
    with pruner.hardened(mask):
        assert_same_outputs(masked(model, plan), model, x)
    small = compact(model, plan)
    assert small.a.weight is small.b.weight
    assert plan.compact.params == sum(p.numel() for p in small.parameters())


def test_compact_networks_have_no_gates():
    model = randomised(Chain())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    dense = model(x)
    pruner = Pruner(model, x, {"macs": 0.5}, steps=2, method="random")
    plan = pruner.harden(early=True)
    assert not torch.equal(model(x), dense)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))
    assert chipnet.detach(copied) is copied
    assert torch.equal(copied(x), dense)
    for net in (copied, compact(model, plan), copy.deepcopy(compact(model, plan))):
        assert not list(hooks(net))
        assert not any(m._forward_hooks_always_called for m in net.modules())
    assert_same_outputs(model, compact(model, plan), x)


# -- copies -----------------------------------------------------------------------------------------------


def pruned(method="chipnet", steps=6, **options):
    torch.manual_seed(0)
    model = randomised(Residual()).float().train()
    x = torch.randn(4, 3, 5, 5)
    return model, x, Pruner(model, x, {"macs": 0.4}, steps=steps, method=method, **options)


def train(model, x, pruner, steps, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(x) ** 2).mean() + pruner.loss()).backward()
        optimizer.step()
        pruner.step()


@torch.no_grad()
def same(a, b, x):
    a.load_state_dict(b.state_dict())
    return torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize("method", METHODS)
def test_copies_compute_with_the_gates_of_the_model_as_they_are_learnt(method):
    model, x, pruner = pruned(method)
    with torch.no_grad():
        early, dense = copy.deepcopy(model), copy.deepcopy(model)
        chipnet.detach(dense)
    with pruner.hardened():
        within = copy.deepcopy(model)
    copies = [early, copy.deepcopy(early), within]
    for step in range(6):
        train(model.train(), x, pruner, 1)
        assert all(same(c, model, x) for c in copies), step
        with pruner.hardened():
            assert all(same(c, model, x) for c in copies), step
        assert all(same(c, model, x) for c in copies), step
    plan = pruner.harden()
    assert all(same(c, model, x) for c in copies)
    assert not same(dense, model, x)
    for c in (early, model):
        torch.testing.assert_close(compact(c.eval(), plan)(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    pruner.detach()
    assert not same(early, model, x)
    chipnet.detach(early)
    assert same(early, model, x)


@pytest.mark.parametrize("method", ["bar", "chipnet"])
def test_between_backward_and_step_a_copy_has_the_same_gates_too(method):
    model, x, pruner = pruned(method)
    copied = copy.deepcopy(model)
    (model(x).mean() + pruner.loss()).backward()
    assert same(copied, model, x)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_what_is_loaded_has_the_gates_of_when_it_was_saved(how):
    model, x, pruner = pruned("fisher")
    train(model, x, pruner, 4)
    copied = copy.deepcopy(model.eval())
    with pruner.hardened():
        buffer = io.BytesIO()
        if how == "pickle":
            buffer.write(pickle.dumps(copied))
        else:
            torch.save(model, buffer)
        expected = model(x)
    buffer.seek(0)
    loaded = pickle.load(buffer) if how == "pickle" else torch.load(buffer, weights_only=False)
    assert torch.equal(loaded.eval()(x), expected)
    assert torch.equal(loaded(x), copy.deepcopy(loaded)(x))
    pruner.detach()
    assert torch.equal(loaded(x), expected)
    assert torch.equal(chipnet.detach(loaded)(x), model(x))


def test_a_copy_sees_gates_as_constants_and_keeps_no_pruner():
    model, x, pruner = pruned("chipnet-paper")
    copied = copy.deepcopy(model)
    (model(x) ** 2).mean().backward()
    before = [leaf.grad.clone() for leaf in pruner._values._leaves]
    for _ in range(2):
        (copied(x) ** 2).mean().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(before, pruner._values._leaves, strict=True))
    assert all(p.grad is not None for p in copied.parameters())
    expected = copied(x).detach()
    gone = weakref.ref(pruner), weakref.ref(model)
    del pruner, model
    gc.collect()
    assert [r() for r in gone] == [None, None]
    assert torch.equal(copied(x), expected)


def test_copies_of_other_types_and_two_pruners():
    model, x, pruner = pruned()
    other, _, second = pruned("random")
    double, twin = copy.deepcopy(model).double(), copy.deepcopy(other)
    train(model, x, pruner, 3)
    double.load_state_dict(model.state_dict())
    torch.testing.assert_close(double.eval()(x.double()).float(), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert same(twin, other, x)
    second.harden(early=True)
    assert same(twin, other, x)
    assert not same(twin, model, x)


def test_averages_of_torch_are_judged_with_the_models_gates():
    model, x, pruner = pruned()
    average = AveragedModel(model)
    for _ in range(6):
        train(model.train(), x, pruner, 1)
        average.update_parameters(model)
        with torch.inference_mode():
            average(x)
    with torch.no_grad():
        average.module.load_state_dict(model.state_dict())
        assert torch.equal(average.eval()(x), model.eval()(x))
    plan = pruner.harden()
    torch.testing.assert_close(compact(average.module, plan)(x), average.module(x), rtol=1e-4, atol=1e-4)


def test_averages_of_timm_are_judged_with_the_models_gates():
    utils = pytest.importorskip("timm.utils")
    model, x, pruner = pruned()
    average = utils.ModelEmaV3(model, decay=0.0)
    train(model, x, pruner, 6)
    average.update(model)
    with torch.no_grad():
        assert torch.allclose(average.module.eval()(x), model.eval()(x), atol=1e-6)
        with pruner.hardened():
            assert torch.allclose(average.module(x), model(x), atol=1e-6)


# -- around a forward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whatever_ends_a_forward_the_parameters_are_there(error):
    model, x, pruner = pruned()
    model.eval()
    own = dict(model.named_parameters())
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    handles = []

    def stop(module, args, output):
        raise error

    for m in model.modules():
        if m._forward_pre_hooks:
            handles.append(m.register_forward_hook(stop))
            m._forward_hooks.move_to_end(handles[-1].id, last=False)
    with pytest.raises(error):
        model(x)
    assert all(p is own[name] for name, p in model.named_parameters())
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    for handle in handles:
        handle.remove()
    copied = copy.deepcopy(model)
    assert same(copied, model, x)
    pruner.step()
    for m in (*model.modules(), *copied.modules()):
        assert not {"weight", "bias"} & m.__dict__.keys()


def test_modules_that_call_themselves_and_functional_calls_see_each_gate_once():
    class Again(nn.Linear):
        def forward(self, x, depth=1):
            x = super().forward(x)
            return F.linear(self(x, depth - 1), self.weight, self.bias) if depth else x

    torch.manual_seed(0)
    first, last = nn.Linear(3, 3), Again(3, 3)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), last)
    host = SimpleNamespace(module="2", weight="2.weight", bias="2.bias", axis=0, output=None)
    z = torch.tensor([0.5, 0.0, 2.0])
    gates = Constants([3])
    gates.set(z)
    add_gates(model, [SimpleNamespace(host=host)], gates)
    x = torch.randn(4, 2)
    hidden = model[1](model[0](x))
    w, b = last.weight * z[:, None], last.bias * z
    for _ in range(3):
        hidden = F.linear(hidden, w, b)
    torch.testing.assert_close(model(x), hidden)
    others = {n: p.detach() + 1 for n, p in model.named_parameters()}
    moved = torch.func.functional_call(model, others, x)
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    torch.testing.assert_close(moved, model(x))
    assert first is not last


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_forwards_run_twice_and_learn_the_same(reentrant):
    from torch.utils.checkpoint import checkpoint

    grads = []
    for forward in (lambda m, x: m(x), lambda m, x: checkpoint(m, x, use_reentrant=reentrant)):
        model, x, pruner = pruned()
        x = x.requires_grad_()
        (forward(model.eval(), x) ** 2).mean().backward()
        grads.append([leaf.grad for leaf in pruner._values._leaves] + [p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_a_model_that_is_moved_to_another_type_goes_on():
    model, x, pruner = pruned()
    model.double()
    train(model, x.double(), pruner, 6)
    assert pruner.harden().compact.macs <= 0.4 * pruner.structure.cost.dense.macs


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)]
)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_made_in_another_mode_trains_as_any(method, mode):
    torch.manual_seed(0)
    model, x = randomised(Residual()).float(), torch.randn(4, 3, 5, 5)
    with mode():
        pruner = Pruner(model, x, {"macs": 0.4}, steps=6, method=method)
        model.eval()(x)
    for _ in range(3):
        train(model, x, pruner, 2)
        with mode():
            state = pruner.state_dict()
            with pruner.hardened():
                pruner.soft_cost(), pruner.histogram()
    with mode():
        plan = pruner.harden()
        pruner.load_state_dict(state)
    train(model, x, pruner, 1)
    assert plan.compact.macs <= 0.4 * plan.dense.macs


def test_what_is_compacted_in_inference_mode_trains_as_any(tmp_path):
    model, x = randomised(Residual()).float(), torch.randn(4, 3, 5, 5)
    with torch.inference_mode():
        structure = Structure(model, x)
        plan = structure.plan(structure.harden(torch.arange(structure.gates), {"macs": 0.5}))
        small = chipnet.compact(model, plan)
        chipnet.save(small, plan, tmp_path / "small.safetensors")
        again = chipnet.load(Residual, tmp_path / "small.safetensors")
    for network in (small, again):
        network.train()(x).sum().backward()
        assert all(p.grad is not None for p in network.parameters())
