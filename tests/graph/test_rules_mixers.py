"""Networks that mix tokens without attention: by layers over tokens, by gates over space, by a selective scan."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rule_cases import gains
from torch import Tensor, nn

from chipnet import Structure


class Over(nn.Module):
    """A layer over the tokens of ``[batch, tokens, channels]``, of the kind that is asked for."""

    def __init__(self, kind: str, tokens: int, out: int, bias: bool = True) -> None:
        super().__init__()
        self.kind = kind
        conv = {"conv": nn.Conv1d}.get(kind)
        self.layer = conv(tokens, out, 1, bias=bias) if conv else nn.Linear(tokens, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "conv":
            return self.layer(x)
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """As MLP-Mixer has it: tokens, then channels."""

    def __init__(self, kind: str, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.a, self.b = Over(kind, 4, 6, bias), Over(kind, 6, 4, bias)
        self.c, self.d = nn.Linear(8, 10), nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(F.gelu(self.a(self.first(x))))
        return x + self.d(F.gelu(self.c(self.second(x))))


class Mixer(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.embed, self.block, self.fc = nn.Linear(3, 8), block, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.embed(x)).mean(1))


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_over_tokens_leaves_the_stream_free(kind, bias):
    """With a bias it gives something where a channel is shut: a gate multiplies what the module gives. Without one
    zeros stay zeros. A convolution refuses to run on no point."""
    free = 7 if kind == "conv" else 8
    gates = {"embed": free, "block.c": 10, "block.d": free}
    if bias:
        gates["block.b" if kind == "linear" else "block.b.layer"] = free
    s, _ = gains(lambda: Mixer(Block(kind, bias)), gates, (2, 4, 3))
    at = {site.name: site.host.output for site in s.sites if site.free}
    assert {name: axis for name, axis in at.items() if axis is not None} == (
        {} if not bias else {"block.b": -1} if kind == "linear" else {"block.b.layer": -1}
    )


def test_costs_of_a_layer_over_tokens():
    """Of 8 channels 3 stay: each costs 4 x 6 and 6 x 4 multiply-accumulates, and gives 6 and 4 numbers."""
    model, x = Mixer(Block("linear", bias=True)), torch.randn(2, 4, 3)
    s = Structure(model, x)
    mask = torch.ones(s.gates, dtype=torch.bool)
    stream = next(site for site in s.sites if site.name == "embed")
    mask[torch.from_numpy(stream.gates[3:])] = False
    dense, cut = s.cost.dense, s.cost.exact(mask)
    others = {8: 2 * 4 * (3 * 8 + 8 * 10 * 2) + 2 * 8 * 2, 3: 2 * 4 * (3 * 3 + 3 * 10 * 2) + 2 * 3 * 2}
    assert dense.macs == others[8] + 2 * 8 * (4 * 6 + 6 * 4)
    assert cut.macs == others[3] + 2 * 3 * (4 * 6 + 6 * 4)
    assert dense.volume == 2 * 8 * (6 + 4) + 2 * 4 * (8 + 10 + 8) + 2 * 2
    assert cut.volume == 2 * 3 * (6 + 4) + 2 * 4 * (3 + 10 + 3) + 2 * 2


class Gating(nn.Module):
    """As gMLP has it: one half, mixed over tokens, multiplies the other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(6, 8)
        self.middle, self.tokens = nn.LayerNorm(6), Over("linear", 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.a(self.norm(x))).chunk(2, -1)
        return x + self.b(u * self.tokens(self.middle(v)))


def test_a_gate_over_space_is_pruned_with_what_it_multiplies():
    gains(lambda: Mixer(Gating()), {"embed": 8, "block.a": 6, "block.b": 8}, (2, 4, 3))


class Scan(nn.Module):
    """A block of Mamba, by hand: ``inner`` channels, each with ``state`` numbers."""

    def __init__(
        self, dim: int = 8, inner: int = 10, state: int = 3, rank: int = 2, how: str = "loop"
    ) -> None:
        super().__init__()
        self.rank, self.state, self.how = rank, state, how
        self.norm, self.a = nn.RMSNorm(dim, eps=1e-5), nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.x, self.dt = nn.Linear(inner, rank + 2 * state, bias=False), nn.Linear(rank, inner)
        self.log, self.d = nn.Parameter(torch.rand(inner, state)), nn.Parameter(torch.rand(inner))
        self.b = nn.Linear(inner, dim, bias=False)

    def forward(self, given: Tensor) -> Tensor:
        x, z = self.a(self.norm(given)).chunk(2, -1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : given.shape[1]].transpose(1, 2))
        dt, b, c = self.x(x).split([self.rank, self.state, self.state], -1)
        dt = F.softplus(self.dt(dt)).unsqueeze(-1)
        decay, more = torch.exp(-dt * torch.exp(self.log)), dt * b.unsqueeze(2) * x.unsqueeze(-1)
        y = self._loop(decay, more, c) if self.how == "loop" else self._sums(decay, more, c)
        return given + self.b((y + x * self.d) * F.silu(z))

    def _loop(self, decay: Tensor, more: Tensor, c: Tensor) -> Tensor:
        state, out = torch.zeros_like(more[:, 0]), []
        for t in range(more.shape[1]):
            state = decay[:, t] * state + more[:, t]
            out.append((state * c[:, t].unsqueeze(1)).sum(-1))
        return torch.stack(out, 1)

    def _sums(self, decay: Tensor, more: Tensor, c: Tensor) -> Tensor:
        total = decay.log().cumsum(1)
        return torch.einsum("btdn,btn->btd", total.exp() * (more * (-total).exp()).cumsum(1), c)


@pytest.mark.parametrize("how", ["loop", "sums"])
def test_a_selective_scan_loses_stream_channels_and_rank(how):
    """The state has an axis of its own, beside channels: it stays."""
    gates = {"embed": 8, "block.a": 10, "block.conv": 10, "block.x": 2, "block.b": 8}
    s, _ = gains(lambda: Mixer(Scan(how=how)), gates, (2, 4, 3))
    assert s.graph.axes["block.log"].keys() == {0}


class Function(nn.Module):
    """A parameter of two axes goes through functions, and multiplies."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f, self.p = f, nn.Parameter(torch.rand(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.f(self.p)


@pytest.mark.parametrize("f", [torch.exp, torch.tanh, lambda p: -p.exp(), lambda p: p.sigmoid().log()])
def test_functions_of_a_parameter_are_cut_with_it(f):
    _, found = gains(lambda: Mixer(Function(f)), {"embed": 8}, (2, 4, 3))
    assert any(small.block.p.shape == (4, plan.shape("embed.weight")[0]) for small, plan, _ in found)


class Fewer(nn.Module):
    """Attention of two heads with keys and values of one, expanded to the size of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.fc = nn.Linear(3, 8), nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (2, -1)).transpose(1, 2)
        k, v = self.k(x).unsqueeze(1).expand_as(q), self.v(x).unsqueeze(1).expand_as(q)
        z = (q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v
        return self.fc(z.transpose(1, 2).flatten(2).mean(1))


def test_what_is_expanded_as_another_tensor_has_its_width():
    """One value of four would be expanded to as many as there are queries."""
    s, _ = gains(Fewer, {"q": 4, "k": 4, "v": 4}, (2, 5, 3))
    gates = {site.name: site.gates.tolist() for site in s.sites}
    assert gates["k"] == gates["v"] == gates["q"][:4] == gates["q"][4:]


class Gram(nn.Module):
    """Channels times other channels: of one side all stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(3, 5), nn.Linear(3, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(F.relu(self.a(x)).transpose(1, 2) @ F.relu(self.b(x))).mean(1))


def test_of_channels_times_other_channels_the_larger_side_is_free():
    gains(Gram, {"b": 7}, (2, 4, 3))
