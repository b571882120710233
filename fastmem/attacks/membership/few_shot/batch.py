"""What every few-shot learner is handed and gives back: a batch of independent episodes.

An episode is a small problem of its own: a few records known to be members or not (the support), a few more to tune on
(the validation records), and the records asked about (the query). Episodes are the first axis of every tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Batch", "Learner", "Scored", "class_means", "last_best", "squared_distances", "true_positives", "unit"]

# Below this a vector has no direction.
_SMALLEST_NORM = 1e-6


@dataclass(frozen=True, eq=False)
class Batch:
    """Episodes side by side.

    Args:
        support: Features [E, S, d] (for a learner that trains the network: its inputs [E, S, ...]).
        support_members: bool [E, S], both classes in each row.
        query: Features [E, Q, d] of the records asked about.
        val: Features [E, V, d] of the records to tune on, or None: then learners take their default parameters.
        val_members: bool [E, V].
    """

    support: Tensor
    support_members: Tensor
    query: Tensor
    val: Tensor | None = None
    val_members: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """What a learner says about a batch.

    Args:
        query: float64 [E, Q], higher = more likely a member.
        val: float64 [E, V] under the parameters that were chosen on them, or None.
        params: The parameters chosen, each [E].
    """

    query: Tensor
    val: Tensor | None
    params: Mapping[str, Tensor] = field(default_factory=dict)


class Learner(Protocol):
    """One way of telling members from non-members by a few examples."""

    @property
    def transductive(self) -> bool:
        """Whether a record's score depends on the other records asked about."""
        ...

    def __call__(self, batch: Batch) -> Scored:
        """Scores of a batch of episodes; an episode's scores do not depend on the batch it is in."""
        ...

    def values_per_episode(self, support: int, val: int, query: int, width: int) -> int:
        """About how many numbers it holds at a time for one episode of these sizes."""
        ...


def class_means(features: Tensor, members: Tensor) -> Tensor:
    """Mean features of the non-members and of the members, [E, 2, d], of [E, S, d] and bool [E, S]."""
    weight = torch.stack([~members, members], dim=1).to(features.dtype)
    return torch.bmm(weight / weight.sum(dim=2, keepdim=True), features)


def unit(features: Tensor, centre: Tensor | None) -> Tensor:
    """(f - m) / max(|f - m|, 1e-6), rows of [E, n, d]; without a centre m = 0."""
    moved = features if centre is None else features - centre
    return moved / moved.norm(dim=-1, keepdim=True).clamp_min(_SMALLEST_NORM)


def squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Squared Euclidean distances [E, n, m] between [E, n, d] and [E, m, d]."""
    ends = rows.square().sum(dim=2)[:, :, None] + columns.square().sum(dim=2)[:, None, :]
    return torch.baddbmm(ends, rows, columns.mT, alpha=-2).clamp_min_(0)


def true_positives(scores: Tensor, members: Tensor, cap: int = 0) -> Tensor:
    """Most members found with at most ``cap`` false positives, ties accepted whole: int64 [...] of [..., n] scores."""
    best, order = scores.sort(dim=-1, descending=True, stable=True)
    true = members.expand_as(scores).gather(-1, order)
    tp, fp = true.cumsum(-1), (~true).cumsum(-1)
    last = torch.ones_like(true)
    last[..., :-1] = best[..., 1:] != best[..., :-1]
    return torch.where(last & (fp <= cap), tp, 0).amax(-1)


def last_best(values: Tensor) -> Tensor:
    """Index of the largest value along the first axis; of equals the last one: [G, E] -> [E]."""
    return values.shape[0] - 1 - values.flip(0).argmax(dim=0)
