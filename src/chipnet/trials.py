"""Do pruned copies of a model run, and compute what their masks say? What breaks is found, and kept whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set

import numpy as np
import torch
from torch import Tensor, nn

from chipnet._util.device import device_of
from chipnet._util.text import first_line
from chipnet.analysis.analysis import Analysis, Notes
from chipnet.analysis.network import Network
from chipnet.errors import CaptureError, PlanError
from chipnet.graph.facts import Risk
from chipnet.program.inputs import Inputs
from chipnet.program.ready import copied
from chipnet.surgery.apply import compact
from chipnet.surgery.masked import agree, masked, same_in_training
from chipnet.surgery.planning import make_plan
from chipnet.surgery.verify import compare_training, example, repeatable

Kept = Callable[[Tensor], Tensor]
"""Which of a site's gates stay open: from their numbers ``[n]`` to booleans ``[n]``."""


class Trials:
    """Trials of masks on pruned copies of a model.

    The graph shows sizes as numbers, not where they came from: a width that forward keeps as a literal, or an
    operator that refuses a tensor without channels, shows only when a pruned copy runs.

    Args:
        network: what is pruned; where it has a train-mode graph, pruned copies must run in training mode too.
    """

    def __init__(self, network: Network) -> None:
        self.trains = network.training is not None
        self.name = type(network.model).__name__
        self.model, self.inputs, self.blind = self._comparable(network.model, network.inputs)
        self.repeatable = repeatable(self.model, self.inputs)

    def _comparable(self, model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, frozenset[int]]:
        """What is tried, on which inputs: outputs must have numbers that can be compared, but for some (``blind``)
        that never have any."""
        given = inputs.to(device_of(model))
        for shown in (_lively(model), model):
            try:
                found = example(copied(shown), given)
            except Exception:  # a lively copy that does not run; what the model itself raises, trials report
                found = (given, frozenset()) if shown is model else None
            if found is not None:
                return shown, *found
        raise CaptureError(
            f"outputs of this {self.name} cannot be compared: they are no tensors, empty, or not finite, on the "
            "example inputs as on random ones, so nobody could say whether a pruned copy computes the same. Give "
            "example inputs on which its outputs are finite."
        )

    def findings(self, analysis: Analysis) -> Notes | None:
        """One round with masks of ``analysis``: None where nothing breaks, else what is to be noted.

        An error's line tells which reshape or split is to blame; failing that, sites are tried by themselves.

        Raises:
            CaptureError: something breaks, and nothing is to blame.
        """
        masks = _masks(analysis)
        trial, error = next(((m, e) for m in masks if (e := self._error(analysis, m))), (None, None))
        if trial is None or error is None:
            return None
        if grids := self._grids(analysis, trial):
            return Notes(by_head=grids)
        risky = _risky(analysis)
        for line, _ in _lines_of(error):
            if at := [n for n, r in risky.items() if r.line == line]:
                return Notes(literal=dict.fromkeys(at, ""))
        broken, anchored = self._blame(analysis, trial)
        if fixed := _fixed(analysis, error, broken.keys()):
            return Notes(literal=dict.fromkeys(fixed, ""), anchored=anchored)
        if broken or anchored:
            return Notes(broken=broken, anchored=anchored)
        if risky:
            return Notes(literal=dict.fromkeys(risky, ""))
        raise CaptureError(
            f"a pruned copy of {self.name} does not run or computes something else, and no single layer is to "
            f"blame: {type(error).__name__}: {error}. Exclude the part concerned with ignore=[...]."
        )

    def _grids(self, analysis: Analysis, trial: Tensor) -> frozenset[str]:
        """Weights of attention that loses heads and features, if these at once break ``trial`` while the attention
        is alive: it fails where they are reshaped, or with their gates alone, or it does not with these open."""
        weights = analysis.graph.boxed
        sites = [i for i, site in enumerate(analysis.sites) if site.host.part]
        alive, others = trial.clone(), trial.clone()
        for i in sites:
            gates = torch.as_tensor(analysis.site_gates[i])
            others[gates] = True
            alive[gates if analysis.sites[i].host.part == "block" else gates[:0]] = True
        error = self._error(analysis, alive) if sites else None
        if error is None:
            return frozenset()
        rows = analysis.graph.classes(np.concatenate([analysis.sites[i].slots for i in sites]))
        lines = {line for line, _ in _lines_of(error)}
        reshaped = any(
            r.line in lines and np.isin(analysis.graph.classes(r.slots), rows).any()
            for r in _risky(analysis).values()
        )
        if reshaped or self._try(analysis, sites, lambda gates: alive[gates])[1] is not None:
            return weights
        return weights if self._error(analysis, others) is None else frozenset()

    def _error(self, analysis: Analysis, mask: Tensor) -> Exception | None:
        """What goes wrong with a copy pruned by ``mask``: it does not run, or computes something else."""
        inputs = self.inputs
        try:
            plan = make_plan(analysis, mask)
            small = compact(self.model, plan, verify=False)
            big = masked(self.model, plan)
            if not agree(self.model, small, plan, inputs, self.blind):
                raise PlanError("outputs change")
            if self.repeatable and not plan.frozen:
                if not same_in_training(compare_training(big, small, inputs, spent=True), small):
                    raise PlanError("outputs change in training")
            elif self.trains:
                with torch.no_grad():
                    inputs.twice()(small.train())
        except Exception as error:
            return error
        return None

    def _try(self, analysis: Analysis, sites: Sequence[int], kept: Kept) -> tuple[bool, Exception | None]:
        """Is the network connected with all other sites whole, and what goes wrong?"""
        mask = torch.ones(analysis.gates, dtype=torch.bool)
        for i in sites:
            mask[analysis.site_gates[i]] = kept(analysis.site_gates[i])
        connected = analysis.connected(mask)
        return connected, self._error(analysis, mask) if connected else None

    def _search(self, analysis: Analysis, sites: Sequence[int], kept: Kept) -> list[tuple[int, Exception]]:
        """The sites that break the forward, by halves, as few do. Where none does it alone (a literal width of a
        stream that two layers write), the last of the shortest run of sites that do it together."""
        connected, error = self._try(analysis, sites, kept)
        if len(sites) < 2 or (connected and error is None):
            return [(i, error) for i in sites if error is not None]
        middle = len(sites) // 2
        found = self._search(analysis, sites[:middle], kept) + self._search(analysis, sites[middle:], kept)
        if not found and error is not None:
            good, bad = middle, len(sites)
            while bad - good > 1:
                end = (good + bad) // 2
                good, bad = (
                    (good, end) if self._try(analysis, sites[:end], kept)[1] is not None else (end, bad)
                )
            found = [(sites[bad - 1], error)]
        return found

    def _blame(self, analysis: Analysis, trial: Tensor) -> tuple[dict[str, str], frozenset[str]]:
        """Weights of the sites that break the forward at half of their gates or at one, with what was said, and of
        those that break it at none; where there are neither, of those that break it as in ``trial``. New ones."""
        weights = [site.host.key for site in analysis.sites]
        todo = [i for i, gates in enumerate(analysis.site_gates) if len(gates)]
        broken: dict[str, str] = {}

        def note(found: list[tuple[int, Exception]]) -> None:
            for i, error in found:
                said = first_line(error)
                if isinstance(error, PlanError):
                    said = "outputs change; its width is used as a number"
                broken[weights[i]] = f"pruning it breaks the forward: {said}"

        for kept in (lambda gates: torch.arange(len(gates)) % 2 == 0, lambda gates: gates == gates[0]):
            note(self._search(analysis, todo, kept))
            todo = [i for i in todo if weights[i] not in broken]
        known, emptied = analysis.notes, self._search(analysis, todo, lambda gates: gates < 0)
        anchored = frozenset(weights[i] for i, _ in emptied) - known.anchored
        if not broken and not anchored:
            note(self._search(analysis, todo, lambda gates: trial[gates]))
        return {w: said for w, said in broken.items() if w not in known.broken}, anchored


def _risky(analysis: Analysis) -> dict[str, Risk]:
    """Reshapes and splits whose sizes may follow widths: of others it is known that they do not."""
    graph = analysis.graph
    return {n: r for n, r in graph.risky.items() if n not in graph.literal}


def _fixed(analysis: Analysis, error: Exception, broken: Set[str]) -> list[str]:
    """Reshapes and splits of the channels of ``broken`` sites, in functions that the error went through."""
    graph = analysis.graph
    sites = [site.slots for site in analysis.sites if site.host.key in broken]
    classes = set(graph.classes(np.concatenate(sites)).tolist()) if sites else set()
    return [
        n
        for n, r in _risky(analysis).items()
        if not classes.isdisjoint(graph.classes(r.slots).tolist())
        and any(r.line in around for _, around in _lines_of(error))
    ]


def _masks(analysis: Analysis) -> Iterator[Tensor]:
    """Half of each site, its other half, one gate a site, some beside as many dead sites as can be; then
    others, until every layer's width has been narrowed in one, if it can be: it may be somebody's number."""
    s, generator = analysis, torch.Generator().manual_seed(0)
    half, other, one = (torch.zeros(s.gates, dtype=torch.bool) for _ in range(3))
    for gates in s.site_gates:
        drawn, middle = torch.randperm(len(gates), generator=generator), (len(gates) + 1) // 2
        half[gates[drawn[:middle]]] = True
        other[gates[drawn[-middle:]]] = True
        one[gates[:1]] = True
    tried = [mask for mask in (half, other, one) if s.connected(mask)]
    for sites, part in ((s.site_gates, half), (s.site_gates[::-1], one)):
        mask = torch.ones(s.gates, dtype=torch.bool)
        for gates in sites:
            trial = mask.clone()
            trial[gates] = False
            if s.connected(trial):
                mask = trial
        tried.append(mask & part if s.connected(mask & part) else mask)
    tried = [s.canonical(mask) for mask in tried if not bool(mask.all())]
    yield from tried
    more = _drawn(analysis, 64, generator)
    full, *widths = s.widths(torch.stack([torch.ones(s.gates, dtype=torch.bool), *tried, *more]))
    narrowed = torch.stack([(w > 0) & (w < full) for w in widths])
    news = narrowed[len(tried) :] & ~narrowed[: len(tried)].any(0)
    while bool(news.any()):
        best = int(news.sum(1).argmax())
        if s.connected(more[best]):
            yield s.canonical(more[best])
            news &= ~news[best]
        else:
            news[best] = False


def _drawn(analysis: Analysis, count: int, generator: torch.Generator) -> Tensor:
    """Random masks ``[count, gates]``: half of each site, and none of a few, more and more sites."""
    sites = len(analysis.sites)
    likely = torch.tensor((0.0, 1 / sites, 4 / sites, 0.5)).repeat(count // 4 + 1)[:count, None]
    dead = torch.rand(count, sites, generator=generator) < likely
    masks = torch.rand(count, analysis.gates, generator=generator) < 0.5
    for i, gates in enumerate(analysis.site_gates):
        masks[:, gates[:1]] |= ~masks[:, gates].any(1, keepdim=True)
        masks[:, gates] &= ~dead[:, i : i + 1]
    return masks


def _lively(model: nn.Module) -> nn.Module:
    """A copy for trials in which signals pass: behind a scale of 0, as residual branches often start, and behind
    activations that are shut on the example, everything agrees with everything. No parameter is all zeros, and
    vectors (shifts, scales) are positive. NaN is a number like others: what weights are must not matter here."""
    shown = copied(model)
    generator = torch.Generator().manual_seed(0)
    for p in shown.parameters():
        if not p.is_floating_point():
            continue
        if not bool(torch.isfinite(p).all()):
            p.data.nan_to_num_(0.5, 0.5, -0.5)
        if p.dim() == 1:
            p.data.abs_().add_(0.5)
        elif not bool(p.any()):
            p.data.copy_(0.5 + torch.rand(p.shape, generator=generator))
    for b in shown.buffers():
        if b.is_floating_point() and bool(torch.isnan(b).any()):  # infinities of a mask are meant
            b.nan_to_num_(0.5, float("inf"), float("-inf"))
    return shown


def _lines_of(error: BaseException) -> list[tuple[str, set[str]]]:
    """Lines of the forward that an error passed through, the innermost first, each with those of its function."""
    lines = []
    current: BaseException | None = error
    while current is not None:
        tb = current.__traceback__
        while tb is not None:
            code = tb.tb_frame.f_code
            file = code.co_filename.rsplit("/", 1)[-1]
            lines.append((f"{file}:{tb.tb_lineno}", {f"{file}:{n}" for *_, n in code.co_lines()}))
            tb = tb.tb_next
        current = current.__cause__
    return lines[::-1]
