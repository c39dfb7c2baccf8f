"""Global response normalisation of Hugging Face's ConvNeXtV2, spelt out."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN

EPS = 1e-6
"""The literal in their forward."""


class ResponseNorm(ConvNextV2GRN):
    """What is added to a mean over channels is an attribute: of fewer channels it is more."""

    eps: float

    def begin(self) -> None:
        """What theirs has not."""
        self.eps = EPS

    def end(self) -> None:
        del self.eps

    def is_unchanged(self) -> bool:
        """Is it what stands in their forward?"""
        return self.eps == EPS

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[batch, height, width, channels]``, as it reads."""
        size = torch.linalg.vector_norm(hidden_states, ord=2, dim=(1, 2), keepdim=True)
        response = size / (size.mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * (hidden_states * response) + self.bias + hidden_states
