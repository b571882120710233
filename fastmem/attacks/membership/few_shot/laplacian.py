"""LaplacianShot-like label propagation (transductive): neighbours among the records asked about agree.

Prototypes are the support rows and the two class means, kept apart. With a[n, p] the squared distance of record n to
prototype p and A the 0/1 matrix that joins each record to its k - 1 nearest others (not symmetrised),

    Y <- softmax_p(-a);   at most 20 times:  Y <- softmax_p(-a + lam A Y)
    E = sum Y ln Y + sum a Y - lam sum Y (A Y);   stop, from the third pass on, when |E - E_old| <= 1e-6 |E_old|

and the score is what of Y lies on member prototypes, as log-odds: the same order, but where a record is as good as certain
the share itself rounds to 1, and its rank would be a matter of the last bit. lam and k are tuned on the validation records, as a query set of
their own, by the members found without a false positive; of equals the last of the grid (Ziko et al. 2020,
arXiv:2006.15486, in the form of Jimenez-Lopez et al. 2025: features as they are, no centring).

All episodes and all parameters of the grid are one batch of small matrix products. The energy needs no logarithm:
ln Y = z - logsumexp(z) with z = -a + G_old, G = lam A Y, so E = sum Y (G_old - G_new) - sum logsumexp(z), and G_new is the
next pass's G_old.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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

__all__ = ["LAMBDAS", "NEIGHBOURS", "LaplacianShot", "laplacian_scores", "propagate"]

LAMBDAS = (1.5, 1.7, 2.0, 2.2, 2.5, 2.7, 2.9)
NEIGHBOURS = (3, 5, 7, 9, 11, 13, 15)

_DEFAULT = (2.0, 7)
_PASSES = 20
_FIRST_STOP = 3
_TOLERANCE = 1e-6
# Problems whose matrices are worked on at a time: what they hold should stay in the cache.
_CACHE_VALUES = 1 << 17


@dataclass(frozen=True, eq=False)
class LaplacianShot:
    """Label propagation.

    Args:
        transform: What features go through first; as published they are left as they are.
        lambdas: Weights of the agreement among neighbours to choose from.
        neighbours: Values of k to choose from; k - 1 others are joined to each record.
    """

    transform: Transform = field(default_factory=lambda: Transform(None, False))
    lambdas: tuple[float, ...] = LAMBDAS
    neighbours: tuple[int, ...] = NEIGHBOURS
    transductive = True

    def __call__(self, batch: Batch) -> Scored:
        """Scores of every episode under the parameters that suit its validation records best."""
        support, query, val = self.transform(batch.support, batch.query, batch.val)
        means = self.transform.apply(class_means(batch.support, batch.support_members), batch.support)
        prototypes = torch.cat([support, means], dim=1)
        episodes = len(support)
        both = torch.tensor([False, True], device=support.device).expand(episodes, 2)
        members = torch.cat([batch.support_members, both], dim=1)
        if val is None or batch.val_members is None:
            lam, k = (support.new_full((episodes,), value) for value in _DEFAULT)
            of_val = None
        else:
            grid = [(lam, k) for lam in self.lambdas for k in self.neighbours]
            lams, ks = (support.new_tensor(values) for values in zip(*grid, strict=True))
            every = laplacian_scores(val, prototypes, members, lams.expand(episodes, -1), ks.expand(episodes, -1))
            choice = last_best(true_positives(every, batch.val_members[:, None]).T)
            of_val = every[torch.arange(episodes, device=choice.device), choice]
            lam, k = lams[choice], ks[choice]
        of_query = laplacian_scores(query, prototypes, members, lam[:, None], k[:, None])[:, 0]
        return Scored(of_query, of_val, {"lam": lam, "k": k})

    def values_per_episode(self, support: int, val: int, query: int, width: int) -> int:
        """Features, and scores of the validation records under every parameter."""
        grid = len(self.lambdas) * len(self.neighbours)
        return (support + val + query) * width + 3 * max(val, query) * max(val, query) + 6 * grid * val


def laplacian_scores(asked: Tensor, prototypes: Tensor, members: Tensor, lam: Tensor, k: Tensor) -> Tensor:
    """Log-odds, float64 [E, G, n], of records [E, n, d] under G parameters of each episode, lam and k [E, G]."""
    episodes, count = asked.shape[:2]
    grid = lam.shape[1]
    distance = squared_distances(asked, prototypes)
    apart = squared_distances(asked, asked)
    apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    rank = apart.argsort(dim=2, stable=True).argsort(dim=2)
    itself = torch.eye(count, dtype=torch.bool, device=asked.device)
    out = asked.new_empty((episodes, grid, count), dtype=torch.float64)
    step = max(1, _CACHE_VALUES // (grid * count * (count + 4 * prototypes.shape[1])))
    for start in range(0, episodes, step):
        part = slice(start, start + step)
        # With fewer others than k - 1 a record would be joined to itself.
        joined = (rank[part, None] < (k[part, :, None, None] - 1)) & ~itself
        affinity = joined.to(asked.dtype).mul_(lam[part, :, None, None].to(asked.dtype)).flatten(0, 1)
        a = distance[part, None].expand(-1, grid, -1, -1).flatten(0, 1)
        known = members[part, None].expand(-1, grid, -1).flatten(0, 1)
        out[part] = propagate(a, affinity, known).view(-1, grid, count)
    return out


def propagate(a: Tensor, affinity: Tensor, members: Tensor) -> Tensor:
    """Runs the passes of several problems until each has converged.

    Args:
        a: Squared distances to the prototypes [B, n, P].
        affinity: lam A [B, n, n].
        members: Which prototypes are members, bool [B, P].

    Returns:
        Log-odds of the share of each record on member prototypes, float64 [B, n].
    """
    out = a.new_empty(a.shape[:2], dtype=torch.float64)
    rows = torch.arange(len(a), device=a.device)
    y = (-a).softmax(dim=2)
    drawn = torch.bmm(affinity, y)
    before = a.new_full((len(a),), torch.inf)
    for number in range(1, _PASSES + 1):
        z = drawn - a
        top = z.amax(dim=2, keepdim=True)
        y = z.sub_(top).exp_()
        total = y.sum(dim=2, keepdim=True)
        y.div_(total)
        former, drawn = drawn, torch.bmm(affinity, y)
        energy = (y * (former - drawn)).sum(dim=(1, 2)) - (total.log_() + top).sum(dim=(1, 2))
        done = (energy - before).abs() <= _TOLERANCE * before.abs() if number >= _FIRST_STOP else None
        before = energy
        if number == _PASSES:
            done = torch.ones_like(before, dtype=torch.bool)
        if done is None or not done.any():
            continue
        out[rows[done]] = _log_odds(former[done] - a[done], members[done]).double()
        left = ~done
        if not left.any():
            break
        rows, a, affinity, members = rows[left], a[left], affinity[left], members[left]
        drawn, before = drawn[left], before[left]
    return out


def _log_odds(z: Tensor, members: Tensor) -> Tensor:
    """[B, n] of z [B, n, P]: the log of the member prototypes' share over that of the others."""
    outside = torch.where(members, 0.0, -torch.inf).to(z.dtype)[:, None]
    inside = torch.where(members, -torch.inf, 0.0).to(z.dtype)[:, None]
    return (z + outside).logsumexp(dim=2) - (z + inside).logsumexp(dim=2)
