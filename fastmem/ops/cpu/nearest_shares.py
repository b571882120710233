"""Shares among the nearest known records by the C++ kernel: each episode in the first cache, insertion instead of a sort."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._native import cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register
from fastmem.ops.nearest_shares import Centre


def forward(
    records: Tensor, support: Tensor, members: Tensor, asked: Tensor, centre: Centre, normalise: bool
) -> Tensor:
    """float64 [K, E, n]; in memory the K of a record lie next to each other."""
    (episodes, known), count = support.shape, asked.shape[1]
    records = records.double().contiguous()
    support, members, asked = (tensor.contiguous() for tensor in (support, members, asked))
    given = centre.double().contiguous() if isinstance(centre, Tensor) else None
    sizes = ((known + 2) // 2 + 1) // 2
    shares = torch.empty((episodes, count, sizes), dtype=torch.float64)
    cpu_module().nearest_shares(
        records.data_ptr(),
        support.data_ptr(),
        members.data_ptr(),
        asked.data_ptr(),
        0 if given is None else given.data_ptr(),
        shares.data_ptr(),
        episodes,
        known,
        count,
        records.shape[1],
        sizes,
        isinstance(centre, str),
        normalise,
        torch.get_num_threads(),
    )
    return shares.permute(2, 0, 1)


def _supports(records: Tensor, *_: object) -> str | None:
    device = records.device.type
    return None if device == "cpu" else f"it computes on the CPU, and these tensors are on {device}"


register(
    Backend(
        op="nearest_shares",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("nearest_shares"),
        supports=_supports,
        forward=forward,
    )
)
