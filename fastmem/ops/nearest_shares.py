"""What the members hold among the nearest known records, for many small episodes at once: SimpleShot's scores.

The gallery of an episode is its known records and the means of the two classes. With d the squared distance of a record
asked about to a row of the gallery, at least 1e-12, the share at k is the sum of 1/d over the member rows among the k
nearest, divided by the same sum over all k of them (Wang et al. 2019, arXiv:1911.04623, in the form of Jimenez-Lopez et
al. 2025, arXiv:2503.09365). All odd k come from one sort.

Roof: ``3 E n (S + 2) d`` flops for the distances; the features are read where they lie, ``8 E d (S + n)`` bytes of a table
that is small beside the caches.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops._checks import require_dtype, require_same_device, require_tensor
from fastmem.ops._registry import select
from fastmem.ops.episodes import require_members, require_numbers

__all__ = ["Centre", "nearest_shares"]

#: What is taken off features: the mean of an episode's support, one vector [d] for all episodes, or nothing.
Centre = Literal["support"] | Tensor | None


def nearest_shares(
    records: Tensor,
    support: Tensor,
    members: Tensor,
    asked: Tensor,
    *,
    centre: Centre = "support",
    normalise: bool = True,
) -> Tensor:
    """Shares of the members among the 1, 3, 5, ... nearest rows of the gallery, up to half of it.

    Args:
        records: Features of all records, [N, d], float32 or float64.
        support: Numbers of the known records of each episode, int64 [E, S].
        members: Which of them are members, bool [E, S], both kinds in each row.
        asked: Numbers of the records asked about, int64 [E, n].
        centre: What is taken off every feature before it is scaled: ``"support"``, a vector [d], or None.
        normalise: Centre features and scale them to unit length, gallery and records alike; else they are left alone.

    Returns:
        float64 [K, E, n] with K = ceil(floor((S + 2) / 2) / 2); of equally near rows the first counts as nearer.

    Raises:
        InputError: Shapes or devices that disagree, another dtype, a record that is not there, an episode of one kind
            only, or a forced backend that cannot run.
    """
    arguments = forward_arguments(records, support, members, asked, centre=centre, normalise=normalise)
    return select("nearest_shares", *arguments).forward(*arguments)


def forward_arguments(
    records: Any, support: Any, members: Any, asked: Any, *, centre: Any = "support", normalise: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor, Centre, bool]:
    """Check a public call."""
    require_tensor("records", records)
    require_dtype("records", records, (torch.float32, torch.float64))
    if records.ndim != 2:
        raise InputError("records", f"has shape {list(records.shape)}", "give [N, d], a row of numbers a record")
    require_numbers("support", support, records)
    require_members(members, tuple(support.shape), records)
    require_numbers("asked", asked, records)
    if len(asked) != len(support):
        raise InputError("asked", f"{len(asked)} episodes beside {len(support)} of support", "give as many")
    if isinstance(centre, Tensor):
        require_same_device("centre", centre, "records", records)
        if centre.shape != records.shape[1:]:
            raise InputError("centre", f"has shape {list(centre.shape)}", f"give [{records.shape[1]}]")
    elif centre is not None and centre != "support":
        raise InputError("centre", f"got {centre!r}", "give 'support', a tensor [d], or None")
    return records.detach(), support, members, asked, centre if normalise else None, bool(normalise)
