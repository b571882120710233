"""The RMIA count in plain PyTorch: sort the population, search in it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._registry import Backend, register


def forward(log_ratio_x: Tensor, log_ratio_z: Tensor, log_gamma: float) -> Tensor:
    """See :func:`fastmem.ops.rmia.rmia`; the left insertion point is the number of strictly smaller values."""
    beaten = torch.searchsorted(log_ratio_z.contiguous().sort(dim=1).values, (log_ratio_x - log_gamma).contiguous())
    return beaten.double() / log_ratio_z.shape[1]


register(
    Backend(
        op="rmia",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda log_ratio_x, log_ratio_z, log_gamma: None,
        forward=forward,
    )
)
