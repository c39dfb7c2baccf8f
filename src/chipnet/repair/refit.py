"""Repair a compact network without training: every layer gives, of what it reads now, what is nearest to what it
gave in the dense network. Closed-form least squares, layer by layer in the order of the forward.

Source: least-squares reconstruction after channel pruning (He et al. 2017, arXiv 1707.06168, equation 3; Luo et al.
2017, arXiv 1707.06342), here with inputs of the compact network and outputs of the dense one, and towards the
weights that the cut leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.finite import check_finite
from chipnet._util.given import FUNCTION, NETWORK
from chipnet._util.modes import plainly
from chipnet.errors import PlanError
from chipnet.program.inputs import Inputs
from chipnet.program.ready import copied
from chipnet.repair.batches import first_images, read_batches
from chipnet.repair.layers import exact
from chipnet.repair.sums import Sums, fit
from chipnet.repair.watch import LayerCall, calls, calls_of
from chipnet.surgery.apply import freeze
from chipnet.surgery.plan import PLAN, Plan

MOST_COLUMNS = 8192
"""Layers of more columns are not fitted: matrices of so many take 512 MiB each, and solving holds about six."""
_SHUT = 1e-6
"""Through a norm's channel with less than this part of the largest slope, nothing is made up for."""


@dataclass(frozen=True)
class LayerRefit:
    """What a refit did to one layer.

    Attributes:
        layer: name of its weight.
        before, after: squared error of its outputs, as a part of their variance.
        shrinkage: how strongly the weight was held to what the cut left, in mean squares of the inputs.
    """

    layer: str
    before: float
    after: float
    shrinkage: float

    def __str__(self) -> str:
        return f"{self.layer}: error {self.before:.1%} -> {self.after:.1%}"


@plainly
@torch.no_grad()
def refit(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    inputs: Any,
    *,
    images: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> list[LayerRefit]:
    """Fit the weights of a compact network, in place, to what the dense network's layers give.

    Layer by layer in the order of the forward: ``X`` is what the layer reads in the compact network, whose
    earlier layers are refitted already, ``Y`` what it gives in the dense one, of the outputs that are kept. The new
    weight is that of ridge regression towards the one that the cut left, ``(XᵀX/n + λI)⁻¹ (XᵀY/n + λW0)``. Each
    layer gets one of eight λ: the one with which weights fitted to half of the images suit the other half best. The
    offset goes into the bias, or into the running mean of the batch norm behind it. A layer whose output goes into
    a sum and nowhere else also makes up for the error of what it is added to. No error of a layer grows; classes,
    shapes and names stay.

    Nothing is trained: no gradients, no labels, no random numbers. Sums are in float64, and only sums are kept, of
    one layer at a time: about ``48 columns²`` bytes for each group, where a convolution has ``channels · kernel``
    columns. Layers of more than 8,192 columns stay as they are.

    Args:
        model: the dense network.
        small: what `compact` made of it with ``plan``; it is changed.
        plan: what was cut.
        inputs: unlabelled inputs: a tensor of images; a tuple of forward's arguments or a mapping of its keyword
            arguments; or an iterable of such batches, as a loader is. Labels of a loader are not looked at.
        images: how many of them are read, at most.
        progress: is called with the number of layers that are done and of all.

    Returns:
        What was done, layer by layer. Layers before the first cut, and such whose weight is no parameter that a
        convolution or a linear layer reads, stay as they are.

    Raises:
        PlanError: ``small`` is not the plan's network.
        ConfigError: there are no inputs, or the network does not take them.
        CaptureError: one of both is no network.

    Example:
        >>> import chipnet
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> images = torch.randn(64, 3)
        >>> plan = chipnet.Structure(net, images[:1]).plan(torch.tensor([True, False, True, True]))
        >>> small = chipnet.compact(net, plan)
        >>> all(layer.after <= layer.before for layer in chipnet.refit(net, small, plan, images))
        True
    """
    PLAN.check("plan", plan)
    plan.check(model)
    NETWORK.check("small", small)
    _check(small, plan)
    if progress is not None:
        FUNCTION.check("progress", progress)
    check_finite(model)
    check_finite(small)
    dense = copied(model).eval()
    batches = read_batches(dense, inputs, plan.inputs, images)
    freeze(dense, plan)
    training = {module: module.training for module in small.modules()}
    small.eval()
    try:
        return Refit(dense, small, plan, batches).run(progress)
    finally:
        for module, mode in training.items():
            module.training = mode


def _check(small: nn.Module, plan: Plan) -> None:
    for name, tensor in small.named_parameters():
        if name in plan.shapes and tuple(tensor.shape) != plan.shape(name):
            raise PlanError(
                f"'{name}' of the compact network has shape {tuple(tensor.shape)}, not {plan.shape(name)}: give "
                "what compact(model, plan) returned for this plan"
            )


class Refit:
    """One refit: two networks in eval mode, side by side.

    ``everything``: layers before the first cut too, which read the same in both networks.
    """

    def __init__(
        self, dense: nn.Module, small: nn.Module, plan: Plan, batches: list[Inputs], everything: bool = False
    ) -> None:
        self.dense, self.small, self.plan, self.batches = dense, small, plan, batches
        self.everything = everything
        self.tensors: dict[str, Tensor] = {**dict(small.named_parameters()), **dict(small.named_buffers())}
        shown = first_images(batches[0], plan.inputs)
        self.seen = calls(small, shown)
        self.count = Counter(call.name for call in self.seen)
        wanted = calls(dense, shown)
        self.same = self.count & Counter(call.name for call in wanted)
        mine, theirs = ({c.name: c.given["input"] for c in reversed(some)} for some in (self.seen, wanted))
        self.other = {name for name, x in mine.items() if _differ(x, theirs.get(name))}
        """What reads other numbers than in the dense network."""
        self.added = {c.name for c in self.seen if c.added} & {c.name for c in wanted if c.added}

    @torch.no_grad()
    def run(self, progress: Callable[[int, int], None] | None = None) -> list[LayerRefit]:
        todo = self._todo()
        found = []
        for done, call in enumerate(todo, 1):
            if call.layer is None:
                self._norm(call)
            elif (layer := self._layer(call)) is not None:
                found.append(layer)
            if progress is not None:
                progress(done, len(todo))
        return found

    def _todo(self) -> list[LayerCall]:
        """First calls of what is fitted: from the first cut on, what both networks call equally often. Norms that
        read a layer are fitted with it."""
        first = {call.name: call for call in reversed(self.seen)}
        order = list(dict.fromkeys(call.name for call in self.seen))
        cut = self.plan.keep.keys() | self.other
        touched = [not cut.isdisjoint((name, first[name].bias or "")) for name in order]
        start = 0 if self.everything else touched.index(True) if True in touched else len(order)
        return [
            first[name]
            for name in order[start:]
            if self.same[name] == self.count[name] and _possible(first[name])
        ]

    def _pairs(self, call: LayerCall) -> Iterator[tuple[int, LayerCall, LayerCall]]:
        """The number of each batch, a call in the compact network, and the same one in the dense network."""
        added = call.name in self.added and self.count[call.name] == 1
        for i, batch in enumerate(self.batches):
            mine, theirs = (
                calls_of(net, batch, call.name, self.count[call.name], added)
                for net in (self.small, self.dense)
            )
            for pair in zip(mine, theirs, strict=True):
                yield i, *pair

    def _layer(self, call: LayerCall) -> LayerRefit | None:
        layer = call.layer
        assert layer is not None
        norm = call.norm if call.normed else None
        halves: list[Sums | None] = [None, None]
        for i, mine, theirs in self._pairs(call):
            wanted = _wanted(mine, theirs, self.plan.keep.get(call.name, {}), call.bias is not None)
            if wanted.shape != mine.output.shape:
                return None
            for x, y in layer.pairs(mine.given["input"], wanted):
                sums, old = Sums.of(x, y), halves[i % 2]
                halves[i % 2] = sums if old is None else old + sums
        return self._fitted(call, norm, [half.check(call.name) for half in halves if half is not None])

    def _fitted(self, call: LayerCall, norm: LayerCall | None, halves: list[Sums]) -> LayerRefit:
        """Solve, write the weight and the offset."""
        layer, weight, bias = call.layer, self.tensors[call.name], self.tensors.get(call.bias or "")
        assert layer is not None
        offset = bias is not None or norm is not None
        start = layer.matrix(weight)
        fitted, shrinkage = fit(halves, start, offset)
        means = sum(halves[1:], halves[0]).centred(offset)
        had = 0.0 if bias is None else exact(bias).view_as(means.y)
        before = means.error(start) + (means.missing(start) - had).square() * offset
        new = layer.weight(fitted).to(weight)
        after = means.error(layer.matrix(new))
        scale = float(means.yy.sum()) or 1.0
        if float(after.sum()) >= float(before.sum()):  # nothing to gain: not even rounding
            return LayerRefit(call.name, float(before.sum()) / scale, float(before.sum()) / scale, 0.0)
        weight.copy_(new)
        missing = means.missing(layer.matrix(new)).flatten()
        if bias is not None:
            bias.copy_(missing.to(bias))
        elif norm is not None:
            mean = self.tensors[norm.name]
            mean.copy_((exact(mean) - missing).to(mean))
        return LayerRefit(call.name, float(before.sum()) / scale, float(after.sum()) / scale, shrinkage)

    def _norm(self, call: LayerCall) -> None:
        """A norm that reads no layer: its running mean follows that of what it reads."""
        rows = self.plan.keep.get(call.name, {}).get(0)
        count, total = 0, torch.zeros((), dtype=torch.float64)
        for _, mine, theirs in self._pairs(call):
            x, y = mine.given["input"], _chosen(theirs.given["input"], 1, rows)
            if x.shape != y.shape:
                return
            difference = (exact(x) - exact(y)).movedim(1, -1).flatten(0, -2)
            count, total = count + len(difference), total + difference.sum(0)
        mean = self.tensors[call.name]
        mean.copy_((exact(mean) + total / max(count, 1)).to(mean))


def _possible(call: LayerCall) -> bool:
    """Is it a layer of not too many columns, or a norm that is not fitted with the layer before it?"""
    if call.layer is not None:
        return call.layer.columns <= MOST_COLUMNS
    return call.source is None or not call.source.normed


def _wanted(mine: LayerCall, theirs: LayerCall, keep: Mapping[int, Sequence[int]], biased: bool) -> Tensor:
    """What a layer of the compact network should give: what the dense one gave, of the outputs that are left; and
    what the sum that it goes into is off by, seen through the norm between them. ``biased``: with the bias."""
    assert mine.layer is not None and theirs.layer is not None
    axis = mine.layer.axis(mine.output)
    rows = theirs.layer.kept(keep)
    wanted = _chosen(theirs.output, axis, rows)
    if mine.other is not None and theirs.other is not None:
        off = _chosen(theirs.other, axis, rows) - mine.other
        if mine.norm is not None:
            passed = _slope(mine.norm.given)
            shut = passed.abs() <= _SHUT * passed.abs().max()
            factor = torch.where(shut, 0, 1 / passed)
            off = off * factor.view(-1, *[1] * len(mine.layer.kernel))
        wanted = wanted + off
    if mine.given.get("bias") is not None and not biased:  # it stays as it is
        wanted = wanted - mine.given["bias"].view(-1, *[1] * len(mine.layer.kernel))
    return wanted


def _differ(x: Tensor, y: Tensor | None) -> bool:
    """Do they differ by more than rounding?"""
    if y is None or x.shape != y.shape:
        return True
    return bool((exact(x) - exact(y)).norm() > 1e-6 * exact(y).norm())


def _chosen(x: Tensor, axis: int, rows: Sequence[int] | None) -> Tensor:
    return x if rows is None else x.index_select(axis, torch.tensor(rows, dtype=torch.int64, device=x.device))


def _slope(norm: Mapping[str, Any]) -> Tensor:
    """What a batch norm multiplies each channel by."""
    slope = (norm["running_var"] + norm.get("eps", 1e-5)).rsqrt()
    return slope if norm.get("weight") is None else slope * norm["weight"]
