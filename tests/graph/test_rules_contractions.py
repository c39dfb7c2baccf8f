"""Products summed over an axis: what they leave prunable, that it is exact, and that PyTorch counts the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import conforms, corner_masks, random_mask, randomised
from rule_cases import Around, gains
from torch import Tensor, nn

from chipnet import Structure


def pooled_by_attention(x: Tensor) -> Tensor:
    """Global context: positions weighted by a softmax over them."""
    weight = torch.softmax(x.sum(1, keepdim=True).flatten(2), -1)  # [N, 1, HW]
    return x + torch.matmul(x.flatten(2), weight.transpose(1, 2)).unsqueeze(-1)


ROWS = torch.rand(6, 6, dtype=torch.float64)
KEEP = {
    "a mixed row (right)": lambda x: x @ ROWS,
    "a mixed column (left)": lambda x: ROWS @ x,
    "einsum over nodes": lambda x: torch.einsum("nctv,vw->nctw", x, ROWS),
    "einsum, tensors the other way": lambda x: torch.einsum("wv,nctv->nctw", ROWS, x),
    "einsum with an ellipsis": lambda x: torch.einsum("...v,vw->...w", x, ROWS),
    "einsum over both of space": lambda x: torch.einsum("nchw,hw->nc", x, ROWS)[:, :, None, None],
    "einsum that only moves": lambda x: torch.einsum("nchw,h->ncwh", x, ROWS[0]),
    "bmm over positions": lambda x: torch.bmm(
        x.flatten(2), torch.ones(len(x), 36, 9, dtype=x.dtype)
    ).unflatten(2, (3, 3)),
    "a vector": lambda x: (x @ ROWS[0]).unsqueeze(-1),
    "baddbmm": lambda x: torch.baddbmm(
        x.flatten(2), x.flatten(2), torch.eye(36, dtype=x.dtype).expand(len(x), 36, 36), alpha=2.0
    ).unflatten(2, (6, 6)),
    "context pooling": pooled_by_attention,
}


@pytest.mark.parametrize("name", KEEP)
def test_a_sum_over_another_axis_leaves_channels_apart(name):
    gains(lambda: Around(KEEP[name]), {"a": 12, "b": 5})


def test_a_learnt_adjacency():
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
            self.adjacency = nn.Parameter(torch.rand(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(torch.einsum("nctv,vw->nctw", self.a(x), self.adjacency))
            return self.fc((self.b(x) @ self.adjacency.softmax(-1)).mean((2, 3)))

    gains(Graph, {"a": 8, "b": 6})


class GraphLayer(nn.Module):
    """As graph convolutions are written: nodes mixed by an adjacency, features by a weight with inputs first."""

    def __init__(self, i: int, o: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(i, o))
        self.bias = nn.Parameter(torch.randn(o)) if bias else None

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = adjacency @ (x @ self.weight)
        return x if self.bias is None else x + self.bias


@pytest.mark.parametrize("bias", [False, True])
def test_a_weight_that_is_multiplied_by_hand_is_a_linear_layer(bias):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = GraphLayer(4, 9, bias), GraphLayer(9, 7, bias), nn.Linear(7, 3)
            self.register_buffer("adjacency", torch.rand(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x, self.adjacency))
            return self.fc(F.relu(self.b(x, self.adjacency)).mean(1))

    shifts = {"a.bias": 8, "b.bias": 6} if bias else {}
    s, _ = gains(Net, {"a": 8, "b": 6, **shifts}, (2, 5, 4))
    for site in s.sites:
        if site.free:
            assert "keeps one channel" in site.reason


def test_a_weight_in_an_einsum_with_channels_first():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(6, 3)
            self.weight = nn.Parameter(torch.randn(6, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.einsum("oc,nchw->nohw", self.weight, F.relu(self.a(x)))
            return self.fc(F.relu(x).mean((2, 3)))

    gains(Net, {"a": 6, "weight": 5})  # einsum sums over two channels at least


class NonLocal(nn.Module):
    """Positions compare features (q · k); what is compared may go, as what is gathered (v)."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(3, n, 1, bias=n != 8) for n in (8, 8, 6))
        self.fc, self.written = nn.Linear(6, 3), written

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        if self.written == "matmul":
            weights = torch.softmax(q.transpose(1, 2) @ k * 0.3, -1)
            out = v @ weights.transpose(1, 2)
        elif self.written == "bmm":
            weights = torch.bmm(q.transpose(1, 2), k) / 4
            out = torch.bmm(weights, v.transpose(1, 2)).transpose(1, 2)
        else:
            weights = torch.einsum("ncp,ncr->npr", q, k).softmax(-1)
            out = torch.einsum("npr,ncr->ncp", weights, v)
        return self.fc(F.relu(out).mean(2))


@pytest.mark.parametrize("written", ["matmul", "bmm", "einsum"])
def test_features_that_are_compared_are_pruned_together(written):
    features = 6 if written == "einsum" else 8  # where one is left, einsum counts no product
    s, _ = gains(lambda: NonLocal(written), {"q": features, "k": features, "v": 6}, (2, 3, 4, 4))
    by = {site.name: site for site in s.sites}
    assert (by["q"].gates == by["k"].gates).all() or s.options.realisation == "indexed"


def test_a_product_of_channels_with_a_tensor_of_fixed_width_keeps_them():
    fixed = torch.rand(12, 4, dtype=torch.float64)
    s, _ = gains(lambda: Around(lambda x: torch.einsum("nchw,ck->nkhw", x, fixed), 4), {"b": 5})
    assert "fixed width" in next(site.reason for site in s.sites if site.name == "a")


@pytest.mark.parametrize(
    "equation",
    ["nchw,nchw->nc", "nchw,ndhw->ncd", "nchw,nchw->nhw", "nchw,nchw->", "iihw,iihw->ihw", "nchw->nc"],
)
def test_other_einsums_are_exact_whatever_they_keep(equation):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            sides = (self.a(x), self.b(x)) if "," in equation else (self.a(x) + self.b(x),)
            return torch.einsum(equation, *sides)

    model, x = randomised(Net()), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    for realisation in ("plain", "indexed"):
        s = Structure(model, x, realisation=realisation)  # type: ignore[arg-type]
        conforms(model, x, s, [random_mask(s, 0.5), *corner_masks(s)] if s.gates else [])
