"""The values of gates: how they reach forwards, and how gradients reach what is learnt. No network is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chipnet._util.distributed import Group, mean_, world
from chipnet._util.finite import all_finite
from chipnet._util.modes import plainly


class Constants:
    """Gate values of every channel of every site, without gradients: what copies of a network multiply with.

    Copies share them: a deep copy of a gated network computes with the network's gates, also with those that
    it learns later. A pickle holds them as they are when it is written.

    Args:
        sizes: channels of every gated site.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.set(torch.ones(sum(self.sizes)))

    def set(self, values: Tensor) -> None:
        """Replace all values: ``[channels]``, site after site."""
        self._values = values.detach()
        self._on: dict[torch.device, tuple[Tensor, ...]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The values on a device, one tensor ``[channels]`` for each site."""
        if device not in self._on:
            with torch.inference_mode(False), torch.no_grad():  # they may be read in training later
                self._on[device] = self._values.to(device).split(self.sizes)
        return self._on[device]

    def __deepcopy__(self, memo: dict[int, Any]) -> Constants:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"sizes": self.sizes, "_values": self._values.clone(), "_on": {}}


class GateValues:
    """Gate values of one network that is trained: soft ones that are learnt, or hard ones that are fixed.

    Args:
        sites: for each gated site the gate of every channel, ``[channels]``; -1 where a channel has none, and is
            always open.
        gates: how many gates there are.
        soft: makes the values ``[gates]`` of now, differentiable in what is learnt.
        device: where the network is.
        counted: for norms whose statistics are those of live channels: how many channels each has, and what makes
            of values ``[gates]`` how far these exist, ``[channels]``, norm after norm.

    Attributes:
        constants: what copies of the network see.
        hard: fixed values ``[channels]``, of sites and then of norms, in place of the soft ones; None: those count.

    Example:
        >>> psi = nn.Parameter(torch.tensor([0.0, 2.0]))
        >>> values = GateValues(
        ...     [np.array([0, 1]), np.array([1, -1])], 2, lambda: 2 * psi, torch.device("cpu")
        ... )
        >>> first, second = values.by_site()
        >>> second
        tensor([4., 1.], requires_grad=True)
        >>> (first.sum() + 10 * second.sum()).backward()
        >>> sound = values.pass_gradient_on([psi])
        >>> psi.grad, sound
        (tensor([ 2., 22.]), tensor(True))
    """

    def __init__(
        self,
        sites: Sequence[np.ndarray[Any, Any]],
        gates: int,
        soft: Callable[[], Tensor],
        device: torch.device,
        counted: tuple[Sequence[int], Callable[[Tensor], Tensor]] = ((), lambda gates: gates[:0]),
    ) -> None:
        every = np.concatenate(sites)
        self._index = torch.from_numpy(np.where(every < 0, gates, every)).to(device)
        self._soft = soft
        norms, self._counted = counted
        self.constants = Constants([*(len(site) for site in sites), *norms])
        self.hard: Tensor | None = None
        self._made: Tensor | None = None
        """This step's values ``[channels]``, differentiable in what is learnt."""
        self._leaves: tuple[Tensor, ...] = ()
        """The same by site, cut off: gradients of all backward passes of a step gather here."""

    def publish(self) -> None:
        """Give the values of now to the network and its copies, as constants."""
        with torch.no_grad():
            self.constants.set(self._channels() if self.hard is None else self.hard)

    def fix(self, channels: Tensor) -> None:
        """Compute with hard values from now on: Booleans or numbers ``[channels]``, of sites and then of norms."""
        self.hard = channels.to(self._index.device, torch.float32)
        self.publish()

    def forget(self) -> None:
        """Drop this step's values, their gradients and hard values."""
        self._made, self._leaves, self.hard = None, (), None

    def by_site(self) -> Sequence[Tensor]:
        """The values as the network itself sees them, one tensor ``[channels]`` for each site.

        Where gradients are recorded they are made once a step. Forwards get detached leaves, so any number of
        backward passes may run between two steps; `pass_gradient_on` hands the gradient that has gathered in them
        on to what is learnt. One leaf for each site: the gradient of a slice would be a zero for every gate of the
        network.
        """
        if self.hard is not None or not torch.is_grad_enabled():
            return self.constants.on(self._index.device)
        if not self._leaves:
            # What is saved here is none of the caller's: a checkpointed forward that runs again finds leaves made.
            with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
                self._made = self._channels()
            values = self._made.detach()
            self.constants.set(values)
            parts = values.split(self.constants.sizes)
            self._leaves = tuple(part.requires_grad_(self._made.requires_grad) for part in parts)
        return self._leaves

    def pass_gradient_on(
        self,
        learnt: Sequence[nn.Parameter],
        loss_scale: float = 1.0,
        group: Group = None,
        *,
        own_scaled: bool = True,
    ) -> Tensor:
        """Hand the gathered gradient of the values on to what is learnt, and begin a new step.

        Gates are no parameters of the network, so DistributedDataParallel does not average their gradients. This is
        the one place that all of them pass: averaged here, what is learnt and observed is that of the whole batch.
        Losses of gates alone depend on nothing else, and are then the same on every process.

        Gradients that are not finite are dropped.

        Args:
            learnt: parameters behind the soft values.
            loss_scale: what the loss was multiplied with before its backward pass.
            group: the processes that train together.
            own_scaled: gradients that ``learnt`` have already are multiplied with ``loss_scale`` too.

        Returns:
            A Boolean scalar: False where a gradient was not finite, though no scale explains it.
        """
        sound = torch.ones((), dtype=torch.bool, device=self._index.device)
        gradient = self._gathered(group)
        if gradient is not None:
            if loss_scale != 1.0:
                gradient = gradient / loss_scale
                for p in learnt if own_scaled else []:
                    if p.grad is not None:
                        p.grad /= loss_scale
            else:
                sound = all_finite([gradient])
            if loss_scale == 1.0 or bool(torch.isfinite(gradient).all()):
                assert self._made is not None
                self._made.backward(gradient)
        for p in learnt:
            if p.grad is None:
                continue
            if loss_scale == 1.0:
                finite = all_finite([p.grad])
                sound = sound & finite
                p.grad = torch.where(finite, p.grad, torch.zeros_like(p.grad))
            elif not bool(torch.isfinite(p.grad).all()):
                p.grad = None
        self._made, self._leaves = None, ()
        return sound

    def _gathered(self, group: Group) -> Tensor | None:
        """The gradient of this step's values ``[channels]``, the mean over processes; None where there is none."""
        if self._made is None or not self._made.requires_grad:
            return None
        parts = [leaf.grad for leaf in self._leaves]
        if world(group) == 1 and all(part is None for part in parts):
            return None
        # A process without a backward pass must still take part.
        pairs = zip(self._leaves, parts, strict=True)
        return mean_(torch.cat([torch.zeros_like(leaf) if g is None else g for leaf, g in pairs]), group)

    @plainly
    def _channels(self) -> Tensor:
        gates = self._soft()
        values = torch.cat([gates, gates.new_ones(1)]).index_select(0, self._index)
        return torch.cat([values, self._counted(gates)])


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
