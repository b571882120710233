"""Statistics of logits and labels by the CUDA kernels: allocation, strides and launches.

Roof: memory traffic, for B rows of C classes of e bytes. Forward reads each logit once, ``B C e`` bytes, 8 B for labels,
and writes 4 B for each statistic. Backward computes them again from the logits rather than saving them: ``2 B C e``
bytes where a row stays on the chip (up to 2048 classes), ``3 B C e`` above. csrc/cuda/logit_stats_*.cu has the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._gpu_choice import priority
from fastmem.ops._leading import leading
from fastmem.ops._native import cuda_module
from fastmem.ops._registry import Backend, register
from fastmem.ops.cuda import address, logits_argument, target, why_unavailable, why_unsupported


def forward(logits: Tensor, labels: Tensor, margin_only: bool) -> tuple[Tensor | None, ...]:
    """Margin, loss, hinge, max_prob and entropy, each of the leading shape; the last four ``None`` if not wanted."""
    shape, sizes, (logit_strides, label_strides) = leading(logits, labels.unsqueeze(-1))
    dtype = accumulation_dtype(logits.dtype)
    wanted = 1 if margin_only else 5
    statistics = [logits.new_empty(shape, dtype=dtype) for _ in range(wanted)] + [None] * (5 - wanted)
    where = target(logits)
    workspace, segments = _workspace(logits, shape.numel(), where[0], needed_from=2)
    cuda_module().logit_stats_forward(
        where,
        sizes,
        logits.shape[-1],
        logits_argument(logits, logit_strides),
        (labels.data_ptr(), label_strides),
        [address(statistic) for statistic in statistics],
        address(workspace),
        segments,
    )
    return tuple(statistics)


def backward(grads: Sequence[Tensor | None], logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient with respect to the logits, in their shape and dtype."""
    shape, sizes, (logit_strides, label_strides) = leading(logits, labels.unsqueeze(-1))
    dtype = accumulation_dtype(logits.dtype)
    rows = [None if grad is None else grad.to(dtype).contiguous() for grad in grads]
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    where = target(logits)
    workspace, segments = _workspace(logits, shape.numel(), where[0], needed_from=1)
    cuda_module().logit_stats_backward(
        where,
        sizes,
        logits.shape[-1],
        logits_argument(logits, logit_strides),
        (labels.data_ptr(), label_strides),
        [address(row) for row in rows],
        address(dlogits),
        address(workspace),
        segments,
    )
    return dlogits


def _workspace(logits: Tensor, rows: int, device: int, needed_from: int) -> tuple[Tensor | None, int]:
    """Room for the sums of long rows' segments, from this number of segments on, and their number."""
    module = cuda_module()
    segments = module.row_segments(device, rows, logits.shape[-1])
    if segments < needed_from:
        return None, segments
    return logits.new_empty(rows * segments * module.LOGIT_SUMS, dtype=accumulation_dtype(logits.dtype)), segments


def _supports(logits: Tensor, labels: Tensor, margin_only: bool) -> str | None:
    return why_unsupported(logits, labels.unsqueeze(-1))


register(
    Backend(
        op="logit_stats",
        name="cuda",
        priority=lambda logits, labels, margin_only: priority("cuda", logits),
        available=why_unavailable,
        supports=_supports,
        forward=forward,
        backward=backward,
    )
)
