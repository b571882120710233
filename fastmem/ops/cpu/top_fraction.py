"""Selection of the k largest scores in one read: a sampled bound leaves a few candidates, two histograms rank them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmem.ops._native import cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register
from fastmem.ops.cpu.weight_importance import addresses


def forward(scores: list[Tensor], count: int) -> tuple[list[Tensor], float | None]:
    """Packed masks of the ``count`` largest of all flat scores and the smallest of them; ``None`` for invalid scores."""
    sizes = np.array([score.numel() for score in scores], dtype=np.int64)
    masks = [torch.empty((int(size) + 7) // 8, dtype=torch.uint8) for size in sizes]
    valid, threshold = cpu_module().top_k(addresses(scores), addresses(masks), sizes, count, torch.get_num_threads())
    return (masks, threshold) if valid else ([], None)


def _supports(scores: list[Tensor], count: int) -> str | None:
    if scores[0].device.type != "cpu":
        return f"it computes on the CPU, and these tensors are on {scores[0].device.type}"
    if scores[0].dtype is not torch.float32:
        return "it selects among float32 scores"
    return None


register(
    Backend(
        op="top_fraction",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("top_k"),
        supports=_supports,
        forward=forward,
    )
)
