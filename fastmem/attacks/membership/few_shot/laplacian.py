"""LaplacianShot-like label propagation (transductive): neighbours among the records asked about agree.

Prototypes are the support rows and the two class means, kept apart. With a[n, p] the squared distance of record n to
prototype p and A the 0/1 matrix that joins each record to its k - 1 nearest others (not symmetrised),

    Y <- softmax_p(-a);   at most 20 times:  Y <- softmax_p(-a + lam A Y)
    E = sum Y ln Y + sum a Y - lam sum Y (A Y);   stop, from the third pass on, when |E - E_old| <= 1e-6 |E_old|

and the score is what of Y lies on member prototypes, as log-odds: the same order, but where a record is as good as certain
the share itself rounds to 1, and its rank would be a matter of the last bit. lam and k are tuned on the validation records,
as a query set of their own, by the members found without a false positive; of equals the last of the grid (Ziko et al. 2020,
arXiv:2006.15486, in the form of Jimenez-Lopez et al. 2025: features as they are, no centring).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastmem.attacks.membership.few_shot.batch import Batch, Scored, last_best, true_positives
from fastmem.attacks.membership.few_shot.transform import Transform
from fastmem.ops.episodes import class_means, squared_distances
from fastmem.ops.label_propagation import label_propagation

__all__ = ["LAMBDAS", "NEIGHBOURS", "LaplacianShot"]

LAMBDAS = (1.5, 1.7, 2.0, 2.2, 2.5, 2.7, 2.9)
NEIGHBOURS = (3, 5, 7, 9, 11, 13, 15)

_DEFAULT = (2.0, 7)


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

        def scores(asked: Tensor, lam: Tensor, k: Tensor) -> Tensor:
            distances, apart = squared_distances(asked, prototypes), squared_distances(asked, asked)
            return label_propagation(distances, apart, members, lam, k)

        episode = torch.arange(episodes, device=support.device)
        if val is None or batch.val_members is None:
            lam, k = support.new_full((episodes,), _DEFAULT[0]), torch.full_like(episode, _DEFAULT[1])
            of_val = None
        else:
            grid = [(lam, k) for lam in self.lambdas for k in self.neighbours]
            lams = support.new_tensor([lam for lam, _ in grid])
            ks = torch.tensor([k for _, k in grid], device=support.device)
            every = scores(val, lams.expand(episodes, -1), ks.expand(episodes, -1))
            choice = last_best(true_positives(every, batch.val_members[:, None]).T)
            of_val = every[episode, choice]
            lam, k = lams[choice], ks[choice]
        of_query = scores(query, lam[:, None], k[:, None])[:, 0]
        return Scored(of_query, of_val, {"lam": lam, "k": k})

    def values_per_episode(self, support: int, val: int, query: int, width: int) -> int:
        """Features, and scores of the validation records under every parameter."""
        grid = len(self.lambdas) * len(self.neighbours)
        return (support + val + query) * width + 3 * max(val, query) * max(val, query) + 6 * grid * val
