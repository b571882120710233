"""What features go through before distances are taken: the same for the known records and for those asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmem.ops.episodes import unit

__all__ = ["Transform"]


@dataclass(frozen=True, eq=False)
class Transform:
    """Centring and scaling to unit length.

    Args:
        centre: ``"support"`` (the mean of an episode's support), a mean [d] known from public data, or None.
        normalise: Whether features are centred and scaled at all; else they are left as they are.
    """

    centre: Any = "support"
    normalise: bool = True

    def __call__(self, support: Tensor, query: Tensor, val: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Support, query and validation features, all by the same means."""
        return (
            self.apply(support, support),
            self.apply(query, support),
            None if val is None else self.apply(val, support),
        )

    def apply(self, features: Tensor, support: Tensor) -> Tensor:
        """Features [E, n, d] transformed by the support [E, S, d] of their episodes."""
        if not self.normalise:
            return features
        return unit(
            features, support.mean(dim=1, keepdim=True) if isinstance(self.centre, str) else self.given(features)
        )

    def given(self, like: Tensor) -> Tensor | None:
        """The centre that is given from outside, [d] of the dtype and on the device of another tensor."""
        if self.centre is None or isinstance(self.centre, str):
            return None
        return torch.as_tensor(self.centre, dtype=like.dtype, device=like.device)
