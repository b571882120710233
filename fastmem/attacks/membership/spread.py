"""The spread of a statistic over all references of a target, pooled over records and queries."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PooledSpread"]


class PooledSpread:
    """Mean and sum of squares of T populations, gathered group by group (Chan, Golub and LeVeque 1983).

    Args:
        num_targets: T, the number of populations.
    """

    def __init__(self, num_targets: int) -> None:
        self._n = torch.zeros(num_targets, dtype=torch.float64)
        self._mean = torch.zeros(num_targets, dtype=torch.float64)
        self._squares = torch.zeros(num_targets, dtype=torch.float64)  # about the mean

    def add(self, n: Tensor, mean: Tensor, var: Tensor) -> None:
        """Take in groups of values by their moments.

        Args:
            n: Sizes of the groups, [T, B]; empty groups count for nothing.
            mean: Their means, [T, B, A].
            var: Their variances (ddof 0), [T, B, A].
        """
        # Targets last: in memory they lie next to each other, and sums run over what is in front of them.
        weight, mean, var = n.T.double().unsqueeze(1), mean.permute(1, 2, 0), var.permute(1, 2, 0)
        if not weight.all():
            mean, var = mean.where(weight > 0, 0.0), var.where(weight > 0, 0.0)
        total = weight.sum((0, 1)) * mean.shape[1]
        some = total.clamp(min=1.0)
        centre = (weight * mean).sum((0, 1)) / some
        squares = (weight * (var + (mean - centre).square())).sum((0, 1))

        n_before, self._n = self._n, self._n + total
        apart = centre - self._mean
        share = total / self._n.clamp(min=1.0)
        self._mean = self._mean + apart * share
        self._squares = self._squares + squares + apart.square() * n_before * share

    def sigma(self, ddof: int = 0) -> Tensor:
        """The standard deviation, dividing by n - ddof, [T]; NaN where there are no more than ddof values."""
        return (self._squares / (self._n - ddof).where(self._n > ddof, torch.nan)).sqrt()
