"""The label statistics by the C++ kernels: rows of up to 64 classes side by side in vector lanes, longer ones whole.

Roof: memory traffic, ``B C e`` bytes read and 4 or 8 a statistic written; up to a few hundred classes the exponentials
bind first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._native import DTYPE_CODES, cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register


def forward(logits: Tensor, labels: Tensor, margin_only: bool) -> tuple[Tensor | None, ...]:
    """Margin, loss, hinge, max_prob and entropy, each of the leading shape; the last four ``None`` if not wanted."""
    shape, dtype = logits.shape[:-1], accumulation_dtype(logits.dtype)
    stats = [torch.empty(shape, dtype=dtype) for _ in range(1 if margin_only else 5)]
    cpu_module().logit_stats_forward(
        logits.data_ptr(),
        tuple(logits.shape),
        logits.stride(),
        labels.data_ptr(),
        tuple(labels.shape),
        labels.stride(),
        DTYPE_CODES[logits.dtype],
        tuple(stat.data_ptr() for stat in stats),
        torch.get_num_threads(),
    )
    return (*stats, *[None] * (5 - len(stats)))


def backward(grads: Sequence[Tensor | None], logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the logits from those of the five statistics (``None``: not used)."""
    shape, dtype = logits.shape[:-1], accumulation_dtype(logits.dtype)
    dense = [None if grad is None else grad.expand(shape).to(dtype).contiguous() for grad in grads]
    gradient = torch.empty(logits.shape, dtype=logits.dtype)
    cpu_module().logit_stats_backward(
        logits.data_ptr(),
        tuple(logits.shape),
        logits.stride(),
        labels.data_ptr(),
        tuple(labels.shape),
        labels.stride(),
        DTYPE_CODES[logits.dtype],
        tuple(0 if grad is None else grad.data_ptr() for grad in dense),
        gradient.data_ptr(),
        torch.get_num_threads(),
    )
    return gradient


def _supports(logits: Tensor, labels: Tensor, margin_only: bool) -> str | None:
    device = logits.device.type
    return None if device == "cpu" else f"it computes on the CPU, and these logits are on {device}"


register(
    Backend(
        op="logit_stats",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("logit_stats_forward", "logit_stats_backward"),
        supports=_supports,
        forward=forward,
        backward=backward,
    )
)
