"""What the processes of one training have to agree on: sums, means and flags over `torch.distributed`.

With one process, or without a process group, everything here gives back what it was given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Group = Any
"""A `torch.distributed` process group, None for the default one, or False for none at all."""


def world(group: Group = None) -> int:
    """Processes that train together."""
    alone = group is False or not dist.is_available() or not dist.is_initialized()
    return 1 if alone else dist.get_world_size(group)


def mean_(tensor: Tensor, group: Group = None) -> Tensor:
    """The mean over all processes, in place: the same bits on each."""
    if (n := world(group)) > 1:
        dist.all_reduce(tensor, group=group)
        tensor /= n
    return tensor


def first_(tensor: Tensor, group: Group = None) -> Tensor:
    """What the first process has, in place."""
    if world(group) > 1:
        dist.broadcast(tensor, group=group, group_src=0)
    return tensor


def sums(values: Sequence[float], device: torch.device) -> list[float]:
    """Every value summed over all processes."""
    if world() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def gathered(value: Any) -> list[Any]:
    """`value` of every process, in order."""
    if world() == 1:
        return [value]
    everyone: list[Any] = [None] * world()
    dist.all_gather_object(everyone, value)
    return everyone


@torch.no_grad()
def same_buffers(model: nn.Module) -> None:
    """Give running statistics their mean over all processes; other buffers are the first process's."""
    if world() > 1:
        for buffer in model.buffers():
            (mean_ if buffer.is_floating_point() else first_)(buffer)


def leave() -> None:
    """At the end of a program: wait for all processes, a minute at most, then close what connects them.

    One that exits while another still listens to it makes that one fail. One that has failed has said so itself.
    """
    if world() > 1:
        with contextlib.suppress(RuntimeError):
            dist.barrier(async_op=True).wait(timedelta(minutes=1))
        dist.destroy_process_group()
