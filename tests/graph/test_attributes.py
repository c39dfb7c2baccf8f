"""Sizes that a network keeps as numbers: only those follow that forward uses as the size of something pruned."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from harness import corner_masks, random_mask, randomised
from torch import Tensor, nn

from chipnet import Structure, compact, masked

X = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pruned(model: nn.Module, gates: dict[str, int], realisations=("plain", "indexed")):
    """Prune by several masks; eval and train outputs equal the masked network's. The compact networks and plans."""
    model, found = randomised(model), []
    for realisation in realisations:
        s = Structure(model, X, realisation=realisation)
        free = {site.name: site.free for site in s.sites if site.free}
        assert {name: free.get(name, 0) for name in gates} == gates
        for mask in (random_mask(s, 0.5), random_mask(s, 0.3), *corner_masks(s)):
            plan = s.plan(mask)
            small, big = compact(model, plan), masked(model, plan)
            for train in (False, True):
                torch.testing.assert_close(
                    copy.deepcopy(small).train(train)(X),
                    copy.deepcopy(big).train(train)(X),
                    rtol=0,
                    atol=1e-9,
                )
            found.append((small, plan))
    return found


class Base(nn.Module):
    """Convolution, something in between, convolution."""

    def __init__(self, out: int = 16, **attributes) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(out, 5, 1), nn.Linear(5, 3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.between(F.relu(self.a(x))))).mean((2, 3)))

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class View(Base):
    """One number is a size, another divides in training, a third is not read: all are 16."""

    def between(self, x):
        x = x.view(len(x), self.width, -1).view(*x.shape)
        return x / self.temperature if self.training else x


class Both(Base):
    """The size divides, too, in training only."""

    def between(self, x):
        x = x.view(x.shape[0], self.width, -1).view(x.shape)
        return x / self.width if self.training else x


class Scaled(Base):
    """The size scales, too, through a float that no operator shows."""

    def between(self, x):
        return x.view(x.shape[0], self.width, -1).view(x.shape) * self.width**-0.5


class Rest(Base):
    def between(self, x):
        u, v = x.split([self.k, self.rest], 1)
        return torch.cat([v, u], 1)


class Difference(Base):
    def between(self, x):
        u, v = torch.split(x, [self.k, self.dim - self.k], 1)
        return torch.cat([v, u], 1)


class Half(Base):
    def between(self, x):
        u, v = x.split(self.c // 2, 1)
        return u * v.sigmoid()


class Double(Base):
    def between(self, x):
        u, v = x.view(x.shape[0], self.c * 2, *x.shape[2:]).chunk(2, 1)
        return u * v.sigmoid()


class Heads(Base):
    def between(self, x):
        y = x.view(x.shape[0], self.heads, self.dim // self.heads, -1)
        return (y * y.amax(3, keepdim=True)).reshape(x.shape)


class Slices(Base):
    def between(self, x):
        return torch.cat([x[:, self.k :], F.silu(x[:, : self.k])], 1)


class Element(Base):
    """Numbers in a tuple."""

    def between(self, x):
        return x.reshape(x.shape[0], self.sizes[1], -1).reshape(x.shape[0], -1, *self.sizes[2:])


class Expanded(Base):
    """A tensor as wide as the attribute says meets the features."""

    def between(self, x):
        return x + x.mean((1, 2, 3), keepdim=True).expand(-1, self.c, 1, 1)


class Shuffled(Base):
    """Groups in an attribute, the rest from the tensor."""

    def between(self, x):
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Groups(Base):
    def between(self, x):
        return F.group_norm(x, self.groups, self.scale, self.shift)


FOLLOW = {
    "a size, beside equal numbers": (View(width=16, temperature=16, epochs_seen=16), 16, {"width"}),
    "pieces": (Rest(k=4, rest=12), 16, {"rest", "k"}),
    "a difference": (Difference(k=4, dim=16), 16, {"dim", "k"}),
    "a half": (Half(out=8, c=16), 8, {"c"}),
    "twice": (Double(out=8, c=8), 8, {"c"}),
    "heads": (Heads(heads=4, dim=16), 4, {"heads", "dim"}),
    "slices": (Slices(k=4), 16, {"k"}),
    "an element": (Element(sizes=(16, 16, 4, 4)), 16, {"sizes"}),
    "groups beside a tensor's size": (Shuffled(groups=4), 4, {"groups"}),
    "groups": (
        Groups(groups=4, scale=nn.Parameter(torch.rand(16)), shift=nn.Parameter(torch.rand(16))),
        0,
        {"groups"},
    ),
}


@pytest.mark.parametrize("name", FOLLOW)
def test_a_number_that_forward_uses_as_a_size_follows_it_and_no_other_does(name):
    model, gates, follow = FOLLOW[name]
    before = {n: v for n, v in vars(model).items() if n != "training" and isinstance(v, (int, tuple))}
    changed: set[str] = set()
    for small, plan in pruned(model, {"a": gates}):
        said = {size.name for size in plan.sizes if size.value != size.was}
        mine = {n for n in before if vars(small)[n] != before[n]}
        assert mine == said
        assert all(type(v) is type(before[n]) for n, v in vars(small).items() if n in before)
        assert all(f"{n}" in plan.explain().split("\n", 5)[-1] for n in said)
        changed |= mine
    assert changed == follow
    assert {n: v for n, v in vars(model).items() if n in before} == before


@pytest.mark.parametrize("net", [Both, Scaled])
def test_a_number_that_is_a_size_and_a_value_does_not_follow(net):
    found = pruned(net(width=16), {"a": 0, "b": 5})
    assert all(small.width == 16 for small, _ in found)
    (site,) = [site for site in Structure(randomised(net(width=16)), X).sites if site.name == "a"]
    assert "'self.width' holds this width and is a fixed number elsewhere (test_attributes.py:" in site.reason


def test_a_tensor_expanded_to_an_attribute_follows_what_it_meets():
    assert {small.c for small, _ in pruned(Expanded(c=16), {"b": 5})}


class Reduced(nn.Module):
    """A branch reduces positions, and reshapes what it has made to as many channels as it was given (SegFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r, self.by = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 7, 2, 2), nn.Conv2d(3, 5, 1)
        self.o, self.head = nn.Linear(7, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        n, c, _, _ = y.shape
        tokens = self.r(y).reshape(n, c, -1).transpose(1, 2)
        return self.head(self.o(tokens).mean(1) + self.by(x).mean((2, 3)))


def test_a_size_that_follows_from_others_needs_one_channel():
    """PyTorch refuses ``reshape(2, 0, -1)``: where the branch may die, one channel stays, not all."""
    pruned(Reduced(), {"a": 7, "r": 7, "o": 5}, ("plain",))


def test_capture_marks_no_number_of_the_users():
    model = View(width=16, temperature=16, epochs_seen=16)
    Structure(randomised(model), X)
    assert all(type(v) is int for v in (model.width, model.temperature, model.a.in_channels))


def test_a_layer_that_computes_its_weight_owns_no_parameter_of_a_layer_whose_name_begins_alike():
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight
            scale = self.other[0].weight.mean() if hasattr(self, "other") else 1.0
            return F.conv2d(x, w * scale, self.bias, self.stride, self.padding)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv10, self.fc = Standardised(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
            self.conv1.other = (self.conv10,)  # not its own: nobody may freeze a weight that this changes

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv10(F.relu(self.conv1(x)))).mean((2, 3)))

    s = Structure(randomised(Net()), X)
    assert "conv1" not in s.graph.frozen


class TrainLiteral(Base):
    """A width that only training has as a number, from the tensor itself."""

    def between(self, x):
        return x * x.shape[1] ** -0.5 if self.training else x


def test_outputs_in_training_are_compared_too():
    assert all(plan.sizes == () for _, plan in pruned(TrainLiteral(), {"a": 0, "b": 5}))


class Fused(nn.Module):
    """Branches that ``fuse`` makes one convolution of, as RepVGG does."""

    def __init__(self, i: int, o: int, groups: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups, self.epochs_seen = i, o, groups, o
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, groups=groups, bias=False), nn.BatchNorm2d(o))
            for k in (3, 1)
        )
        self.same = nn.BatchNorm2d(i) if i == o else None
        self.one: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.one is not None:
            return F.relu(self.one(x))
        y = self.branches[0](x) + self.branches[1](x)
        return F.relu(y if self.same is None else y + self.same(x))

    def _kernel(self, branch: nn.Module) -> tuple[Tensor, Tensor]:
        if isinstance(branch, nn.BatchNorm2d):
            width = self.in_channels // self.groups
            kernel, norm = torch.zeros(self.in_channels, width, 3, 3).double(), branch
            for j in range(self.in_channels):
                kernel[j, j % width, 1, 1] = 1
        else:
            kernel, norm = branch[0].weight, branch[1]
            kernel = F.pad(kernel, [(3 - kernel.shape[-1]) // 2] * 4)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return kernel * scale[:, None, None, None], norm.bias - norm.running_mean * scale

    @torch.no_grad()
    def fuse(self) -> None:
        found = [self._kernel(b) for b in (*self.branches, self.same) if b is not None]
        one = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1, groups=self.groups).double()
        one.weight.copy_(sum(kernel for kernel, _ in found))
        one.bias.copy_(sum(bias for _, bias in found))
        self.one = one


class FusedNet(nn.Module):
    """Whole, grouped and depthwise; ``deep`` can die whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = Fused(3, 12), Fused(12, 12, 3)
        self.deep, self.last, self.fc = Fused(12, 12, 12), Fused(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.stem(x))
        return self.fc(self.last(x + self.deep(x)).mean((2, 3)))


def test_attributes_that_only_a_fuse_reads_follow_the_layers_that_it_fuses():
    narrowed = dead = 0
    for small, plan in pruned(FusedNet(), {}):
        before = small.eval()(X)
        for block in (small.stem, small.wide, small.deep, small.last):
            assert block.epochs_seen in (12, 16)  # no method reads it
            narrowed += block.in_channels not in (3, 12)
            block.fuse()
        torch.testing.assert_close(small(X), before, rtol=0, atol=1e-9)
        assert not plan.remaps  # a fuse would not see index maps
        dead += len(plan.stand_ins)
    assert narrowed and dead


class Pieces(nn.Module):
    """As Ultralytics' C2f: an exporter switches ``forward_split`` on. Inner layers are as wide by chance."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.c = c
        self.cv1, self.cv2 = nn.Conv2d(3, 2 * c, 1), nn.Conv2d(4 * c, 5, 1)
        self.m = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 8, 1), nn.ReLU(), nn.Conv2d(8, c, 1)) for _ in "ab")
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self._rest(list(F.relu(self.cv1(x)).chunk(2, 1)))

    def forward_split(self, x: Tensor) -> Tensor:
        return self._rest(list(F.relu(self.cv1(x)).split((self.c, self.c), 1)))

    def _rest(self, y: list[Tensor]) -> Tensor:
        for m in self.m:
            y.append(m(y[-1]))
        return self.fc(F.relu(self.cv2(torch.cat(y, 1))).mean((2, 3)))


def test_a_width_that_only_another_forward_reads_follows_the_pieces_of_a_chunk():
    widths = set()
    for small, plan in pruned(Pieces(), {}):
        small.eval()
        other = copy.deepcopy(small)
        other.forward = other.forward_split
        torch.testing.assert_close(other(X), small(X), rtol=0, atol=0)
        assert small.c == 8 or "c: " in plan.explain()
        widths.add(small.c)
    assert len(widths) > 2


class Unclear(Base):
    """``k`` equals two widths that change apart, and a loss divides by ``temperature``."""

    def between(self, x):
        return self.more(x)

    def __init__(self) -> None:
        super().__init__(out=16, k=16, temperature=16, seen=16)
        self.more = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU())

    def forward_split(self, x):
        return self.a(x).split(self.k, 1)

    def loss(self, x):
        return x / self.temperature


def test_what_may_count_a_width_and_does_not_follow_is_noted():
    s = Structure(randomised(Unclear()), X)
    assert [note.split(":")[0] for note in s.notes] == [
        "'k' is read by forward_split and will not follow",
        "'temperature' is read by loss and will not follow",
    ]
    assert all(s.notes == tuple(row["notes"]) for row in s.report() if row["name"] in ("a", "more.0"))
    assert all((small.k, small.temperature, small.seen) == (16, 16, 16) for small, _ in pruned(Unclear(), {}))


class Merged(nn.Module):
    """A low-rank change of a layer that ``merge`` adds to its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down = nn.Linear(12, 10), nn.Linear(12, 2, bias=False)
        self.up, self.r = nn.Linear(2, 10, bias=False), 2

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) if self.r else self.base(x)

    @torch.no_grad()
    def merge(self) -> None:
        self.base.weight += self.up.weight @ self.down.weight
        self.r = 0


def test_no_index_map_stands_where_a_method_merges_weights():
    net = nn.Sequential(nn.Conv2d(3, 12, 6), nn.ReLU(), nn.Flatten(), Merged(), nn.ReLU(), nn.Linear(10, 3))
    merged = 0
    for small, _ in pruned(net, {}):
        before = small.eval()(X)
        if "Constant" in repr(small[3].base):  # it is not there any more
            continue
        small[3].merge()
        merged += 1
        torch.testing.assert_close(small(X), before, rtol=0, atol=1e-9)
    assert merged
