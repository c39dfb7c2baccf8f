"""Fisher information of gates, image by image."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chipnet._util.distributed import mean_, world
from chipnet.analysis.liveness import Site
from chipnet.gates.hooks import Hook
from chipnet.methods.gradual import Averaging
from chipnet.methods.scores import price
from chipnet.program.names import within


class PerImage(Averaging):
    """A gradual method that averages over batches the sum over images n of (dL_n/dz)^2, for every gate.

    Here dL_n/dz is the sum of activation times gradient over the positions of the gate's channels. Channels that
    share a gate are added *before* they are squared (Liu et al., Group Fisher Pruning, ICML 2021,
    arXiv:2108.00708). A shut gate writes zeros, so its part is zero.

    What a gate does to the statistics of a norm over channels behind it is left out.

    Where a module has several sites (attention), what a site writes is inside its forward. There the gradient of
    the gate comes from the layer's parameters: images are added before they are squared.

    Images cannot cancel each other, as they can in `Taylor`, which squares the mean gradient of a batch. For that,
    training takes one more pass over the gated activations.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Images -> sums [images, gates] of activation times gradient. A network that folds windows into the batch
        # has several first dimensions: only sums over the same one may be added before they are squared.
        self.sums: dict[int, Tensor] = {}
        modules = dict(self.model.named_modules(remove_duplicate=False))
        inside = Counter(site.host.module for site in self.analysis.sites)
        self.handles = [
            modules[site.host.module].register_forward_hook(_watch(site, inside, self._add).watch)
            for site in self.analysis.sites
            if site.free
        ]

    def _add(self, gates: Tensor, part: Tensor) -> None:
        if self.final:
            return
        zero = part.new_zeros(len(part), self.analysis.gates)
        total = self.sums.setdefault(len(part), zero)
        total.index_add_(1, gates.to(part.device), part)

    def step(self, before: float, after: float) -> None:
        processes = world(self.group)
        if not self.final and (self.sums or processes > 1):
            squares = [total.square().sum(0).to(self.square.device) for total in self.sums.values()]
            sample = torch.stack([torch.zeros_like(self.square), *squares]).sum(0)
            # Each process has its own mean over fewer images: its squares are larger by as many times.
            self.learn(mean_(sample, self.group) / processes)
        self.sums.clear()
        super().step(before, after)


class Fisher(PerImage):
    """Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018 (arXiv:1801.05787).

    A score is the rise of the loss if the gate were shut, to second order, with the Fisher information in place of
    the Hessian: half of what `PerImage` averages. It is divided by what a channel costs in the budget's kinds (Liu
    et al. 2021). A shut gate has a score of zero and does not return.
    """

    name = "fisher"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.price = price(self).cpu()

    def scores(self) -> Tensor:
        return self.sensitivity().cpu().double() / self.price.clamp(min=1e-12)


def _watch(site: Site, sites: Mapping[str, int], add: Callable[[Tensor, Tensor], None]) -> _Watch | _Inside:
    """What sees a site; ``sites``: how many each module has."""
    owner = site.host.weight.rpartition(".")[0]
    alone = owner == site.host.module and sites[owner] == 1 and not site.host.data
    own = not site.host.is_layer or alone
    return _Watch(site, add) if own else _Inside(site, add)


class _Inside(Hook):
    """Sees what gates make of a site's parameters, while they are folded in. All images of a batch are one."""

    def __init__(self, site: Site, add: Callable[[Tensor, Tensor], None]) -> None:
        self.add, self.host = add, site.host
        self.gated = torch.from_numpy(site.gates >= 0)
        self.gates = torch.from_numpy(site.gates)[self.gated]

    def watch(self, module: nn.Module, args: Any, output: Any) -> None:
        add = getattr(self, "add", None)  # a copy has none
        for name, axis in ((self.host.weight, self.host.axis), (self.host.bias, 0)):
            if add is None or name is None:
                continue
            owner, _, key = within(name, self.host.module).rpartition(".")
            folded = vars(module.get_submodule(owner)).get(key)
            if isinstance(folded, Tensor) and folded.requires_grad:
                folded.register_hook(functools.partial(self._gather, add, folded.detach(), axis))

    def _gather(self, add: Callable[[Tensor, Tensor], None], value: Tensor, axis: int, grad: Tensor) -> None:
        product = (value * grad).float().movedim(axis, 0)
        product = product.reshape(len(product), -1).sum(1)
        add(self.gates, product[self.gated.to(product.device)][None])


class _Watch(Hook):
    """Sees what a site writes. A `Hook`, so that copies of the model leave it behind."""

    def __init__(self, site: Site, add: Callable[[Tensor, Tensor], None]) -> None:
        self.add, self.channels = add, site.channels
        self.gated = torch.from_numpy(site.gates >= 0)
        self.gates = torch.from_numpy(site.gates)[self.gated]

    def watch(self, module: nn.Module, args: Any, output: Any) -> None:
        add = getattr(self, "add", None)  # a copy has none
        if add is None or not isinstance(output, Tensor) or not output.requires_grad:
            return
        last = output.shape[-1] == self.channels
        if last and output.dim() > 2 and output.shape[1] == self.channels:
            last = isinstance(module, (nn.Linear, nn.LayerNorm))
        axis = output.dim() - 1 if last else 1
        positions = [a for a in range(1, output.dim()) if a != axis]
        # A clone: what follows may write into the output (ReLU in place) before the gradient comes.
        value = output.detach().clone()
        gates, gated = self.gates, self.gated

        def gather(grad: Tensor) -> None:
            product = (value * grad).float()
            product = product.sum(positions) if positions else product
            add(gates, product[:, gated.to(product.device)])

        output.register_hook(gather)
