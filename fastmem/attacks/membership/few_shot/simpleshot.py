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
from typing import Any

import torch

from fastmem.attacks.membership.few_shot.batch import Batch, Scored, last_best, true_positives
from fastmem.attacks.membership.few_shot.transform import Transform
from fastmem.ops.nearest_shares import nearest_shares

__all__ = ["SimpleShot"]


@dataclass(frozen=True, eq=False)
class SimpleShot:
    """Nearest neighbours.

    Args:
        transform: What features go through first, gallery and query alike.
    """

    transform: Transform
    transductive = False

    def __call__(self, batch: Batch) -> Scored:
        """Scores of every episode, for all k at once."""
        known = batch.records, batch.support_rows, batch.support_members
        centre = "support" if isinstance(self.transform.centre, str) else self.transform.given(batch.records)
        options: dict[str, Any] = {"centre": centre, "normalise": self.transform.normalise}
        of_query = nearest_shares(*known, batch.query_rows, **options)
        episode = torch.arange(of_query.shape[1], device=of_query.device)
        if batch.val_rows is None or batch.val_members is None:
            choice, of_val = torch.full_like(episode, len(of_query) - 1), None
        else:
            every = nearest_shares(*known, batch.val_rows, **options)
            choice = last_best(true_positives(every, batch.val_members))
            of_val = every[choice, episode]
        return Scored(of_query[choice, episode], of_val, {"k": 2 * choice + 1})

    def values_per_episode(self, support: int, val: int, query: int, width: int) -> int:
        """Features and the distances of each record to the gallery."""
        return (support + val + query) * (width + 6 * (support + 2))
