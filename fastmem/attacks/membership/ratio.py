"""The probability of the true class in a target relative to its references: what RMIA and BASE are made of.

With p = softmax(h/T)_y the log ratio of a record is ``log p(target) - log pbar``. pbar is what models at large say of
it, one half of which trained on it (Zarifzadeh et al. 2024, arXiv:2312.03262):

- online: ``pbar = (mean over IN + mean over OUT) / 2``;
- offline: ``pbar = ((1 + a) mean over OUT + (1 - a)) / 2``, taking IN models to say ``a p_out + (1 - a)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastmem.attacks.membership.panel import Panel
from fastmem.errors import InputError
from fastmem.ops.lira_moments import LiraMoments

__all__ = ["at_large", "log_ratios", "margin_name", "mean_out", "offline", "require_positive"]

#: Below this margin exp underflows: a model that is surer than this of wrong classes counts as this sure.
_LEAST_MARGIN = -700.0


def log_ratios(panel: Panel, margin: np.ndarray, pbar: Callable[[LiraMoments], Tensor], *, mean: bool = True) -> Tensor:
    """Log ratios of all records of a panel.

    Args:
        panel: The targets and their references on these records.
        margin: Margins at the temperature of p, float64 [M, N, A].
        pbar: Makes pbar [T, B, A] from the moments of p.
        mean: Whether to take the mean over queries.

    Returns:
        float64 [T, N], or [T, N, A] for every query. For a panel of one target, as many rows as pbar has.
    """
    parts = []
    for block in panel.blocks(margin, of=lambda s: s.clamp(min=_LEAST_MARGIN).sigmoid()):
        log_p = logsigmoid(block.own.clamp(min=_LEAST_MARGIN))
        ratio = log_p - pbar(block.moments).log()
        parts.append(ratio.mean(-1) if mean else ratio)
    return torch.cat(parts, dim=1)


def at_large(moments: LiraMoments) -> Tensor:
    """The pbar of records that some references saw."""
    return 0.5 * (moments.mean_in + moments.mean_out)


def mean_out(moments: LiraMoments) -> Tensor:
    """The pbar of records that no reference saw: the mean of all."""
    return moments.mean_out


def offline(a: float | Tensor) -> Callable[[LiraMoments], Tensor]:
    """The pbar from OUT references alone, for one guess a or one per row, [T, 1, 1]."""
    return lambda moments: 0.5 * ((1.0 + a) * moments.mean_out + (1.0 - a))


def margin_name(temperature: float) -> str:
    """The statistic that holds margins at this temperature."""
    return "margin" if temperature == 1.0 else f"margin@{temperature:.12g}"


def require_positive(argument: str, value: float) -> None:
    """Refuse what is not a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise InputError(argument, f"got {value!r}", "give a finite number above 0")
