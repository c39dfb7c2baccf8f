"""What rules emit, as text: each expression below is one network, and the folder `facts` has what is known of it.

UPDATE=1 pytest tests/graph/test_facts.py     # writes these files anew: read the difference
"""

import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chipnet.graph.walk import trace
from chipnet.program.capture import capture
from chipnet.program.inputs import Inputs

CASES = {
    "elementwise": [
        "x.sigmoid()",
        "x.relu()",
        "x + y",
        "x + 1",
        "x * y",
        "x * x.sigmoid()",
        "x * 2",
        "x / (x.abs() + 1)",
        "x / y",
        "x + m.shift[:, None, None]",
        "x * m.one",
        "x + m.positions",
        "torch.where(y > 0, x, y)",
        "torch.lerp(x, y, 0.5)",
        "F.glu(m.wide(x), 1)",
        "F.prelu(x, m.shift)",
        "x.masked_fill(y > 0, 1.0)",
        "torch.ops.aten.bernoulli(x.sigmoid())",
    ],
    "movement": [
        "x.flatten(1)",
        "x.permute(0, 2, 3, 1)",
        "x.flip(1)",
        "x.roll(1, 1)",
        "torch.cat([x, y], 1)",
        "torch.cat([x, y], 2)",
        "torch.stack([x, y], 1)",
        "m.wide(x).view(1, 2, 3, 4, 4).transpose(1, 2).flatten(1, 2)",
        "F.channel_shuffle(m.wide(x), 2)",
        "F.pixel_shuffle(m.four(x), 2)",
        "x.mean((2, 3)).view(1, m.width).sigmoid()",
        "x + torch.zeros(1, 3, 1, 1)",
        "m.one.expand(1, 3, 4, 4) * x",
        "x.repeat_interleave(2, 1)",
    ],
    "parts": [
        "m.wide(x).chunk(2, 1)[0]",
        "m.wide(x).split([2, 4], 1)[1]",
        "x[:, 1:]",
        "x.unbind(1)[0]",
        "m.wide(x)[:, ::2]",
    ],
    "reductions": [
        "x.mean((2, 3))",
        "x.sum(1)",
        "x.mean(1)",
        "x.amax((2, 3))",
        "x.logsumexp((2, 3))",
        "x.max(2)[1]",
        "x.var((2, 3))",
        "x.norm(dim=1)",
        "F.cosine_similarity(x, y, 1)",
        "torch.quantile(x, 0.5, 2)",
    ],
    "axes": [
        "x.softmax(2)",
        "x.softmax(1)",
        "x.cumsum(3)",
        "x.sort(2)[0]",
        "x.topk(2, 3)[0]",
        "torch.fft.fft(x).real",
    ],
    "indexing": [
        "x[:, :, m.index]",
        "x.index_select(1, m.index)",
        "x.gather(2, m.index[None, None, :, None].expand(1, 3, 2, 4))",
        "x.index_add(2, m.index, y[:, :, :2])",
        "x.gather(2, x.topk(2, 2)[1])",
    ],
    "contractions": [
        "x @ y",
        "x.flatten(2) @ y.flatten(2).transpose(1, 2)",
        "x.flatten(2).transpose(1, 2) @ y.flatten(2)",
        "x.mean((2, 3)) @ m.matrix",
        "x.mean((2, 3)) @ m.square.t()",
        "torch.einsum('bchw,bchw->bc', x, y)",
        "torch.einsum('bchw,bchw->bhw', x, y)",
        "torch.einsum('ii->i', m.square)",
        "torch.tensordot(x, m.matrix, [[1], [0]])",
    ],
    "layers": [
        "m.conv(x)",
        "m.depthwise(x)",
        "m.many(m.wide(x))",
        "m.few(m.wide(x))",
        "m.transposed(x)",
        "m.linear(x.mean((2, 3)))",
        "m.conv(x) + m.conv(y)",
        "F.conv2d(x, m.kernel, groups=3)",
        "F.conv2d(x, m.matrix[:, :3, None, None].transpose(0, 1))",
        "m.standardised(x)",
    ],
    "norms": [
        "m.batch(x)",
        "F.instance_norm(x)",
        "m.layer(x.mean((2, 3)))",
        "m.group(m.wide(x))",
        "m.groups(x)",
        "m.rms(x.mean((2, 3)))",
    ],
    "space": [
        "F.max_pool2d(x, 2)",
        "m.pool(x)",
        "F.adaptive_avg_pool2d(x, 1)",
        "F.max_pool2d(x, 2, return_indices=True)[1]",
        "F.interpolate(x, scale_factor=2)",
        "F.pad(x, (1, 1))",
        "F.pad(x, (1, 1), value=1.0)",
        "F.pad(x, (0, 0, 0, 0, 1, 2))",
        "F.pad(x, (1, 1, 1, 1), 'reflect')",
        "F.unfold(x, 2)",
        "F.fold(F.unfold(x, 2), (4, 4), 2)",
        "F.grid_sample(x, m.grid)",
    ],
    "attention": [
        "F.scaled_dot_product_attention(*[t.flatten(2).transpose(1, 2)[:, None] for t in (x, y, m.conv(x))])",
    ],
    "quantised": [
        "torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)",
        "torch.fake_quantize_per_channel_affine(x, m.scale, m.zero, 1, -128, 127)",
    ],
    "recurrent": ["m.gru(x.flatten(2).transpose(1, 2))[0]", "m.cell(x.mean((2, 3)))"],
    "other": ["torch.linalg.inv(x)", "x.add_(1).relu_()", "torch.cdist(x, y)"],
}  # fmt: skip


class Standardised(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.conv2d(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Parts(nn.Module):
    """What expressions call ``m``."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 3
        self.wide, self.four, self.conv = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.depthwise, self.many, self.few = (
            nn.Conv2d(c, c, 1, groups=g) for c, g in ((3, 3), (6, 3), (6, 2))
        )
        self.transposed, self.linear = nn.ConvTranspose2d(3, 5, 1), nn.Linear(3, 5)
        self.standardised = Standardised(3, 5, 1)
        self.batch, self.layer, self.rms = nn.BatchNorm2d(3), nn.LayerNorm(3), nn.RMSNorm(3)
        self.group, self.groups = nn.GroupNorm(2, 6), nn.GroupNorm(3, 3)
        self.pool, self.gru, self.cell = nn.MaxPool2d(2), nn.GRU(3, 5, batch_first=True), nn.LSTMCell(3, 5)
        self.shift, self.one = nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(1))
        self.positions, self.matrix = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.rand(3, 5))
        self.square = nn.Parameter(torch.rand(3, 3))
        self.register_buffer("kernel", torch.rand(3, 1, 2, 2))
        self.register_buffer("index", torch.tensor([0, 2]))
        self.register_buffer("grid", torch.rand(1, 4, 4, 2))
        self.register_buffer("scale", torch.rand(3))
        self.register_buffer("zero", torch.zeros(3, dtype=torch.int32))


class Net(nn.Module):
    """``x`` and ``y`` are outputs of convolutions with three channels, slots 3-5 and 6-8."""

    def __init__(self, expression: str) -> None:
        super().__init__()
        self.a, self.b, self.m = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1), Parts()
        self.code = compile(expression, "<case>", "eval")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        names = {"F": F, "torch": torch, "m": self.m, "x": self.a(x), "y": self.b(x)}
        return eval(self.code, names)  # type: ignore[no-any-return]


def facts(expression: str) -> str:
    """What is known of an expression: without its ends, and where in the code it is."""
    model, x = Net(expression).eval(), torch.randn(1, 1, 4, 4)
    graph = trace(model, capture(model, Inputs.of(x)), "plain")
    text = re.sub(r" \([^()]+:\d+\)$", "", str(graph), flags=re.M)
    lines = [re.sub(" +#", "  #", line) for line in text.splitlines()[6:]]
    ends = r"cut [ab]\.|pin .*(constant: a|input: an|output: an)"
    return "\n".join(line for line in lines if not re.match(ends, line))


@pytest.mark.parametrize("family", CASES)
def test_facts_that_rules_emit(family: str) -> None:
    path = Path(__file__).parent / "facts" / f"{family}.txt"
    text = "\n\n".join(f">>> {expression}\n{facts(expression)}" for expression in CASES[family]) + "\n"
    if os.environ.get("UPDATE"):
        path.write_text(text)
    assert text == path.read_text()


def test_every_family_has_cases() -> None:
    from chipnet.graph import rules

    files = {p.stem for p in Path(rules.__file__).parent.glob("*.py")} - {"__init__", "ask", "table"}
    assert CASES.keys() - {"other"} == files
