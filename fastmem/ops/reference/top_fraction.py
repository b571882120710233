"""Selection of the k largest scores by a stable sort: the definition, and the fallback on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._registry import Backend, register


def forward(scores: list[Tensor], count: int) -> tuple[list[Tensor], float | None]:
    """Packed masks of the ``count`` largest of all flat scores and the smallest of them; ``None`` for invalid scores."""
    every = torch.cat(scores)
    if not bool((every >= 0).all()):
        return [], None
    order = torch.sort(every, descending=True, stable=True)
    chosen = torch.zeros_like(every, dtype=torch.bool)
    chosen[order.indices[:count]] = True
    sizes = [score.numel() for score in scores]
    return [pack(mask) for mask in chosen.split(sizes)], float(order.values[count - 1])


def pack(mask: Tensor) -> Tensor:
    """Eight booleans a byte, the first in the lowest bit."""
    padded = torch.nn.functional.pad(mask, (0, -mask.numel() % 8)).view(-1, 8)
    weights = 1 << torch.arange(8, device=mask.device)
    return (padded * weights).sum(1).to(torch.uint8)


register(
    Backend(
        op="top_fraction",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda *args: None,
        forward=forward,
    )
)
