"""Fisher information of gates, image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from chipnet._util.distributed import mean_, world
from chipnet._util.torch_private import NormBase
from chipnet.analysis.analysis import Analysis
from chipnet.analysis.sites import Site
from chipnet.gates.hooks import Hook
from chipnet.methods.gradual import Averaging


class PerImage(Averaging):
    """A gradual method that averages over batches the sum over images n of (dL_n/dz)^2, for every gate.

    Here dL_n/dz is the sum of activation times gradient over the positions of the gate's channels. Channels that
    share a gate are added *before* they are squared (Liu et al., Group Fisher Pruning, ICML 2021,
    arXiv:2108.00708). A shut gate writes zeros, so its part is zero. Images cannot cancel each other, as they can
    in `Taylor`, which squares the mean gradient of a batch. An image is an entry of an output's first dimension.

    One step in ``every`` is measured: it takes a pass over the gated activations, forward and back, and holds a
    copy of them. What a gate does to the statistics of a norm over channels behind it is left out.

    Some sites write what no module returns: a functional call within a larger forward, a layer in attention that is
    computed in one piece. Their part is the square of the whole batch's gradient. Where images are independent and
    their gradients have a mean of zero, it has the same expectation. Parameters that are used as data (class
    tokens, positions) have no part where layers share their gates.
    """

    every: int = 4
    """One of so many steps is measured. The mean forgets as fast, in steps, as if all were."""

    ranges: ClassVar = {"every": (1, 1e9)}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.probes = Probes(self.analysis, self.device)
        self.handles = self.probes.hang(self.model, self.analysis)
        self._leaf: Tensor | None = None

    def values(self, progress: float) -> Tensor:
        hard = super().values(progress)
        if self.probes.open and torch.is_grad_enabled() and bool(self.probes.unseen.any()):
            hard = self._leaf = hard.detach().clone().requires_grad_()
        return hard

    def observed(self) -> list[Tensor]:
        return self.probes.gathered() if self.probes.open else []

    def step(self, before: float, after: float) -> None:
        if self.probes.open:
            self._measured()
        if self.seen or self.freezes(after):
            super().step(before, after)
        self.probes.open = not self.final and round(after * self.steps) % self.every == 0

    @torch.no_grad()
    def _measured(self) -> None:
        sample = self.probes.take() / self.loss_scale**2
        # Each process has its own mean over fewer images: its squares are larger by as many times.
        mean_(sample, self.group).div_(world(self.group))
        leaf, self._leaf = self._leaf, None
        if leaf is not None and leaf.grad is not None:  # averaged over processes already
            sample = torch.where(self.probes.unseen, (leaf * leaf.grad).square(), sample)
        if world(self.group) > 1 or bool(sample.any()):
            self.learn(sample)

    def keeps(self) -> float:
        return self.memory**self.every

    def fix(self, mask: Tensor) -> None:
        super().fix(mask)
        self.probes.open = False

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "measures": self.probes.open}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.probes.open = state["measures"]


class Probes:
    """Leaves ``[gates]`` whose gradients are sums over images of (dL_n/dz)^2.

    What a module writes passes through a function that changes nothing. Its backward pass gives the products of
    activation and gradient, summed over positions, to a tensor of zeros ``[images, gates]``, one for all sites that
    share gates. There autograd adds them up over sites and calls. Its own backward pass squares them and sums over
    images. So nothing but gradients goes from one place to the other, and whatever may happen to gradients
    (accumulation over batches, checkpointing, compilation) may happen here.

    Attributes:
        open: do forwards measure?
        unseen: gates ``[gates]`` whose part is that of the whole batch: a layer writes some of their channels where
            no module returns them, or no layer has them.
    """

    def __init__(self, analysis: Analysis, device: torch.device) -> None:
        self.open, self.device, self.sites = True, device, [site for site in analysis.sites if site.free]
        self.unseen = torch.zeros(analysis.gates, dtype=torch.bool, device=device)
        self.groups = _sharing(self.sites)
        self._leaves = [torch.zeros(len(gates), device=device, requires_grad=True) for gates in self.groups]
        self._images: dict[tuple[int, int], Tensor] = {}
        self._axes = {norm.module: norm.axis for norm in analysis.norms}

    def hang(self, model: nn.Module, analysis: Analysis) -> list[Any]:
        """Hooks on a network, to be removed again."""
        modules = dict(model.named_modules(remove_duplicate=False))
        hosts = [modules[site.host.module] for site in self.sites]
        handles: list[Any] = [model.register_forward_pre_hook(_Forget(self).forget)]
        number = {int(g): i for i, gates in enumerate(self.groups) for g in gates}
        inside = Counter(site.host.module for site in analysis.sites)
        seen = torch.zeros(analysis.gates, dtype=torch.bool)
        # A layer's sites first: what data adds to a stream of layers is left out.
        for site, host in sorted(zip(self.sites, hosts, strict=True), key=lambda pair: pair[0].host.data):
            gated = torch.from_numpy(site.gates >= 0)
            gates = torch.from_numpy(site.gates)[gated]
            if inside[site.host.module] > 1 or not _returns_it(site, host):
                self.unseen[gates] |= ~(seen[gates] & site.host.data).to(self.device)
                continue
            seen[gates] = True
            axis = self._axes.get(site.host.module, _axis(site, host))
            watch = _Watch(self, number[int(gates[0])], gates, gated, axis)
            handles.append(host.register_forward_hook(watch.watch))
        return handles

    def images(self, group: int, like: Tensor) -> Tensor:
        """Zeros ``[images, gates of the group]``, the same ones for all of a forward's sites."""
        key = group, len(like)
        if key not in self._images:
            self._images[key] = _Squares.apply(self._leaves[group], len(like))
        return self._images[key]

    def forget(self) -> None:
        """A forward begins: its images are others."""
        self._images.clear()

    def gathered(self) -> list[Tensor]:
        """The gradients that backward passes have left, before `take` clears them."""
        return [leaf.grad for leaf in self._leaves if leaf.grad is not None]

    def take(self) -> Tensor:
        """What has gathered ``[gates]``; the next step begins with zeros."""
        self.forget()
        sample = torch.zeros(len(self.unseen), device=self.device)
        for gates, leaf in zip(self.groups, self._leaves, strict=True):
            if leaf.grad is not None:
                sample[gates.to(self.device)] = leaf.grad.detach()
            leaf.grad = None
        return sample


class _Squares(torch.autograd.Function):
    """Zeros for every image; back comes the sum over images of squares."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, images: int) -> Tensor:
        return leaf.new_zeros(images, len(leaf))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.square().sum(0), None


class _Products(torch.autograd.Function):
    """Gives on x; back comes, for each image and gate, the sum over positions of x times its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, images: Tensor, places: Tensor, gated: Tensor, axis: int) -> Tensor:
        ctx.save_for_backward(x, places, gated)
        ctx.axis, ctx.gates, ctx.home = axis, images.shape[1], images.device
        return x.clone()  # what follows may write into it, as a ReLU in place does

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, places, gated = ctx.saved_tensors
        positions = [a for a in range(1, x.dim()) if a != ctx.axis]
        product = x.float() * grad.float()
        product = product.sum(positions) if positions else product
        part = product.new_zeros(len(x), ctx.gates).index_add(1, places, product.index_select(1, gated))
        return grad, part.to(ctx.home), None, None, None


class _Watch(Hook):
    """Sees what a site writes. A `Hook`, so that copies of the model leave it behind."""

    def __init__(self, probes: Probes, group: int, gates: Tensor, gated: Tensor, axis: int | None) -> None:
        self.probes, self.group, self.gates, self.axis = probes, group, gates, axis
        self.channels, self.gated = len(gated), gated.nonzero()[:, 0].to(probes.device)
        self.places = torch.searchsorted(probes.groups[group], gates).to(probes.device)

    def watch(self, module: nn.Module, args: Any, output: Any) -> Any:
        probes = getattr(self, "probes", None)  # a copy has none
        if probes is None or not probes.open or not torch.is_grad_enabled():
            return None
        axis = self._along(output)
        if axis is None:
            probes.unseen[self.gates] = True
            return None
        at = output.device
        images = probes.images(self.group, output)
        return _Products.apply(output, images, self.places.to(at), self.gated.to(at), axis)

    def _along(self, output: Any) -> int | None:
        """The axis of channels in an output, from the first one; None where there is none."""
        if not isinstance(output, Tensor) or output.dim() < 2:
            return None
        fits = [a for a in range(1, output.dim()) if output.shape[a] == self.channels]
        if self.axis is None:
            return fits[0] if fits else None
        axis = self.axis % output.dim()
        return axis if axis in fits else None


class _Forget(Hook):
    def __init__(self, probes: Probes) -> None:
        self.probes = probes

    def forget(self, module: nn.Module, args: Any) -> None:
        probes = getattr(self, "probes", None)
        if probes is not None and probes.open:
            probes.forget()


def _sharing(sites: list[Site]) -> list[Tensor]:
    """The gates of sites, sorted; those of sites that share some are together."""
    found: list[set[int]] = []
    for site in sites:
        gates = {int(g) for g in site.gates if g >= 0}
        others = [group for group in found if group.isdisjoint(gates)]
        together = gates.union(*(group for group in found if not group.isdisjoint(gates)))
        found = [*others, together]
    return [torch.tensor(sorted(group)) for group in found]


def _returns_it(site: Site, module: nn.Module) -> bool:
    """Does the module of a site return what the site writes? It may be a layer within a larger forward."""
    parts = [name for name, _ in module.named_children() if name != "parametrizations"]
    owner = site.host.weight.rpartition(".")[0]
    return not parts and not site.host.data and (owner == site.host.module or not site.host.is_layer)


def _axis(site: Site, module: nn.Module) -> int | None:
    """The axis of channels in what a module writes; None: the first of as many channels."""
    if site.host.output is not None:
        return site.host.output
    if isinstance(module, (NormBase, nn.GroupNorm)):
        return 1
    weight = getattr(module, site.host.weight.rpartition(".")[2], None)
    if isinstance(weight, Tensor) and weight.dim() > 1:
        return -1 if weight.dim() == 2 else 1
    return None
