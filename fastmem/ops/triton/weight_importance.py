"""Weight importance by the Triton kernel: all parameters in one launch over a table of chunks.

Roof: memory traffic, 16 bytes a float32 weight (12 where the scores are new); the table adds 32 bytes a chunk.

Reasoned, compiled ahead of time and run in Triton's interpreter, but not yet measured: no GPU was at hand.
"""

# Launching a kernel adds options to its arguments.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmem.ops._registry import Backend, register
from fastmem.ops.triton import OPTIONS, launching, why_elsewhere, why_unavailable
from fastmem.ops.triton._chunks import BLOCK, chunk_table

__all__ = ["forward"]


def forward(
    scores: list[Tensor], weights: list[Tensor], gradients: list[Tensor], kind: str, scale: float, overwrite: bool
) -> None:
    """Add the importance of each weight to its score, or set it."""
    from fastmem.ops.triton._importance_kernels import accumulate_importance

    table = chunk_table([(scores, 1), (weights, 1), (gradients, 1)])
    if len(table) == 0:
        return
    with launching(table):
        accumulate_importance[(len(table),)](
            table, float(scale), KIND=kind, OVERWRITE=overwrite, MODEL=_element_type(weights[0].dtype),
            BLOCK=BLOCK, num_warps=4, **OPTIONS,
        )  # fmt: skip


def _element_type(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype]


def _supports(scores: list[Tensor], weights: list[Tensor], *_: object) -> str | None:
    if weights[0].dtype == torch.float64:
        return "of float64 weights: Triton hands the scale over in float32"
    return why_elsewhere(weights[0])


register(
    Backend(
        op="weight_importance",
        name="triton",
        # On CPU tensors (the interpreter) it serves tests, and never by itself.
        priority=lambda scores, weights, *_: -1 if weights[0].device.type == "cpu" else 30,
        available=why_unavailable,
        supports=_supports,
        forward=forward,
    )
)
