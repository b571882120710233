"""TIM (transductive): two class weights that suit the support and make the query's answers sure, and balanced.

With unit features f, z_k = -(T/2) |f - w_k|^2, T = 15 and w_k from the class means, 150 Adam steps on w alone minimise

    0.1 CE(support) + KL(mean_q p_q || prior) + 0.1 mean_q H(p_q)

where at an even prior the middle term is log 2 - H(mean_q p_q), the published one: it presumes that the query is half
members, so an unbalanced query needs its prior. The score is the log-odds of the member class. (Boudiaf et al. 2020,
arXiv:2008.11297. An addition to the few-shot membership attacks of Jimenez-Lopez et al. 2025, who do not use it.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.attacks.membership.few_shot.adam import Adam
from fastmem.attacks.membership.few_shot.batch import Batch, Scored
from fastmem.attacks.membership.few_shot.transform import Transform
from fastmem.ops.episodes import class_means

__all__ = ["TIM"]

_TEMPERATURE = 15.0
_SUPPORT_WEIGHT = 0.1
_ENTROPY_WEIGHT = 0.1


@dataclass(frozen=True, eq=False)
class TIM:
    """Transductive information maximisation.

    Args:
        transform: What features go through first.
        prior: Share of members among the records asked about.
        learning_rate: Of Adam.
        iterations: Steps; the paper takes 1000, its code 150.
    """

    transform: Transform
    prior: float = 0.5
    learning_rate: float = 1e-4
    iterations: int = 150
    transductive = True

    def __call__(self, batch: Batch) -> Scored:
        """Scores of every episode; validation records, where given, are only scored by the weights found."""
        support, query, val = self.transform(batch.support, batch.query, batch.val)
        label = torch.stack([~batch.support_members, batch.support_members], dim=2).to(support.dtype)
        weights = class_means(support, batch.support_members)
        prior = support.new_tensor([1 - self.prior, self.prior]).log()
        adam = Adam(self.learning_rate)
        for _ in range(self.iterations):
            weights.requires_grad_(True)
            with torch.enable_grad():
                known, asked = _log_p(support, weights), _log_p(query, weights)
                # Sums over episodes: each has weights of its own, so each gets the gradient of its own mean.
                fit = -(label * known).sum() / support.shape[1]
                sure = -(asked.exp() * asked).sum() / query.shape[1]
                marginal = asked.logsumexp(dim=1) - math.log(query.shape[1])
                balance = (marginal.exp() * (marginal - prior)).sum()
                loss = _SUPPORT_WEIGHT * fit + balance + _ENTROPY_WEIGHT * sure
                (slope,) = torch.autograd.grad(loss, weights)
            weights = adam.step([weights.detach()], [slope])[0]
        of_val = None if val is None else _member(val, weights)
        return Scored(_member(query, weights), of_val, {})

    def values_per_episode(self, support: int, val: int, query: int, width: int) -> int:
        """Features and the few copies of the weights."""
        return (support + val + 2 * query) * width + 12 * width + 40 * (support + query)


def _log_p(features: Tensor, weights: Tensor) -> Tensor:
    """z up to |f|^2, which every class shares: T (f . w - |w|^2 / 2)."""
    ends = weights.square().sum(dim=2)[:, None, :].expand(-1, features.shape[1], -1)
    z = torch.baddbmm(ends, features, weights.mT, beta=-_TEMPERATURE / 2, alpha=_TEMPERATURE)
    return z.log_softmax(dim=2)


def _member(features: Tensor, weights: Tensor) -> Tensor:
    """Log-odds of the member class, float64 [E, n]."""
    log_p = _log_p(features, weights)
    return (log_p[:, :, 1] - log_p[:, :, 0]).double()
