"""The RMIA count by the C++ kernel: rows are sorted, and records searched, on all threads."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._native import cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register


def forward(log_ratio_x: Tensor, log_ratio_z: Tensor, log_gamma: float) -> Tensor:
    """See :func:`fastmem.ops.rmia.rmia`."""
    x, z = log_ratio_x.contiguous(), log_ratio_z.contiguous()
    scores = torch.empty_like(x)
    cpu_module().rmia(
        x.data_ptr(), z.data_ptr(), scores.data_ptr(), *x.shape, z.shape[1], log_gamma, torch.get_num_threads()
    )
    return scores


def _supports(log_ratio_x: Tensor, log_ratio_z: Tensor, log_gamma: float) -> str | None:
    device = log_ratio_x.device.type
    return None if device == "cpu" else f"it computes on the CPU, and these tensors are on {device}"


register(
    Backend(
        op="rmia",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("rmia"),
        supports=_supports,
        forward=forward,
    )
)
