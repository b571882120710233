"""Weight importance by the C++ kernel: all tensors in one call, split into pieces that the threads share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmem.ops._native import DTYPE_CODES, cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register
from fastmem.ops.weight_importance import KINDS


def forward(
    scores: list[Tensor], weights: list[Tensor], gradients: list[Tensor], kind: str, scale: float, overwrite: bool
) -> None:
    """Add the importance of each weight to its score, or set it."""
    cpu_module().weight_importance(
        addresses(scores),
        addresses(weights),
        addresses(gradients),
        np.array([weight.numel() for weight in weights], dtype=np.int64),
        DTYPE_CODES[weights[0].dtype],
        KINDS.index(kind),
        scale,
        overwrite,
        torch.get_num_threads(),
    )


def addresses(tensors: list[Tensor]) -> np.ndarray:
    """Where the memory of each tensor begins, int64."""
    return np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64)


def _supports(scores: list[Tensor], weights: list[Tensor], *_: object) -> str | None:
    device = weights[0].device.type
    return None if device == "cpu" else f"it computes on the CPU, and these tensors are on {device}"


register(
    Backend(
        op="weight_importance",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("weight_importance"),
        supports=_supports,
        forward=forward,
    )
)
