"""``nn.MultiheadAttention``, spelt out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.MultiheadAttention):
    """Multi-head attention whose queries and keys, values, and stream have widths of their own.

    Parameters, arguments and results are those of ``nn.MultiheadAttention``. ``widths``: of queries, of keys and of
    values, over all heads; ``scale``: what products of queries and keys are multiplied by.

    Example:
        >>> from chipnet.program.spelling import spell
        >>> plain = nn.MultiheadAttention(8, 2).double()
        >>> x = torch.randn(5, 3, 8, dtype=torch.float64)
        >>> before = plain(x, x, x)[0]
        >>> torch.allclose(spell(plain)(x, x, x)[0], before)
        True
    """

    widths: list[int]
    scale: float

    def begin(self) -> None:
        """What PyTorch's has not."""
        self.widths = [self.embed_dim] * 3
        self.scale = float(self.head_dim) ** -0.5
        self._qkv_same_embed_dim = False  # the fused layer of PyTorch has one width

    def end(self) -> None:
        del self.widths, self.scale
        self._qkv_same_embed_dim = self.in_proj_weight is not None

    def is_unchanged(self) -> bool:
        """Is every width what it was?"""
        read = [(self.in_proj_weight, self.embed_dim), (self.q_proj_weight, self.embed_dim)]
        read += [(self.k_proj_weight, self.kdim), (self.v_proj_weight, self.vdim)]
        same = all(weight is None or weight.shape[1] == width for weight, width in read)
        return same and {self.out_proj.weight.shape[0], *self.widths} == {self.embed_dim}

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        one = query is key and key is value
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value, one and self.in_proj_weight is not None)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                _followed(x, b.expand(x.shape[0], -1, -1)) for x, b in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(q, k, key_padding_mask, None if causal else attn_mask)
        drop = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.scale).matmul(k.transpose(-2, -1))
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, drop) if drop > 0 else weights
            out = weights.matmul(v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, drop, causal, scale=self.scale)
        out = F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, one: bool) -> tuple[Tensor, ...]:
        """Queries, keys and values ``[batch, tokens, width]``."""
        if one:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).split(self.widths, -1)
        matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            matrices = self.in_proj_weight.split(self.widths)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(self.widths)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases, strict=True))

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """What is added to scores ``[batch, heads, queries, keys]``; None: nothing."""
        padding, mask = (None if m is None else _added(m, q.dtype) for m in (padding, mask))
        if mask is not None:
            mask = mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask[None, None]
        if padding is not None:
            padding = (padding if padding.dim() == 2 else padding[None])[:, None, None]
        both = padding if mask is None else mask
        if mask is not None and padding is not None:
            both = mask + padding
        missing = 0 if both is None else k.shape[2] - both.shape[-1]
        return F.pad(both, (0, missing)) if both is not None and missing else both


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of booleans as numbers that are added to scores."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _followed(x: Tensor, by: Tensor) -> Tensor:
    """One more token at the end."""
    return torch.cat([x, by], 1)
