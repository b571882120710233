"""Label propagation among the records asked about, for many episodes and parameters at once: LaplacianShot's scores.

With a[n, p] the squared distance of record n to prototype p and A the 0/1 matrix that joins each record to its k - 1
nearest others (not symmetrised),

    Y <- softmax_p(-a);   at most 20 times:  Y <- softmax_p(-a + lam A Y)
    E = sum Y ln Y + sum a Y - lam sum Y (A Y);   stop, from the third pass on, when |E - E_old| <= 1e-6 |E_old|

and the score is what of Y lies on member prototypes, as log-odds: the same order, but where a record is as good as certain
the share itself rounds to 1, and its rank would be a matter of the last bit (Ziko et al. 2020, arXiv:2006.15486, in the form
of Jimenez-Lopez et al. 2025, arXiv:2503.09365).

The energy needs no logarithm of Y: ln Y = z - logsumexp(z) with z = -a + G_old, G = lam A Y, so
E = sum Y (G_old - G_new) - sum logsumexp(z), and G_new is the next pass's G_old.

Roof: every pass takes about ``n P (k + 20)`` flops per problem, bound by the exponentials; an episode of the usual sizes
(30 records, 12 prototypes) is 15 kB, read once for all parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops._checks import require_dtype, require_same_device, require_tensor
from fastmem.ops._registry import select
from fastmem.ops.episodes import require_episodes, require_members

__all__ = ["label_propagation"]


def label_propagation(distances: Tensor, apart: Tensor, members: Tensor, lam: Tensor, k: Tensor) -> Tensor:
    """Log-odds of the share of each record on member prototypes.

    Args:
        distances: Squared distances of the records to the prototypes, [E, n, P], float32 or float64, finite.
        apart: Squared distances among the records, [E, n, n]; the diagonal is not read.
        members: Which prototypes are members, bool [E, P], both kinds in each row.
        lam: Weights of the agreement among neighbours, [E, G], at least 0.
        k: Neighbours joined, and the record itself: int64 [E, G], at least 1; of equally near ones the first is joined.

    Returns:
        float64 [E, G, n].

    Raises:
        InputError: Shapes or devices that disagree, another dtype, an episode of one kind only, a parameter out of range,
            or a forced backend that cannot run.
    """
    arguments = forward_arguments(distances, apart, members, lam, k)
    return select("label_propagation", *arguments).forward(*arguments)


def forward_arguments(
    distances: Any, apart: Any, members: Any, lam: Any, k: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Check a public call."""
    require_episodes("distances", distances, (None, None, None))
    episodes, count, prototypes = distances.shape
    require_episodes("apart", apart, (episodes, count, count), distances)
    require_members(members, (episodes, prototypes), distances)
    require_episodes("lam", lam, (episodes, None), distances)
    require_tensor("k", k)
    require_dtype("k", k, (torch.int64,))
    require_same_device("k", k, "distances", distances)
    if k.shape != lam.shape:
        raise InputError("k", f"has shape {list(k.shape)} for lam {list(lam.shape)}", "give one for each lam")
    if not bool((lam >= 0).all()) or not bool((k >= 1).all()):
        raise InputError("lam, k", "there is a lam below 0 or a k below 1", "give lam from 0 and k from 1 on")
    return distances.detach(), apart.detach(), members, lam.detach(), k
