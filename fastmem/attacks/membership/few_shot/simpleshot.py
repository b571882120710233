"""SimpleShot-like nearest neighbours (inductive): members among the nearest known records, weighted by distance.

The gallery is the support and the two class means. Gallery and query go through the same transform
g(f) = (f - m) / max(|f - m|, 1e-6), and the score is the share of 1/d that the members hold among the k nearest, d the
squared distance, at least 1e-12. k is odd, at most half the gallery, and tuned on the validation records by the members
found without a false positive; of equals the largest k is taken (Wang et al. 2019, arXiv:1911.04623, as the few-shot
membership attack of Jimenez-Lopez et al. 2025 uses it; their code left the gallery untransformed and centred on the mean
of all members, which no attacker knows).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.attacks.membership.few_shot.batch import (
    Batch,
    Scored,
    class_means,
    last_best,
    squared_distances,
    true_positives,
)
from fastmem.attacks.membership.few_shot.transform import Transform

__all__ = ["SimpleShot"]

_SMALLEST_DISTANCE = 1e-12


@dataclass(frozen=True, eq=False)
class SimpleShot:
    """Nearest neighbours.

    Args:
        transform: What features go through first, gallery and query alike.
    """

    transform: Transform
    transductive = False

    def __call__(self, batch: Batch) -> Scored:
        """Scores of every episode, for all k at once: the neighbours are sorted once and summed up."""
        support, query, val = self.transform(batch.support, batch.query, batch.val)
        means = self.transform.apply(class_means(batch.support, batch.support_members), batch.support)
        gallery = torch.cat([support, means], dim=1)
        both = torch.tensor([False, True], device=support.device).expand(len(support), 2)
        members = torch.cat([batch.support_members, both], dim=1)
        neighbours = range(1, gallery.shape[1] // 2 + 1, 2)
        of_query = _scores(query, gallery, members, neighbours)
        if val is None or batch.val_members is None:
            choice = torch.full((len(support),), len(neighbours) - 1, device=support.device)
            of_val = None
        else:
            every = _scores(val, gallery, members, neighbours)
            choice = last_best(true_positives(every, batch.val_members))
            of_val = every[choice, torch.arange(len(support), device=choice.device)]
        chosen = of_query[choice, torch.arange(len(support), device=choice.device)]
        return Scored(chosen, of_val, {"k": 2 * choice + 1})

    def values_per_episode(self, support: int, val: int, query: int, width: int) -> int:
        """Features and the distances of each record to the gallery."""
        return (support + val + query) * (width + 6 * (support + 2))


def _scores(asked: Tensor, gallery: Tensor, members: Tensor, neighbours: range) -> Tensor:
    """float64 [k, E, n]."""
    distance, order = squared_distances(asked, gallery).sort(dim=2, stable=True)
    weight = 1 / distance[:, :, : neighbours[-1]].clamp_min(_SMALLEST_DISTANCE)
    member = members[:, None].expand(-1, asked.shape[1], -1).gather(2, order[:, :, : neighbours[-1]])
    share = torch.where(member, weight, 0).cumsum(2) / weight.cumsum(2)
    return share[:, :, :: neighbours.step].permute(2, 0, 1)
