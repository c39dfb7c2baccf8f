"""Capture reads any model that torch.export takes, pins what it cannot read, and says where."""

from __future__ import annotations

import copy
import json
import threading
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from harness import conforms
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from toys import (
    TOYS,
    Wrapped,
    assert_same_outputs,
    mask_of,
    random_mask,
    randomised,
)

from chipnet import CaptureError, ConfigError, PlanError, Pruner, Structure, compact, masked, verify_compact


def exact_under_random_masks(model: nn.Module, x: Tensor, least: int = 2) -> Structure:
    """Both realisations, random masks; returns the indexed structure."""
    for realisation in ("plain", "indexed"):
        s = Structure(model, x, realisation=realisation)  # type: ignore[arg-type]
        masks = [random_mask(s, density, seed) for seed, density in enumerate((0.8, 0.6, 0.5, 0.4))]
        connected = [mask for mask in masks if mask is not None and not mask.all()]
        assert len(connected) >= least
        conforms(model, x, s, connected)
    return s


class Lambda(nn.Module):
    def __init__(self, f) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


MOVES_7 = {
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(2, 1),
    "transpose": lambda x: x.transpose(2, 3),
    "permute-and-back": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "flatten-and-back": lambda x: x.flatten(2).unflatten(2, x.shape[2:]),
    "maximum": lambda x: torch.maximum(x, -x),
    "swish": lambda x: F.silu(x),
    "scaled": lambda x: x * 3 / 2,
    "shifted": lambda x: x + 1,
    "subtracted-from": lambda x: 1 - x,
    "squared": lambda x: x**2,
    "root": lambda x: x.abs().sqrt(),
    "clamped-off-zero": lambda x: x.clamp(0.3, 0.9),
    "reciprocal": lambda x: 1 / (x.abs() + 1),
    "divided-by-itself": lambda x: x / (x.abs() + 1),
    "softmax": lambda x: x.softmax(1),
    "max-over-channels": lambda x: x * x.amax(1, keepdim=True),
    "mean-over-channels": lambda x: x - x.mean(1, keepdim=True),
    "mean-over-space": lambda x: x - x.mean((2, 3), keepdim=True),
    "gated-by-pool": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "global-gate": lambda x: x * torch.sigmoid(x.mean((1, 2, 3), keepdim=True)),
    "max-pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "average-pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False),
    "pad-space": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad-space-with-ones": lambda x: F.pad(x, (1, 2, 0, 1), value=1.0),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "expand": lambda x: x + x.mean((2, 3), keepdim=True).expand_as(x),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "einsum-over-space": lambda x: torch.einsum("bchw,bcwv->bchv", x, x),
    "unbind-and-stack": lambda x: torch.stack(x.unbind(1), 1),
    "index": lambda x: x[:, torch.tensor([6, 5, 4, 3, 2, 1, 0])],
    "normalize": lambda x: F.normalize(x, dim=1),
    "sorted": lambda x: x.sort(1).values,
    "cumsum-of-space": lambda x: x.cumsum(3),
}


@pytest.mark.parametrize("name", MOVES_7)
def test_whatever_stands_between_two_convolutions_stays_exact(name):
    """Operators with a rule and without: nothing crashes and no compact network differs."""
    torch.manual_seed(0)
    model = randomised(Wrapped(Lambda(MOVES_7[name])))
    s = exact_under_random_masks(model, torch.randn(2, 3, 5, 5, dtype=torch.float64))
    assert {t.name: t.free for t in s.sites}["bn0"] == 11  # what stands before is prunable all the same


MOVES_14 = {
    "chunk-product": (lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), 7),
    "glu": (lambda x: F.glu(x, 1), 7),
    "split-by-width": (lambda x: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1), 14),
    "split-by-literal": (lambda x: torch.cat(x.split(7, 1)[::-1], 1), 14),
    "shuffle": (lambda x: x.unflatten(1, (2, x.shape[1] // 2)).transpose(1, 2).flatten(1, 2), 14),
    "shuffle-by-literal": (lambda x: x.unflatten(1, (2, 7)).transpose(1, 2).flatten(1, 2), 14),
    "reshape-by-literal": (lambda x: x.reshape(-1, 14, 25).reshape(-1, 14, 5, 5), 14),
    "every-second": (lambda x: x[:, ::2], 7),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), 28),
    "repeat-interleave": (lambda x: x.repeat_interleave(2, 1), 28),
    "narrow": (lambda x: x.narrow(1, 3, 7), 7),
}


@pytest.mark.parametrize("name", MOVES_14)
def test_channels_that_are_moved_about_stay_exact(name):
    torch.manual_seed(0)
    move, inner = MOVES_14[name]
    model = randomised(Wrapped(Lambda(move), 14, inner))
    exact_under_random_masks(model, torch.randn(2, 3, 5, 5, dtype=torch.float64))


def test_pixel_shuffle_removes_channels_in_fours():
    torch.manual_seed(0)
    model = randomised(Wrapped(nn.PixelShuffle(2), 28, 7))
    s = exact_under_random_masks(model, torch.randn(2, 3, 5, 5, dtype=torch.float64))
    assert {t.name: t.free for t in s.sites if t.free} == {"bn0": 11, "bn1": 7}
    plan = s.plan(mask_of(s, {"bn1": (0, 1, 2, 3, 20, 21, 22, 23)}))
    assert dict(plan.keep["conv2.weight"]) == {1: (0, 5)}


def test_linear_layers_over_sequences_and_embeddings_of_channels():
    class Tokens(nn.Module):
        """conv 3>7(g?) - flatten - linear 7>11(g) - gelu - linear 11>7 - mean - head 7>5"""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up, self.down = nn.Conv2d(3, 7, 1), nn.Linear(7, 11), nn.Linear(11, 7)
            self.norm, self.head = nn.LayerNorm(7), nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).flatten(2).transpose(1, 2)
            x = x + self.down(F.gelu(self.up(self.norm(x))))
            return self.head(x.mean(1))

    torch.manual_seed(0)
    s = exact_under_random_masks(randomised(Tokens()), torch.randn(2, 3, 5, 5, dtype=torch.float64))
    assert {t.name: t.free for t in s.sites}["up"] == 11


def test_one_dimensional_and_three_dimensional_networks():
    for conv, norm, shape in [
        (nn.Conv1d, nn.BatchNorm1d, (2, 3, 11)),
        (nn.Conv3d, nn.BatchNorm3d, (2, 3, 3, 5, 4)),
    ]:
        torch.manual_seed(0)
        model = nn.Sequential(
            conv(3, 7, 3), norm(7), nn.ReLU(), conv(7, 11, 1), norm(11), nn.ReLU(), conv(11, 5, 1)
        )
        s = exact_under_random_masks(randomised(model), torch.randn(shape, dtype=torch.float64))
        assert {t.name: t.free for t in s.sites if t.free} == {"1": 7, "4": 11}


def test_instance_and_group_norms():
    for norm in (nn.InstanceNorm2d(7, affine=True), nn.GroupNorm(7, 7), nn.GroupNorm(1, 7)):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 7, 3), norm, nn.ReLU(), nn.Conv2d(7, 11, 1), nn.ReLU(), nn.Conv2d(11, 5, 1)
        )
        x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
        for realisation in ("plain", "indexed"):
            s = Structure(randomised(model), x, realisation=realisation)  # type: ignore[arg-type]
            plan = s.plan(mask_of(s, {"3": (1, 5, 7)}))
            assert_same_outputs(masked(model, plan), compact(model, plan), x)


def test_several_inputs_and_keyword_free_structures():
    class Two(nn.Module):
        """a 3>7(g) + b 2>7(g) - relu - head 7>5; returns a dict"""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 7, 1), nn.Conv2d(2, 7, 1), nn.Conv2d(7, 5, 1)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"out": self.head(torch.relu(self.a(x) + self.b(y)))}

    torch.manual_seed(0)
    model = randomised(Two())
    inputs = (torch.randn(2, 3, 5, 5).double(), torch.randn(2, 2, 5, 5).double())
    s = Structure(model, inputs, share=False)
    assert {t.name: t.free for t in s.sites if t.free} == {"a": 7, "b": 7}
    plan = s.plan(mask_of(s, {"a": (0, 1), "b": (1, 4)}))
    assert dict(plan.keep["head.weight"]) == {1: (0, 1, 4)}
    small = compact(model, plan)
    assert small(*inputs)["out"].shape == (2, 5, 5, 5)


@pytest.mark.parametrize("name", ["residual", "pre_activation", "squeeze_excite"])
def test_ignored_layers_keep_their_channels(name):
    torch.manual_seed(0)
    model = randomised(TOYS[name].build())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    first = next(iter(TOYS[name].gated))
    s = Structure(model, x, ignore=[first])
    site = next(t for t in s.sites if t.name == first)
    assert site.free == 0
    assert site.reason == f"excluded by the user in '{first}'"


def test_an_ignore_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(CaptureError, match=r"ignore: .bn9. matches no module.*bn1"):
        Structure(TOYS["chain"].build(), torch.randn(2, 3, 5, 5), ignore=["bn9"])


def test_a_wrong_input_names_shapes_and_the_users_line():
    with pytest.raises(
        CaptureError, match=r"Chain could not be captured with example inputs of shape \(2, 5, 5, 5\)"
    ):
        Structure(TOYS["chain"].build(), torch.randn(2, 5, 5, 5))
    with pytest.raises(CaptureError, match="must be a tensor, a tuple"):
        Structure(TOYS["chain"].build(), "2,3,5,5")


def test_data_dependent_control_flow_is_refused_with_its_line():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 7, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x if x.sum() > 0 else -x

    model = Branching().train()
    with pytest.raises(CaptureError, match=r"(?s)could not be captured.*test_capture.py:\d+ in forward"):
        Structure(model, torch.randn(2, 3, 5, 5))
    assert model.training


# -- what is chosen -----------------------------------------------------------------------------------------
class TwoStages(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU())
        self.body = nn.ModuleDict({"a": nn.Conv2d(7, 11, 3), "b": nn.Conv2d(11, 13, 3)})
        self.fc = nn.Linear(13, 5)

    def forward(self, x):
        x = torch.relu(self.body["a"](self.stem(x)))
        return self.fc(torch.relu(self.body["b"](x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("options", "free"),
    [
        ({}, {"stem.1", "body.a", "body.b"}),
        ({"ignore": ["stem"]}, {"body.a", "body.b"}),
        ({"ignore": ["stem.0"]}, {"body.a", "body.b"}),  # its gate is that of the norm behind it
        ({"ignore": ["*.a", "stem*"]}, {"body.b"}),
        ({"ignore": ["type:BatchNorm*"]}, {"body.a", "body.b"}),
        ({"ignore": [nn.ModuleDict]}, {"stem.1"}),
        ({"ignore": "type:BatchNorm*"}, {"body.a", "body.b"}),  # one alone
        ({"ignore": "stem", "only": nn.Conv2d}, {"body.a", "body.b"}),
        ({"only": ["body"]}, {"body.a", "body.b"}),
        ({"only": ["stem.0"]}, {"stem.1"}),
        ({"only": [nn.Conv2d], "ignore": ["body.b"]}, {"stem.1", "body.a"}),
    ],
)
def test_modules_are_chosen_by_name_and_type(options, free):
    s = Structure(TwoStages(), torch.randn(1, 3, 8, 8), **options)
    assert {site.name for site in s.sites if site.free} == free
    for row in s.report():
        if row["name"] not in free and row["name"] not in ("fc", "stem.0"):
            assert "by the user" in row["reason"]


@pytest.mark.parametrize("option", ["ignore", "only"])
@pytest.mark.parametrize("pattern", ["bodi.*", "type:Conv3d", nn.Conv3d])
def test_a_pattern_that_matches_nothing_is_an_error_that_lists_what_there_is(option, pattern):
    with pytest.raises(CaptureError, match=rf"(?s){option}: .*matches no module.*stem.*Types: .*Conv2d"):
        Structure(TwoStages(), torch.randn(1, 3, 8, 8), **{option: [pattern]})


def test_what_is_neither_pattern_nor_class_is_refused():
    with pytest.raises(ConfigError, match="ignore takes patterns and classes of modules, not 3"):
        Structure(TwoStages(), torch.randn(1, 3, 8, 8), ignore=[3])


class Reasons(nn.Module):
    """A free site, two tied ones, a covered one, one kept for an operator."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.b = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.c = nn.Conv2d(6, 5, 3)
        self.d = nn.Conv2d(5, 4, 3)

    def forward(self, x):
        x = self.a(x)
        x = torch.relu(x + self.b(x))
        return torch.relu(self.d(torch.relu(self.c(x)))).softmax(1).mean((2, 3))


def test_the_report_says_of_every_site_what_it_is_and_why():
    rows = {r["name"]: r for r in Structure(Reasons(), torch.randn(1, 3, 8, 8)).report()}
    assert {n: r["status"] for n, r in rows.items()} == {
        "a.0": "covered",
        "a.1": "tied",
        "b.0": "covered",
        "b.1": "tied",
        "c": "free",
        "d": "kept",
    }
    assert rows["a.1"]["tied_to"] == ["b.1"]
    assert "aten.add" in rows["a.1"]["ties"][0]["reason"]
    assert rows["a.1"]["ties"][0]["line"].startswith("test_capture.py:")
    assert rows["d"]["pin"]["operator"] == "softmax"
    assert rows["d"]["pin"]["line"].startswith("test_capture.py:")
    assert json.loads(json.dumps(list(rows.values()))) == list(rows.values())


# -- any inputs and outputs ---------------------------------------------------------------------------------
@dataclass
class Out:
    logits: torch.Tensor
    extra: tuple[torch.Tensor, None]


class Rich(nn.Module):
    """Keyword inputs, one of them no tensor; a dataclass with a tuple comes out."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.h = nn.Conv2d(3, 8, 3), nn.Linear(2, 8), nn.Conv2d(8, 4, 1)

    def forward(self, image, *, meta, scale=1.0, crop=None):
        x = torch.relu(self.a(image)) + self.b(meta["size"])[:, :, None, None]
        y = self.h(torch.relu(x))
        return Out(y * scale, (y.mean((2, 3)), crop))


def test_any_arguments_and_outputs_are_taken():
    torch.manual_seed(0)
    model = Rich().double()
    inputs = {
        "image": torch.randn(2, 3, 6, 6, dtype=torch.float64),
        "meta": {"size": torch.randn(2, 2, dtype=torch.float64)},
        "scale": 2.0,
    }
    s = Structure(model, inputs)
    assert s.gates == 8
    mask = torch.arange(8) % 2 == 0
    plan = s.plan(mask)
    small = compact(model, plan)
    assert small.a.out_channels == 4
    with torch.no_grad():
        small.h.bias[0] += 1e-3
    difference, scale = verify_compact(model, small, plan, inputs)
    assert difference > 1e-5 * scale  # the dataclass was looked into


class _Regions(nn.Module):
    """Precision and gradients set for a part of forward, one region inside another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Conv2d(6, 5, 3)
        self.third = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        with torch.autocast(x.device.type, enabled=False):
            y = self.second(y.to(self.second.weight.dtype)).relu()
            twice = y * 2
            with torch.set_grad_enabled(True):
                y = self.third(y + twice)
        with torch.set_grad_enabled(True):
            y = y.mean((2, 3))
        return self.head(y) + twice.sum((1, 2, 3))[:, None]


def test_a_region_of_another_precision_hides_nothing() -> None:
    s = exact_under_random_masks(_Regions().eval(), torch.randn(2, 3, 9, 9))
    assert {site.name: site.free for site in s.sites if site.free} == {"first": 6, "second": 5, "third": 4}
    assert not [site.reason for site in s.sites if "wrap" in site.reason]


class _Positions(nn.Module):
    """Adds positions counted over an inverted mask, as Fourier encodings do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        padded = torch.zeros(y.shape[0], *y.shape[2:], dtype=torch.bool)
        rows = (~padded).cumsum(1, dtype=y.dtype)[:, None]
        return self.second(y * rows)


def test_a_mask_may_be_inverted() -> None:
    s = exact_under_random_masks(_Positions().eval(), torch.randn(2, 3, 9, 9))
    assert [site.name for site in s.sites if site.free] == ["first"]


# -- what only training reads -------------------------------------------------------------------------------
class _Trained(nn.Module):
    """Linear layers e 5>9, mu 9>6, lv 9>6, d 6>5, aux 6>3; what training adds is in ``extra``."""

    def __init__(self, extra) -> None:
        super().__init__()
        self.e, self.mu, self.lv = nn.Linear(5, 9), nn.Linear(9, 6), nn.Linear(9, 6)
        self.d, self.aux, self.extra = nn.Linear(6, 5), nn.Linear(6, 3), extra

    def forward(self, x, target=None):
        h = F.relu(self.e(x))
        return self.extra(self, F.relu(self.mu(h)), F.relu(self.lv(h)), target)


def _returned(m, y, z, target):
    a, o = m.aux(z), m.d(y)
    return (o, a) if m.training else o


def _noise(m, y, z, target):
    return m.d(y + torch.randn_like(z) * (0.5 * z).exp() if m.training else y)


def _stored(m, y, z, target):
    a = m.aux(z)
    if m.training:
        m.loss = a.square().mean()
    return m.d(y)


def _wants_target(m, y, z, target):
    a = m.aux(z)
    return F.mse_loss(a, target) + m.d(y).sum() if m.training else m.d(y)


@pytest.mark.parametrize("extra", [_returned, _noise, _stored, _wants_target])
def test_what_only_training_reads_is_there_when_training_goes_on(extra):
    torch.manual_seed(0)
    model, x = randomised(_Trained(extra)), torch.randn(4, 5).double()
    s = Structure(model, x)
    small = compact(model, s.plan(torch.ones(s.gates, dtype=torch.bool)))
    unread = {n for n, _ in model.named_parameters() if n.startswith("aux")} if extra is _noise else set()
    shapes = {n: p.shape for n, p in model.named_parameters() if n not in unread}
    assert {n: p.shape for n, p in small.named_parameters() if n not in unread} == shapes
    target = (torch.zeros(4, 3).double(),) if extra is _wants_target else ()
    outs = []
    for net in (model, small):
        torch.manual_seed(1)
        outs.append(net.train()(x, *target))
    torch.testing.assert_close(outs[0], outs[1])
    if extra is _wants_target:
        assert {"aux.weight", "lv.bias"} <= set(s.untraced)
        assert any("training may read it" in site.reason for site in s.sites)
    if extra is _stored:
        torch.testing.assert_close(model.loss, small.loss)


def test_train_mode_is_captured_only_where_it_must_be(monkeypatch):
    modes = []
    real = torch.export.export
    monkeypatch.setattr(
        torch.export, "export", lambda model, *a, **k: (modes.append(model.training), real(model, *a, **k))[1]
    )
    Structure(TOYS["residual"].build(), torch.randn(2, 3, 5, 5))
    assert modes == [False]
    Structure(_Trained(_returned), torch.randn(4, 5))
    assert modes == [False, False, True]


# -- what cannot be captured --------------------------------------------------------------------------------
def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 4, 1))


def _with(**attributes) -> nn.Module:
    net = _net()
    vars(net[1]).update(attributes)
    return net


class DistributedDataParallel(nn.Module):
    """By its name what PyTorch's is; that one wants processes."""

    def __init__(self) -> None:
        super().__init__()
        self.module = _net()


def _exported() -> nn.Module:
    return torch.export.export(_net(), (torch.randn(2, 3, 5, 5),)).module()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: _with(lock=threading.Lock()), r"'1.lock' \(of type lock\).*set that attribute to None"),
        (lambda: _with(parts=[{"file": open(__file__)}]), r"'1.parts' \(of type list\).*set that attribute"),  # noqa: SIM115
        (DistributedDataParallel, r"a DistributedDataParallel cannot be captured.*model.module"),
        (lambda: torch.jit.script(_net()), r"give the nn.Module that it was made of"),
        (_exported, r"a torch.export program: give the nn.Module"),
        (lambda: nn.Sequential(_net(), nn.LazyConv2d(4, 1)), r"'1.weight' has no shape yet.*Run it once"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_captured_says_what_to_do(build, said):
    with pytest.raises(CaptureError, match=said):
        Structure(build(), torch.randn(2, 3, 5, 5))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.randn(0, 3, 5, 5), r"a batch of nothing: a tensor has shape \(0, 3, 5, 5\)"),
        (
            torch.nested.nested_tensor([torch.ones(2, 3)], layout=torch.jagged),
            r"nested ones: give x.to_padded",
        ),
        (torch.randn(2, 3, 5, 5, dtype=torch.complex64), "its forward said: RuntimeError"),
    ],
)
def test_example_inputs_that_tell_nothing_are_refused(x, said):
    with pytest.raises(CaptureError, match=said):
        Structure(_net(), x)


def test_a_forward_without_tensors_is_refused():
    with pytest.raises(CaptureError, match="returns no tensor"):
        Structure(nn.Sequential(_net(), Lambda(lambda x: "done")), torch.randn(2, 3, 5, 5))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.fx.symbolic_trace, torch.compile])
@pytest.mark.filterwarnings("ignore")
def test_wrappers_whose_forward_is_the_networks_are_taken(wrap):
    s = Structure(wrap(_net()), torch.randn(2, 3, 5, 5))
    assert s.gates == 7


# -- operators of operators ---------------------------------------------------------------------------------
class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0) * 2

    @staticmethod
    def backward(ctx, grad):
        return grad


class _Between(nn.Module):
    """conv a 3>7 - relu - conv b 7>7 - something - conv c 7>4"""

    def __init__(self, something) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 7, 1), nn.Conv2d(7, 4, 1)
        self.norm, self.something = nn.CrossMapLRN2d(3), something

    def forward(self, x):
        return self.c(self.something(self, self.b(self.a(x).relu())))


def _cond(m, y):
    return torch.cond(y.sum() > 0, lambda z: z * 2, lambda z: z.sin(), (y,))


def _cond_with_layers(m, y):
    return torch.cond(y.sum() > 0, lambda z: m.b(z).relu(), lambda z: m.b(z), (y,))


def _loop(m, y):
    from torch._higher_order_ops.while_loop import while_loop

    return while_loop(lambda i, z: i < 2, lambda i, z: (i + 1, m.b(z).relu()), (torch.tensor(0), y))[1]


def _map(m, y):
    from functorch.experimental.control_flow import map as each

    return each(lambda z: z * 2, y)


def _checkpoint(m, y):
    return torch.utils.checkpoint.checkpoint(lambda z: m.b(z).relu(), y, use_reentrant=False)


@pytest.mark.parametrize(
    ("something", "free"),
    [
        (lambda m, y: _Doubled.apply(y), {"a", "b"}),
        (_checkpoint, {"a", "b"}),
        (lambda m, y: torch.vmap(lambda z: z * 2)(y), {"a"}),
        (_cond, {"a"}),
        (_cond_with_layers, set()),
        (_loop, set()),
        (_map, {"a"}),
        (lambda m, y: m.norm(y), {"a"}),
    ],
    ids=["function", "checkpoint", "vmap", "cond", "cond-layers", "while", "map", "lrn"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_operators_that_hold_others_are_kept_whole(something, free):
    torch.manual_seed(0)
    model, x = randomised(_Between(something)), torch.randn(2, 3, 5, 5).double()
    s = Structure(model, x)
    assert {site.name for site in s.sites if site.free} == free
    plan = s.plan(torch.arange(s.gates) % 2 == 0)
    assert_same_outputs(masked(model, plan), compact(model, plan), x)


# -- parametrised layers with a forward of their own ----------------------------------------------------------
class _MaskedConv(nn.Conv1d):
    """A convolution that wants a second argument, as in speech."""

    def forward(self, x, mask):
        return super().forward(F.pad(x * mask, (1, 1))) * mask


class _Speech(nn.Module):
    """masked conv a 3>7(g) - relu - masked conv b 7>5(g) - relu - conv c 5>4; a and b have weight norms"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (parametrizations.weight_norm(_MaskedConv(i, o, 3)) for i, o in ((3, 7), (7, 5)))
        self.c = nn.Conv1d(5, 4, 1)

    def forward(self, x, mask):
        return self.c(self.b(self.a(x, mask).relu(), mask).relu())


def test_a_frozen_layer_keeps_its_class_and_its_forward():
    torch.manual_seed(0)
    model = randomised(_Speech())
    inputs = torch.randn(2, 3, 9).double(), (torch.rand(2, 1, 9) > 0.3).double()
    s = Structure(model, inputs)
    assert {site.name: site.free for site in s.sites if site.free} == {"a": 7, "b": 5}
    small = conforms(
        model, inputs, s, [torch.arange(12) % 2 == 0, torch.arange(12) % 3 > 0], factory=_factory
    )[0]
    assert type(small.network.a) is type(small.network.b) is _MaskedConv
    assert (small.network.a.out_channels, small.network.b.in_channels) == (4, 4)


def _factory():
    return _Speech().double()


class _Scaled(nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return super().forward(x) * 0.5


def _hooked(kind: str) -> nn.Sequential:
    """conv 3>7, relu, conv 7>6, relu, conv 6>4; the first two have a hook that computes their weight"""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.ReLU(), _Scaled(7, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)
    ).double()
    for layer in (net[0], net[2]):
        if kind == "weight norm":
            torch.nn.utils.weight_norm(layer)
        elif kind == "spectral norm":
            torch.nn.utils.spectral_norm(layer)
        else:
            prune.l1_unstructured(layer, "weight", 0.5)
    return net.eval()


@pytest.mark.parametrize("kind", ["weight norm", "spectral norm", "pruned"])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_old_hooks_compute_are_frozen_and_the_class_stays(kind):
    """Such a network cannot be copied by copy.deepcopy once it has run with gradients."""
    model, x = _hooked(kind), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    model(x).sum().backward()
    model.zero_grad()
    for realisation in ("plain", "indexed"):
        s = Structure(model, x, realisation=realisation)
        assert {site.name: site.channels for site in s.sites if site.free} == {"0": 7, "2": 6}
        masks = [m for m in (random_mask(s, 0.5, 1), random_mask(s, 0.7, 2)) if m is not None]
        found = conforms(model, x, s, masks, factory=lambda: _hooked(kind), train=False)
        small = found[0].network
        assert type(small[2]) is _Scaled
        if realisation == "plain":
            assert not small[0]._forward_pre_hooks
        assert isinstance(small[0].weight, nn.Parameter)


def test_a_network_without_memory_is_planned_and_its_shapes_are_cut():
    with torch.device("meta"):
        net, x = _net(), torch.randn(2, 3, 5, 5)
    s, real = Structure(net, x), Structure(_net(), torch.randn(2, 3, 5, 5))
    assert s.report() == real.report()
    assert s.cost.dense == real.cost.dense
    assert all(t.is_meta for t in net.state_dict().values())
    plan = s.plan(torch.arange(s.gates) % 2 == 0)
    with pytest.raises(PlanError, match=r"'0.weight' holds no numbers .*verify=False"):
        compact(net, plan)
    small = compact(net, plan, verify=False)
    assert small[0].weight.is_meta
    assert sum(p.numel() for p in small.parameters()) == plan.compact.params
    with pytest.raises(CaptureError, match="memory and weights"):
        Pruner(net, x, "macs=0.5", steps=3)


def test_what_a_training_step_left_in_attributes_is_no_obstacle():
    net = _with(z=[torch.ones(1, requires_grad=True) * 2])
    s = Structure(net, torch.randn(2, 3, 5, 5))
    assert s.gates
    compact(net, s.plan(torch.arange(s.gates) % 2 == 0))


# -- numbers that forwards take from tensors ------------------------------------------------------------------
class _Taken(nn.Module):
    """conv a 3>7(g) - norm - relu - something - conv b 7>5(g) - relu - conv c 5>4"""

    def __init__(self, something) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7)
        self.b, self.c = nn.Conv2d(7, 5, 1), nn.Conv2d(5, 4, 1)
        self.register_buffer("count", torch.tensor(2))
        self.something = something

    def forward(self, x):
        return self.c(self.b(self.something(self, self.norm(self.a(x)).relu())).relu())


def _tolist(m, y):
    for i in torch.arange(3).tolist():
        y = y * (i + 1)
    return y


TAKEN = {
    "tolist": _tolist,
    "int-of-a-buffer": lambda m, y: y[..., : int(m.count)],
    "if-on-a-buffer": lambda m, y: y * 2 if m.count > 1 else y,
    "item": lambda m, y: y * torch.linspace(0.5, 1, 3)[1].item(),
    "size-from-a-buffer": lambda m, y: y[..., : m.count.item() * 2],
    "as-long-as-a-buffer-says": lambda m, y: y.repeat_interleave(m.count.repeat(5), 2),
}


@pytest.mark.parametrize("name", TAKEN)
def test_numbers_that_do_not_depend_on_the_input_are_taken(name, capfd):
    torch.manual_seed(0)
    model, x = randomised(_Taken(TAKEN[name])), torch.randn(2, 3, 5, 5).double()
    model.count.fill_(2)
    before = copy.deepcopy(model.state_dict())
    s = Structure(model, x)
    assert {site.name: site.free for site in s.sites if site.free} == {"norm": 7, "b": 5}
    conforms(model, x, s, [torch.arange(12) % 2 == 0])
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "something",
    [
        lambda m, y: y * 2 if y.mean() > -99 else y,
        lambda m, y: y * float(y.detach().mean()),
        lambda m, y: y[: int((y > -99).sum())],
    ],
)
def test_numbers_that_depend_on_the_input_are_refused(something):
    with pytest.raises(CaptureError, match=r"(?s)could not be captured.*test_capture.py:\d+ in "):
        Structure(_Taken(something), torch.randn(2, 3, 5, 5))


class TwoResults(nn.Module):
    """A module that gives two tensors, of other widths, which a gate could only reach at its output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.sigmoid(self.a(x)), torch.sigmoid(self.b(x))]


class ReadsBoth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.two, self.c, self.d = nn.Linear(3, 5), TwoResults(), nn.Linear(6, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.two(self.stem(x))
        return self.c(first) + self.d(second)


def test_no_gate_acts_on_the_output_of_a_module_that_gives_several_tensors() -> None:
    """The hook would get a list; and both sites had one name, and other widths."""
    structure = exact_under_random_masks(randomised(ReadsBoth()), torch.randn(2, 3).double())
    assert {site.name: site.free for site in structure.sites} == {
        "stem": 5,
        "two.a": 0,
        "two.b": 0,
        "c": 0,
        "d": 0,
    }
