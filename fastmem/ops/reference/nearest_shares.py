"""Shares among the nearest known records in plain PyTorch: one stable sort serves every k."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._registry import Backend, register
from fastmem.ops.episodes import class_means, squared_distances, unit
from fastmem.ops.nearest_shares import Centre

_SMALLEST_DISTANCE = 1e-12


def forward(
    records: Tensor, support: Tensor, members: Tensor, asked: Tensor, centre: Centre, normalise: bool
) -> Tensor:
    """float64 [K, E, n]."""
    known, query = records[support], records[asked]
    gallery = torch.cat([known, class_means(known, members)], dim=1)
    if normalise:
        middle = known.mean(dim=1, keepdim=True) if isinstance(centre, str) else centre
        gallery, query = unit(gallery, middle), unit(query, middle)
    means = torch.tensor([False, True], device=members.device).expand(len(members), 2)
    is_member = torch.cat([members, means], dim=1)
    most = (gallery.shape[1] // 2 - 1) | 1  # the largest odd k
    distance, order = squared_distances(query, gallery).sort(dim=2, stable=True)
    weight = 1 / distance[:, :, :most].clamp_min(_SMALLEST_DISTANCE).double()
    near = is_member[:, None].expand(-1, query.shape[1], -1).gather(2, order[:, :, :most])
    share = torch.where(near, weight, 0).cumsum(2) / weight.cumsum(2)
    return share[:, :, ::2].permute(2, 0, 1)


register(
    Backend(
        op="nearest_shares",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda records, support, members, asked, centre, normalise: None,
        forward=forward,
    )
)
