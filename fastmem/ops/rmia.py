"""The RMIA count: over how many population records does a record win?

Zarifzadeh et al. 2024 (arXiv:2312.03262) score a record by the share of population records z with
``LR(x, z) = r_x / r_z > gamma``, where ``r = p(. | target) / p(.)`` compares the target with its references. In logs
a record wins over z if ``log r_x - log gamma > log r_z``, so sorting the population once and searching in it gives the
same count, bit for bit, in O((N + Z) log Z) instead of the N x Z comparisons of the definition.

Roof: ``8 (2 N + Z)`` bytes for a target; the sort of Z values and N searches in them are bound by latency.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops._checks import require_dtype, require_same_device, require_tensor
from fastmem.ops._registry import select

__all__ = ["rmia"]


def rmia(log_ratio_x: Tensor, log_ratio_z: Tensor, log_gamma: float = 0.0) -> Tensor:
    """Share of the population that each record beats: ``#{z : log_ratio_x - log_gamma > log_ratio_z} / Z``.

    The comparison is strict, so a tie is no win; the left side is rounded once, before it is compared. Where a record
    and a population record tie by construction, reduce their ratios in the same way, or rounding breaks the tie.

    Args:
        log_ratio_x: ``log r_x`` of N records in T targets, float64 [T, N]; infinities compare as usual.
        log_ratio_z: ``log r_z`` of Z population records in the same targets, float64 [T, Z], on the same device.
        log_gamma: Natural logarithm of gamma.

    Returns:
        Scores, float64 [T, N], multiples of 1/Z between 0 and 1; higher = more likely a member.

    Raises:
        InputError: Another dtype or shape, an empty population, a NaN, a threshold that is not finite, or a forced
            backend that cannot run.
    """
    arguments = forward_arguments(log_ratio_x, log_ratio_z, log_gamma)
    return select("rmia", *arguments).forward(*arguments)


def forward_arguments(log_ratio_x: Any, log_ratio_z: Any, log_gamma: Any = 0.0) -> tuple[Tensor, Tensor, float]:
    """Check a public call."""
    for argument, ratios in (("log_ratio_x", log_ratio_x), ("log_ratio_z", log_ratio_z)):
        require_tensor(argument, ratios)
        require_dtype(argument, ratios, (torch.float64,))
        if ratios.ndim != 2:
            raise InputError(argument, f"has shape {list(ratios.shape)}", "give [targets, records]")
        if bad := int(ratios.isnan().sum()):
            raise InputError(argument, f"{bad} of {ratios.numel()} values are NaN", "leave those records out")
    if log_ratio_x.shape[0] != log_ratio_z.shape[0] or log_ratio_z.shape[1] == 0:
        shapes = f"has shape {list(log_ratio_z.shape)} beside log_ratio_x of {list(log_ratio_x.shape)}"
        raise InputError("log_ratio_z", shapes, "give a row per target, with at least one population record")
    require_same_device("log_ratio_z", log_ratio_z, "log_ratio_x", log_ratio_x)
    if isinstance(log_gamma, bool) or not isinstance(log_gamma, numbers.Real) or not math.isfinite(log_gamma):
        raise InputError("log_gamma", f"got {log_gamma!r}", "give a finite number (0 for gamma = 1)")
    return log_ratio_x.detach(), log_ratio_z.detach(), float(log_gamma)
