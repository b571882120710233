"""Label propagation in plain PyTorch: all episodes and parameters as one batch of small products, stopped by mask."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._registry import Backend, register

_PASSES = 20
_FIRST_STOP = 3
_TOLERANCE = 1e-6
# Problems whose matrices are worked on at a time: what they hold should stay in the cache.
_CACHE_VALUES = 1 << 17


def forward(distances: Tensor, apart: Tensor, members: Tensor, lam: Tensor, k: Tensor) -> Tensor:
    """float64 [E, G, n]."""
    episodes, count, prototypes = distances.shape
    grid = lam.shape[1]
    apart = apart.clone()
    apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    rank = apart.argsort(dim=2, stable=True).argsort(dim=2)
    itself = torch.eye(count, dtype=torch.bool, device=apart.device)
    out = distances.new_empty((episodes, grid, count), dtype=torch.float64)
    step = max(1, _CACHE_VALUES // max(1, grid * count * (count + 4 * prototypes)))
    for start in range(0, episodes, step):
        part = slice(start, start + step)
        # With fewer others than k - 1 a record would be joined to itself.
        joined = (rank[part, None] < (k[part, :, None, None] - 1)) & ~itself
        affinity = joined.to(distances.dtype).mul_(lam[part, :, None, None].to(distances.dtype)).flatten(0, 1)
        a = distances[part, None].expand(-1, grid, -1, -1).flatten(0, 1)
        known = members[part, None].expand(-1, grid, -1).flatten(0, 1)
        out[part] = _propagate(a, affinity, known).view(-1, grid, count)
    return out


def _propagate(a: Tensor, affinity: Tensor, members: Tensor) -> Tensor:
    """Float64 [B, n] of B problems a [B, n, P], lam A [B, n, n] and members [B, P], each run until it has converged."""
    out = a.new_empty(a.shape[:2], dtype=torch.float64)
    rows = torch.arange(len(a), device=a.device)
    y = (-a).softmax(dim=2)
    drawn = torch.bmm(affinity, y)
    before = a.new_full((len(a),), torch.inf)
    for number in range(1, _PASSES + 1):
        z = drawn - a
        top = z.amax(dim=2, keepdim=True)
        y = z.sub_(top).exp_()
        total = y.sum(dim=2, keepdim=True)
        y.div_(total)
        former, drawn = drawn, torch.bmm(affinity, y)
        energy = (y * (former - drawn)).sum(dim=(1, 2)) - (total.log_() + top).sum(dim=(1, 2))
        done = (energy - before).abs() <= _TOLERANCE * before.abs() if number >= _FIRST_STOP else None
        before = energy
        if number == _PASSES:
            done = torch.ones_like(before, dtype=torch.bool)
        if done is None or not done.any():
            continue
        out[rows[done]] = _log_odds(former[done] - a[done], members[done]).double()
        left = ~done
        if not left.any():
            break
        rows, a, affinity, members = rows[left], a[left], affinity[left], members[left]
        drawn, before = drawn[left], before[left]
    return out


def _log_odds(z: Tensor, members: Tensor) -> Tensor:
    """[B, n] of z [B, n, P]: the log of the member prototypes' share over that of the others."""
    outside = torch.where(members, 0.0, -torch.inf).to(z.dtype)[:, None]
    inside = torch.where(members, -torch.inf, 0.0).to(z.dtype)[:, None]
    return (z + outside).logsumexp(dim=2) - (z + inside).logsumexp(dim=2)


register(
    Backend(
        op="label_propagation",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda distances, apart, members, lam, k: None,
        forward=forward,
    )
)
