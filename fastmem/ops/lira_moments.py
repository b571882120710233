"""Leave-one-out moments of shadow models, for every target model at once: the statistics behind LiRA and its kin.

For a target, a record n and a query a: count, mean, variance and median of ``phi`` over the target's IN references
(other models that trained on n) and over its OUT references (Carlini et al. 2022, arXiv:2112.03570, algorithm 1),
without ever holding a [T, M, N] array. :mod:`fastmem.ops.leave_one_out` says which models are references.

Every group of a record serves all targets: leaving out one model changes its sums by one term and shifts its median by
at most one place, so M targets cost O(M A N) and not O(M^2 A N). Roof: one read of ``phi`` and one write of the
results, ``8 A N (M + 6 T)`` bytes in float64 with medians.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops._checks import require_dtype, require_same_device, require_tensor
from fastmem.ops._registry import select
from fastmem.ops.leave_one_out import References, leave_one_out, require_mask

__all__ = ["LiraMoments", "lira_moments"]


class LiraMoments(NamedTuple):
    """Moments over the references of every target: float64 [T, N, A], counts int32 [T, N]; strides may be any.

    The variance divides by n (ddof 0). Of an empty group everything but the count is NaN; of a single model the
    variance is 0, so who divides by it must ask for two. Medians are None unless they were asked for.
    """

    n_in: Tensor
    mean_in: Tensor
    var_in: Tensor
    median_in: Tensor | None
    n_out: Tensor
    mean_out: Tensor
    var_out: Tensor
    median_out: Tensor | None


def lira_moments(
    phi: Tensor,
    keep: Tensor,
    references: References | None = None,
    *,
    median: bool = False,
    first_sample: int = 0,
) -> LiraMoments:
    """Moments of ``phi`` over the IN and the OUT references of every target and record.

    The mean depends on nothing but the set of a group's values: equal sets give equal bits, whoever is the target and
    wherever the record stands. RMIA's ties rely on it.

    Args:
        phi: A statistic of M models on N records under A queries, [M, N, A], float64 or float32, any strides. A NaN
            makes the moments of its group NaN.
        keep: Membership, bool [M, N], on the same device.
        references: A plan of :func:`~fastmem.ops.leave_one_out.leave_one_out`; None for all models as targets, with
            equal counts.
        median: Give medians too (of an even number the mean of the two in the middle).
        first_sample: If ``phi`` is a block of the records the plan was made for: the number of its first one. The
            choice of models that are cut depends on it.

    Returns:
        :class:`LiraMoments`. With all models as targets it is several times the size of ``phi``: for many records
        call it on blocks of them, with one plan for all.

    Raises:
        InputError: Shapes or devices that disagree, a mask that is not boolean, a ``phi`` of another dtype, a plan for
            other models, or a forced backend that cannot run.
    """
    arguments = forward_arguments(phi, keep, references, median=median, first_sample=first_sample)
    return LiraMoments(*select("lira_moments", *arguments).forward(*arguments))


def forward_arguments(
    phi: Any, keep: Any, references: References | None = None, *, median: bool = False, first_sample: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, bool]:
    """Check a public call and unpack its plan into what the implementations take."""
    require_tensor("phi", phi)
    require_dtype("phi", phi, (torch.float32, torch.float64))
    require_mask(keep)
    if phi.ndim != 3 or phi.shape[:2] != keep.shape:
        raise InputError("phi", f"has shape {list(phi.shape)} for keep {list(keep.shape)}", "give [M, N, A]")
    require_same_device("phi", phi, "keep", keep)
    targets, partners, rules = leave_one_out(keep) if references is None else references
    ranges = ((targets, 0, keep.shape[0]), (partners, -1, keep.shape[0]), (rules, 0, 3))
    if any(((part < least) | (part >= end)).any() or part.shape != targets.shape for part, least, end in ranges):
        raise InputError("references", f"do not fit the {keep.shape[0]} models of keep", "plan them on this keep")
    return phi.detach(), keep, targets, partners, rules, int(first_sample), bool(median)
