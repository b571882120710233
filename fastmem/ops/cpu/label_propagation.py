"""Label propagation by the C++ kernel: one problem after the other in the first cache, neighbours as lists."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._native import cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register


def forward(distances: Tensor, apart: Tensor, members: Tensor, lam: Tensor, k: Tensor) -> Tensor:
    """float64 [E, G, n]."""
    episodes, count, prototypes = distances.shape
    numbers = [tensor.double().contiguous() for tensor in (distances, apart, lam)]
    members, k = members.contiguous(), k.contiguous()
    log_odds = torch.empty((episodes, lam.shape[1], count), dtype=torch.float64)
    cpu_module().label_propagation(
        numbers[0].data_ptr(),
        numbers[1].data_ptr(),
        members.data_ptr(),
        numbers[2].data_ptr(),
        k.data_ptr(),
        log_odds.data_ptr(),
        episodes,
        count,
        prototypes,
        lam.shape[1],
        torch.get_num_threads(),
    )
    return log_odds


def _supports(distances: Tensor, *_: object) -> str | None:
    device = distances.device.type
    return None if device == "cpu" else f"it computes on the CPU, and these tensors are on {device}"


register(
    Backend(
        op="label_propagation",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("label_propagation"),
        supports=_supports,
        forward=forward,
    )
)
