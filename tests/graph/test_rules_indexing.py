"""Parts of axes chosen by tensors, tensors side by side along other axes, and states that begin as zeros."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import conforms, corner_masks, random_mask, randomised
from rule_cases import Around, gains
from torch import Tensor, nn

from chipnet import Structure

I = torch.tensor([4, 0, 0, 3])  # noqa: E741
FEW = torch.tensor([[0, 2], [5, 1]])


def by_rank(x: Tensor) -> Tensor:
    """Positions of every channel in the order of another tensor's values."""
    order = x.sum(1, keepdim=True).flatten(2).argsort(-1)  # one order for all channels
    return x.flatten(2).gather(2, order.expand(-1, x.shape[1], -1)).view_as(x)


def messages(x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(3, I, x.index_select(3, I))


def scattered(x: Tensor) -> Tensor:
    index = I.expand(x.shape[0], x.shape[1], x.shape[2], 4)
    return torch.zeros_like(x).scatter_add(3, index, x[..., :4])


KEEP = {
    "a column list": lambda x: x[:, :, :, I],
    "two lists": lambda x: x[:, :, I, I].unsqueeze(-1),
    "a table of rows": lambda x: x[:, :, FEW].flatten(2, 3),
    "lists apart": lambda x: x[I[1:3] // 4, :, I[1:3] // 4][..., None],
    "index_select": lambda x: x.index_select(2, I),
    "images": lambda x: x[torch.tensor([1, 0])],
    "take_along_dim": lambda x: torch.take_along_dim(x, I.view(1, 1, 1, 4), 3),
    "gather, one order for all": by_rank,
    "index_add": messages,
    "index_copy": lambda x: x.index_copy(3, I[:2], x[..., :2] * 2.0),
    "scatter_add": scattered,
    "two halves of a batch": lambda x: torch.cat([x, x * 2.0], 0).unflatten(0, (2, -1)).sum(0),
    "rows": lambda x: torch.cat([x, F.relu(x)], 2),
    "columns and a constant row": lambda x: torch.cat([x[..., :1], x, x[..., -1:]], 3),
}


@pytest.mark.parametrize("name", KEEP)
def test_channels_of_other_axes_stay_apart(name):
    gains(lambda: Around(KEEP[name]), {"a": 12, "b": 5})


class Siamese(nn.Module):
    """Two images in one batch through one branch: the first convolution is a site."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.dim = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 6, 1),
            nn.Linear(6, 3),
            dim,
        )

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, x.flip(3)], self.dim)
        first, second = F.relu(self.b(F.relu(self.a(both)))).chunk(2, self.dim)
        return self.fc((first - second).abs().mean((2, 3)))


@pytest.mark.parametrize("dim", [0, 2, 3])
def test_two_tensors_through_one_branch(dim):
    gains(lambda: Siamese(dim), {"a": 8, "b": 6})


def test_parts_of_different_branches_are_tied_and_each_writes_what_it_has():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.c(torch.cat([F.relu(self.a(x)), self.b(x)], 2))).mean((2, 3)))

    gains(Net, {"a": 8, "b": 8, "c": 6})


def test_indices_that_the_network_computes_are_kept():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.where, self.b, self.fc = (
                nn.Linear(3, 8),
                nn.Linear(3, 7),
                nn.Linear(8, 6),
                nn.Linear(6, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            order = torch.relu(self.where(x)).sum(-1)  # [N, T]
            index = order.argsort(-1)[:, :2, None]
            rows = torch.take_along_dim(self.a(x), index, 1)
            return self.fc(F.relu(self.b(rows)).mean(1))

    gains(Net, {"a": 8, "where": 7, "b": 6}, (2, 5, 3), train=False)


def test_channels_chosen_by_a_tensor_are_kept():
    s, _ = gains(lambda: Around(lambda x: x[:, I], 4), {"b": 5})
    assert "indexes channels by a tensor" in next(site.reason for site in s.sites if site.name == "a")


class ConvGRU(nn.Module):
    """Its state begins as zeros whose width is the width of what it becomes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.width, self.how = 7, how
        self.a = nn.Conv2d(3, 5, 1)
        self.z, self.h = nn.Conv2d(12, 7, 1), nn.Conv2d(12, 7, 1)
        self.b, self.fc = nn.Conv2d(7, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        n, _, *space = x.shape
        width = {"attribute": self.width, "weight": self.z.weight.shape[0], "literal": 7}[self.how]
        h = (
            x.new_zeros(n, width, *space)
            if self.how == "weight"
            else torch.zeros(n, width, *space, dtype=x.dtype)
        )
        for _ in range(2):
            both = torch.cat([x, h], 1)
            z = torch.sigmoid(self.z(both))
            h = (1 - z) * h + z * torch.tanh(self.h(torch.cat([x, z * h], 1)))
        return self.fc(F.relu(self.b(h)).mean((2, 3)))


@pytest.mark.parametrize("how", ["attribute", "weight", "literal"])
def test_a_state_that_begins_as_zeros(how):
    model, x = randomised(ConvGRU(how)), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for realisation in ("plain", "indexed"):
        s = Structure(model, x, realisation=realisation)  # type: ignore[arg-type]
        free = {site.name: site.free for site in s.sites if site.free}
        conforms(model, x, s, [random_mask(s, d) for d in (0.5, 0.3)] + list(corner_masks(s)))
        assert free["a"] == 5
        assert free["b"] == 6
        if how != "literal" and realisation == "plain":
            assert free["h"] >= 6, s.report()


BEGINNINGS = {
    "zeros added": lambda x: x + torch.zeros(x.shape, dtype=x.dtype),
    "written onto zeros": lambda x: torch.zeros(x.shape, dtype=x.dtype).add_(x),
    "ones multiplied": lambda x: x * torch.ones(len(x), 1, 6, 6, dtype=x.dtype),
    "full of the width": lambda x: torch.full((2, x.shape[1], 6, 6), 3.0, dtype=x.dtype) * x,
    "a new tensor of another shape": lambda x: x @ x.new_ones(6, 4),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_tensors_of_given_sizes_follow_what_they_meet(name):
    gains(lambda: Around(BEGINNINGS[name]), {"a": 12, "b": 5})


def test_zeros_of_a_fixed_width_beside_channels():
    f = lambda x: torch.cat([x, torch.zeros(2, 4, 6, 6, dtype=x.dtype)], 1)  # noqa: E731
    gains(lambda: Around(f, 16), {"a": 12, "b": 5})


def test_two_inputs_in_one_batch():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            first, second = F.relu(self.a(torch.cat([x, y]))).mean((2, 3)).chunk(2)
            return self.b(first * second)

    model = randomised(Net())
    x = (torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    for realisation in ("plain", "indexed"):
        s = Structure(model, x, realisation=realisation)  # type: ignore[arg-type]
        assert {site.name: site.free for site in s.sites if site.free} == {"a": 8}
        conforms(model, x, s, [random_mask(s, 0.5), *corner_masks(s)])


class Tokens(nn.Module):
    """Two tables, a norm over their sum, a branch, and a head: none, the first table, or a layer behind it."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(9, 7, padding_idx=2), nn.Embedding(6, 7)
        self.norm, self.up, self.down = nn.LayerNorm(7), nn.Linear(7, 10), nn.Linear(10, 7)
        self.head = nn.Linear(9 if head == "behind" else 7, 4)
        self.kind = head
        self.register_buffer("places", torch.arange(6))

    def forward(self, i: Tensor) -> Tensor:
        x = self.norm(self.token(i) + self.position(self.places))
        x = x + self.down(F.relu(self.up(x)))
        if self.kind == "own":
            return self.head(x)
        scores = F.linear(x, self.token.weight)
        return self.head(scores) if self.kind == "behind" else scores


@pytest.mark.parametrize("head", ["own", "tied", "behind"])
def test_tables_of_embeddings_lose_columns_and_keep_all_rows(head):
    def made() -> Tokens:
        torch.manual_seed(0)
        return randomised(Tokens(head))

    model, tokens = made(), torch.randint(0, 9, (3, 6))
    for realisation in ("indexed", "plain"):
        s = Structure(model, tokens, realisation=realisation)  # type: ignore[arg-type]
        masks = [*(random_mask(s, d) for d in (0.5, 0.25, 0.75)), *corner_masks(s)]
        found = conforms(model, tokens, s, masks, factory=made)
        for small, _, _ in found:
            for table, rows in ((small.token, 9), (small.position, 6)):
                assert table.weight.shape == (rows, table.embedding_dim)
    assert min(small.token.embedding_dim for small, _, _ in found) < 7
    stream = 7 if head == "own" else 6  # a tied head is no module: it keeps one channel
    free = {site.name: site.free for site in s.sites if site.free}
    assert free == {"token": stream, "position": stream, "up": 10, "down": stream}


def test_a_table_that_is_computed_or_changed_by_its_call_stays_whole():
    class Net(nn.Module):
        def __init__(self, most: float | None) -> None:
            super().__init__()
            self.token, self.most = nn.Embedding(9, 7, max_norm=most), most
            self.up, self.head = nn.Linear(7, 10), nn.Linear(10, 4)

        def forward(self, i: Tensor) -> Tensor:
            x = self.token(i) if self.most else F.embedding(i, self.token.weight.tanh())
            return self.head(F.relu(self.up(x)))

    tokens = torch.randint(0, 9, (3, 6))
    for most in (None, 1.0):
        model = randomised(Net(most))
        s = Structure(model, tokens)
        assert {site.name: site.free for site in s.sites if site.free} == {"up": 10}
        conforms(model, tokens, s, [random_mask(s, 0.5), *corner_masks(s)])
