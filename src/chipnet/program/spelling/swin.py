"""Attention in shifted windows of torchvision's Swin transformers, spelt out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

if TYPE_CHECKING:

    class _Base(ShiftedWindowAttention):
        pass

else:
    _Base = object


class _Windows(_Base):
    """What both versions have in common. ``widths``: of queries, of keys and of values, over all heads."""

    widths: list[int]
    scale: float

    def begin(self) -> None:
        """What torchvision's have not."""
        width = self.proj.weight.shape[1]
        self.widths = [width] * 3
        self.scale = float(width // self.num_heads) ** -0.5

    def end(self) -> None:
        del self.widths, self.scale

    def is_unchanged(self) -> bool:
        """Are all widths one, as the scale has it?"""
        widths = {*self.proj.weight.shape, self.qkv.weight.shape[1], *self.widths}
        return len(widths) == 1 and self.scale == float(self.proj.weight.shape[0] // self.num_heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, height, width, channels]``, as it reads."""
        bias = self.get_relative_position_bias()
        _, height, width, _ = x.shape
        down, right = self.window_size
        x = F.pad(x, (0, 0, 0, -width % right, 0, -height % down))
        tall, wide = x.shape[1], x.shape[2]
        shifts = [
            0 if w >= n else s
            for s, w, n in zip(self.shift_size, self.window_size, (tall, wide), strict=True)
        ]
        shifted = sum(shifts) > 0
        if shifted:
            x = torch.roll(x, shifts=(-shifts[0], -shifts[1]), dims=(1, 2))
        # [batch, rows of windows, height of one, columns, width of one, channels]
        x = x.unflatten(2, (-1, right)).unflatten(1, (-1, down)).transpose(2, 3)
        rows, columns = x.shape[1], x.shape[2]
        x = x.flatten(3, 4).flatten(0, 2)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in self._projected(x))
        scores = self._scores(q, k) + bias
        if shifted:
            masks = _shift_masks(x, tall, wide, self.window_size, shifts)
            scores = (scores.unflatten(0, (-1, rows * columns)) + masks[None, :, None]).flatten(0, 1)
        weights = F.dropout(F.softmax(scores, dim=-1), p=self.attention_dropout, training=self.training)
        x = F.linear(weights.matmul(v).transpose(1, 2).flatten(2), self.proj.weight, self.proj.bias)
        x = F.dropout(x, p=self.dropout, training=self.training)
        x = x.unflatten(1, (down, right)).unflatten(0, (-1, rows, columns)).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)
        if shifted:
            x = torch.roll(x, shifts=(shifts[0], shifts[1]), dims=(1, 2))
        return x[:, :height, :width, :].contiguous()

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values ``[windows, tokens, width]``."""
        return F.linear(x, self.qkv.weight, self.qkv.bias).split(self.widths, -1)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * self.scale).matmul(k.transpose(-2, -1))


def _shift_masks(x: Tensor, tall: int, wide: int, window: list[int], shifts: list[int]) -> Tensor:
    """What keeps tokens of one window apart that were not neighbours before the shift ``[windows, tokens,
    tokens]``."""
    part = x.new_zeros((tall, wide))
    down, right = (((0, -w), (-w, -s), (-s, None)) for w, s in zip(window, shifts, strict=True))
    for number, (y, z) in enumerate((y, z) for y in down for z in right):
        part[y[0] : y[1], z[0] : z[1]] = number
    part = part.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0])).transpose(1, 2)
    part = part.flatten(2, 3).flatten(0, 1)
    differ = part.unsqueeze(1) - part.unsqueeze(2)
    return torch.zeros_like(differ).masked_fill(differ != 0, -100.0)


class WindowAttention(_Windows, ShiftedWindowAttention):
    """Attention in shifted windows, whose queries and keys, values, and stream have widths of their own."""


class WindowAttentionV2(_Windows, ShiftedWindowAttentionV2):
    """The same with cosines of queries and keys. The bias of keys is zero, whatever the parameter is."""

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = F.linear(x, self.qkv.weight).split(self.widths, -1)
        if self.qkv.bias is None:
            return q, k, v
        mine, _, theirs = self.qkv.bias.split(self.widths)
        return q + mine, k, v + theirs

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        cosines = F.normalize(q, dim=-1).matmul(F.normalize(k, dim=-1).transpose(-2, -1))
        return cosines * torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
