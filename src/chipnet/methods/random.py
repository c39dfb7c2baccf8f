"""A random order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from chipnet.methods.gradual import Gradual


class Random(Gradual):
    """Keeps channels in a random order, the same from beginning to end. Any method must beat it."""

    name = "random"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order = torch.rand(self.analysis.gates, generator=self.generator, dtype=torch.float64)

    def scores(self) -> Tensor:
        return self.order

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "order": self.order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.order = state["order"]
