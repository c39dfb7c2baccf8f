"""Stratified, seeded choices of images by their labels."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified_choice(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose `count` items so that every class keeps its share, to within one item.

    Each class gets the whole part of count · n_class / N items; what is left goes to the largest remainders,
    ties to the lower class.

    Args:
        labels: int64 [N].
        count: 0 to N.
        seed: which items of each class are taken.

    Returns:
        (chosen, others): int64 indices into `labels`, each sorted; together they are 0 ... N − 1.

    Example:
        >>> chosen, others = stratified_choice(torch.tensor([0, 0, 1, 1, 1, 1]), 3, seed=0)
        >>> torch.tensor([0, 0, 1, 1, 1, 1])[chosen].tolist()
        [0, 1, 1]
        >>> sorted([*chosen.tolist(), *others.tolist()])
        [0, 1, 2, 3, 4, 5]
    """
    N = len(labels)
    if not 0 <= count <= N:
        raise ValueError(f"count must be within 0 and {N}, not {count}")
    generator = torch.Generator().manual_seed(seed)
    classes, sizes = torch.unique(labels, return_counts=True)
    # Integers throughout: shares computed in floats could round differently elsewhere.
    share = [count * int(size) // max(N, 1) for size in sizes]
    remainder = [count * int(size) % max(N, 1) for size in sizes]
    by_remainder = sorted(range(len(share)), key=lambda c: (-remainder[c], c))
    for c in by_remainder[: count - sum(share)]:
        share[c] += 1
    taken = torch.zeros(N, dtype=torch.bool)
    for label, number in zip(classes, share, strict=True):
        members = (labels == label).nonzero().squeeze(1)
        taken[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return taken.nonzero().squeeze(1), (~taken).nonzero().squeeze(1)
