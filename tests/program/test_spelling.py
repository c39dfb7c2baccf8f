"""Modules that are captured and shipped spelt out compute what they do themselves, and lose every width apart."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from harness import randomised
from rule_cases import gains
from torch import Tensor, nn

import chipnet
from chipnet.program.spelling import spell, unspell


def masks(queries: int, keys: int) -> list[Tensor | None]:
    """None, added to scores, for each head, of booleans. No query lacks all keys."""
    for_heads = torch.rand(6, queries, keys) > 0.8
    for_heads[..., 0] = False
    return [None, torch.randn(queries, keys).double(), for_heads, torch.ones(queries, keys).triu(1).bool()]


OPTIONS = [
    {},
    {"kdim": 6, "vdim": 5},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"bias": False},
]


@pytest.mark.parametrize("first", [True, False], ids=["batch first", "tokens first"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "no batch"])
@pytest.mark.parametrize("cross", [True, False], ids=["cross", "self"])
def test_attention_of_pytorch_spelt_out_computes_the_same(options, first, batched, cross):
    torch.manual_seed(0)
    plain = randomised(nn.MultiheadAttention(8, 2, batch_first=first, **options).double())
    queries, keys = 4, 5 if cross else 4
    widths = (8, options.get("kdim", 8), options.get("vdim", 8))
    q, k, v = (torch.randn(3, n, w).double() for n, w in zip((queries, keys, keys), widths, strict=True))
    if not batched:
        q, k, v = q[0], k[0], v[0]
    elif not first:
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    if not cross:
        if "kdim" in options:
            pytest.skip("queries have another width")
        k = v = q
    spelt = spell(copy.deepcopy(plain))
    assert type(spelt) is not type(plain)
    assert isinstance(spelt, nn.MultiheadAttention)
    assert spelt.state_dict().keys() == plain.state_dict().keys()
    hidden = torch.tensor([[False] * (keys - 1) + [True]] * 3)
    cases = itertools.product(
        (None, hidden), masks(queries, keys), (True, False), (True, False), (True, False)
    )
    for padding, mask, weights, mean, train in cases:
        if padding is not None and mask is not None and mask.dtype != torch.bool:
            continue  # PyTorch warns
        call = {
            "key_padding_mask": padding if padding is None or batched else padding[0],
            "attn_mask": mask[:2] if mask is not None and mask.dim() == 3 and not batched else mask,
            "need_weights": weights,
            "average_attn_weights": mean,
        }
        with torch.set_grad_enabled(train):
            wanted, found = (m.train(train)(q, k, v, **call) for m in (plain, spelt))
        torch.testing.assert_close(found, wanted)


def test_the_hint_that_a_mask_is_causal():
    torch.manual_seed(0)
    plain, x = nn.MultiheadAttention(8, 2).double(), torch.randn(4, 3, 8).double()
    call = {"attn_mask": torch.ones(4, 4).triu(1).bool(), "is_causal": True}
    for weights in (True, False):
        wanted = plain(x, x, x, need_weights=weights, **call)
        torch.testing.assert_close(spell(copy.deepcopy(plain))(x, x, x, need_weights=weights, **call), wanted)


@pytest.mark.parametrize("kind", ["ShiftedWindowAttention", "ShiftedWindowAttentionV2"])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_windows_of_torchvision_spelt_out_compute_the_same(kind, shift, bias):
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    torch.manual_seed(0)
    plain = randomised(getattr(swin, kind)(8, [4, 4], [shift, shift], 2, qkv_bias=bias))
    for shape in ((2, 7, 9, 8), (1, 8, 4, 8), (1, 3, 3, 8)):
        x = torch.randn(shape).double()
        torch.testing.assert_close(spell(copy.deepcopy(plain))(x), plain(x))


def test_response_norm_of_hugging_face_spelt_out_computes_the_same():
    """Its eps is a literal. Spelt out it follows: of 3 channels of 9 it is three times as large."""
    grn = pytest.importorskip("transformers.models.convnextv2.modeling_convnextv2").ConvNextV2GRN

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.grn, self.b = nn.Linear(4, 9), grn(9), nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.grn(self.a(x))).mean((1, 2))

    torch.manual_seed(0)
    plain, x = randomised(grn(9)), 1e-4 * torch.randn(2, 5, 5, 9).double()
    torch.testing.assert_close(spell(copy.deepcopy(plain))(x), plain(x))
    _, found = gains(Around, {"a": 9, "grn.bias": 9}, (2, 5, 5, 4))
    cut = [
        (small.grn.eps, plan.shape("grn.weight")[-1]) for small, plan, _ in found if hasattr(small.grn, "eps")
    ]
    assert cut and all(eps == pytest.approx(1e-6 * 9 / max(left, 1)) for eps, left in cut)
    whole = torch.ones(9 + 9, dtype=torch.bool)
    model = randomised(Around())
    s = chipnet.Structure(model, torch.randn(2, 5, 5, 4).double())
    assert type(chipnet.compact(model, s.plan(whole[: s.gates])).grn) is grn


def test_classes_and_attributes_are_as_before_where_nothing_is_cut():
    class Own(nn.MultiheadAttention):
        pass

    model = nn.ModuleList([nn.MultiheadAttention(8, 2), Own(8, 2), nn.Linear(8, 8)])
    before = [(type(m), {**vars(m)}) for m in model]
    assert [type(m).__name__ for m in spell(model)] == ["Attention", "Own", "Linear"]
    assert [(type(m), vars(m)) for m in unspell(model)] == before


NESTED = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


class Encoder(nn.Module):
    """A transformer of PyTorch's own layers, whose last token is padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 10, dropout=0.0, batch_first=True)
        self.embed, self.layers, self.head = nn.Linear(4, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tensor([False] * 4 + [True]).expand(x.shape[0], 5)
        return self.head(self.layers(self.embed(x), src_key_padding_mask=hidden)[:, :4].mean(1))


@NESTED
def test_attention_of_pytorch_loses_stream_queries_and_values_apart():
    wanted = {"embed": 8}
    for i in (0, 1):
        at = f"layers.layers.{i}"
        wanted |= {f"{at}.self_attn.in_proj_weight": 7, f"{at}.self_attn.out_proj": 8}
        wanted |= {f"{at}.linear1": 10, f"{at}.linear2": 8}
    _, found = gains(Encoder, wanted, (2, 5, 4))
    cut = {tuple(m.widths) for small, *_ in found for m in small.modules() if hasattr(m, "widths")}
    assert any(len({*widths}) > 1 for widths in cut)  # values have another width than queries
    small = found[0].network
    x = torch.randn(2, 5, 4).double()
    for again in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        torch.testing.assert_close(again(x), small(x))
    with torch.no_grad():  # no fused layer is taken
        torch.testing.assert_close(small.eval()(x), small.requires_grad_()(x))


@NESTED
def test_what_of_attention_is_not_cut_ships_as_it_is():
    torch.manual_seed(0)
    model, x = randomised(Encoder()), torch.randn(2, 5, 4).double()
    s = chipnet.Structure(model, x, only=["*linear1"])
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[0] = False
    small = chipnet.compact(model, s.plan(mask))
    assert type(small.layers.layers[0].self_attn) is nn.MultiheadAttention
    assert {*vars(small.layers.layers[0].self_attn)} == {*vars(model.layers.layers[0].self_attn)}


@NESTED
def test_a_pruner_folds_gates_into_what_a_module_reads_of_another():
    """Out projections are read by the attention around them: its forward sees them with gates."""
    torch.manual_seed(0)
    model, x = randomised(Encoder()), torch.randn(2, 5, 4).double()
    dense = model(x)
    for method in ("uniform", "fisher", "taylor"):
        pruner = chipnet.Pruner(model, x[:1], "macs=0.5", steps=2, method=method)
        model.train()(x).square().sum().backward()
        pruner.step()
        model.eval()
        plan = pruner.harden(early=True)
        soft = model(x)
        pruner.detach()
        torch.testing.assert_close(model(x), dense)
        torch.testing.assert_close(soft, chipnet.masked(model, plan)(x))
        torch.testing.assert_close(soft, chipnet.compact(model, plan)(x))
