"""Leave-one-out moments in plain PyTorch: one target at a time, by masks.

Sums run over the models in their order, with zeros for those that are no references, so that equal sets of values
give equal bits wherever they stand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._registry import Backend, register
from fastmem.ops.leave_one_out import reference_masks


def forward(
    phi: Tensor, keep: Tensor, targets: Tensor, partners: Tensor, rules: Tensor, first_sample: int, median: bool
) -> tuple[Tensor | None, ...]:
    """The fields of :class:`fastmem.ops.lira_moments.LiraMoments`, in order."""
    phi = phi.double()
    result: list[Tensor | None] = []
    for _ in ("in", "out"):
        count = torch.empty((len(targets), keep.shape[1]), dtype=torch.int32, device=phi.device)
        mean, var, middle = (phi.new_empty((len(targets), *phi.shape[1:])) for _ in range(3))
        result += [count, mean, var, middle if median else None]

    plan = zip(targets.tolist(), partners.tolist(), rules.tolist(), strict=True)
    for row, (target, partner, rule) in enumerate(plan):
        groups = reference_masks(keep, target, partner, rule, first_sample)
        moments = [*_moments(phi, groups[0], median), *_moments(phi, groups[1], median)]
        for whole, part in zip(result, moments, strict=True):
            if whole is not None and part is not None:
                whole[row] = part
    return tuple(result)


def _moments(phi: Tensor, group: Tensor, median: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Count [N], mean, variance and median [N, A] over the models of one group, bool [M, N]."""
    count = group.sum(0)
    n = count.double().unsqueeze(-1)  # 0/0: the moments of an empty group are NaN
    mean = _sum(phi, group) / n
    var = _sum((phi - mean).square(), group) / n
    return count, mean, var, _median(phi, group, count) if median else None


def _sum(values: Tensor, group: Tensor) -> Tensor:
    total = torch.zeros_like(values[0])
    for row, chosen in zip(values, group, strict=True):
        total += row.where(chosen.unsqueeze(-1), 0.0)
    return total


def _median(phi: Tensor, group: Tensor, count: Tensor) -> Tensor:
    ranked = phi.where(group.unsqueeze(-1), torch.inf).sort(dim=0).values
    last = count.clamp(min=1) - 1
    places = torch.stack([last // 2, (last + 1) // 2]).unsqueeze(-1).expand(2, *phi.shape[1:])
    middle = ranked.gather(0, places).mean(0)
    undefined = (phi.isnan() & group.unsqueeze(-1)).any(0) | (count == 0).unsqueeze(-1)
    return middle.masked_fill(undefined, torch.nan)


register(
    Backend(
        op="lira_moments",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda phi, keep, targets, partners, rules, first_sample, median: None,
        forward=forward,
    )
)
