"""What every few-shot learner is handed and gives back: a batch of independent episodes.

An episode is a small problem of its own: a few records known to be members or not (the support), a few more to tune on
(the validation records), and the records asked about (the query). Episodes are the first axis of every tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Batch", "Learner", "Scored", "last_best", "true_positives"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Episodes side by side, as numbers of the rows of one table of records: an episode needs no copy of its features.

    Args:
        records: Features [N, d] (for a learner that trains the network: its inputs [N, ...]).
        support_rows: int64 [E, S].
        support_members: bool [E, S], both classes in each row.
        query_rows: int64 [E, Q], the records asked about.
        val_rows: int64 [E, V], the records to tune on, or None: then learners take their default parameters.
        val_members: bool [E, V].
    """

    records: Tensor
    support_rows: Tensor
    support_members: Tensor
    query_rows: Tensor
    val_rows: Tensor | None = None
    val_members: Tensor | None = None

    @classmethod
    def of(
        cls,
        support: Tensor,
        support_members: Tensor,
        query: Tensor,
        val: Tensor | None = None,
        val_members: Tensor | None = None,
    ) -> Batch:
        """Episodes of the features themselves, [E, S, ...], [E, Q, ...] and [E, V, ...]."""
        parts = [support, query, *([] if val is None else [val])]
        rows, start = [], 0
        for part in parts:
            count = part.shape[0] * part.shape[1]
            rows.append(torch.arange(start, start + count, device=part.device).view(part.shape[:2]))
            start += count
        table = torch.cat([part.flatten(0, 1) for part in parts])
        return cls(table, rows[0], support_members, rows[1], None if val is None else rows[2], val_members)

    @cached_property
    def support(self) -> Tensor:
        """Features of the support [E, S, ...]."""
        return self.records[self.support_rows]

    @cached_property
    def query(self) -> Tensor:
        """Features of the records asked about [E, Q, ...]."""
        return self.records[self.query_rows]

    @cached_property
    def val(self) -> Tensor | None:
        """Features of the records to tune on [E, V, ...]."""
        return None if self.val_rows is None else self.records[self.val_rows]


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


def true_positives(scores: Tensor, members: Tensor, cap: int = 0) -> Tensor:
    """Most members found with at most ``cap`` false positives, ties accepted whole: int64 [...] of [..., n] scores."""
    if cap == 0:
        first = scores.masked_fill(members, -torch.inf).amax(-1, keepdim=True)
        return (members & (scores > first)).sum(-1)
    best, order = scores.sort(dim=-1, descending=True, stable=True)
    true = members.expand_as(scores).gather(-1, order)
    tp, fp = true.cumsum(-1), (~true).cumsum(-1)
    last = torch.ones_like(true)
    last[..., :-1] = best[..., 1:] != best[..., :-1]
    return torch.where(last & (fp <= cap), tp, 0).amax(-1)


def last_best(values: Tensor) -> Tensor:
    """Index of the largest value along the first axis; of equals the last one: [G, E] -> [E]."""
    return values.shape[0] - 1 - values.flip(0).argmax(dim=0)
