"""What Log-MIA finds by luck: the exact distribution of true positives when scores know nothing of membership.

Let N1 members and N0 non-members be ranked by scores that are independent of membership, and let the attacker go down
the list for as long as no more than c false positives are met. Without ties the number t of members met has

    P(t) = C(t + c, c) C(N1 + N0 - t - c - 1, N0 - c - 1) / C(N1 + N0, N1),    t = 0 ... N1,  c < N0,

since t members and c non-members come first in any order, then a non-member, then the rest. With ties a group of equal
scores is taken whole or not at all, and the distribution is that of a random labelling of the given groups: the sum over
the last group taken of (c or fewer non-members up to it) and (more than c with the next one), each a hypergeometric
probability. All of it is computed, in log space; nothing is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.special import gammaln

from fastmem.errors import InputError

__all__ = ["SIGNIFICANCE", "Null", "accepted_null", "log_mia_null", "null_of", "tp_from_log_mia"]

SIGNIFICANCE = 0.05
# Prefixes of the ranking that are this unlikely to hold so few non-members are left out.
_NEGLIGIBLE = 1e-18


def log_mia_null(
    n_members: int, n_nonmembers: int, fp_cap: int, ties: tuple[int, ...] | np.ndarray | None = None
) -> np.ndarray:
    """The distribution of true positives at a cap on false positives, by chance.

    Args:
        n_members: N1, at least 1.
        n_nonmembers: N0, at least 1.
        fp_cap: c, false positives that are allowed; from N0 on every member is found whatever the scores.
        ties: Sizes of the groups of equal scores, from the highest score down, N1 + N0 in all; by default no two
            scores are equal.

    Returns:
        float64 [N1 + 1]: the probability of t = 0 ... N1 true positives.

    Raises:
        InputError: If a count is too small, the cap negative, or the groups do not add up.
    """
    return null_of(n_members, n_nonmembers, fp_cap, ties).pmf.copy()


def tp_from_log_mia(value: float, n_members: int) -> float:
    """True positives that a Log-MIA value stands for: (1 + N1)^L - 1.

    Args:
        value: L, from 0 to 1.
        n_members: N1.

    Raises:
        InputError: If L is outside [0, 1] or there is no member.
    """
    if not 0.0 <= value <= 1.0:
        raise InputError("value", f"{value}", "a Log-MIA value is between 0 and 1")
    _check_counts(n_members, 1, 0)
    return float(np.expm1(value * np.log1p(n_members)))


@dataclass(frozen=True, eq=False)
class Null:
    """A distribution of true positives by chance.

    Args:
        pmf: float64 [N1 + 1].
    """

    pmf: np.ndarray

    @cached_property
    def _tail(self) -> np.ndarray:
        """P(T >= t), t = 0 ... N1."""
        return np.minimum(np.cumsum(self.pmf[::-1])[::-1], 1.0)

    @cached_property
    def _values(self) -> np.ndarray:
        """L of every count of true positives."""
        return np.log1p(np.arange(len(self.pmf))) / np.log1p(len(self.pmf) - 1)

    @cached_property
    def mean(self) -> float:
        """Mean of Log-MIA."""
        return float(self.pmf @ self._values)

    @cached_property
    def sd(self) -> float:
        """Standard deviation of Log-MIA."""
        return float(np.sqrt(self.pmf @ (self._values - self.mean) ** 2))

    @cached_property
    def mean_tp(self) -> float:
        """Mean number of true positives."""
        return float(self.pmf @ np.arange(len(self.pmf)))

    @cached_property
    def critical(self) -> int:
        """The smallest count of true positives that chance reaches in at most 5% of cases.

        N1 + 1, which cannot be had, where even all members are found by chance more often than that.
        """
        return int(np.count_nonzero(self._tail > SIGNIFICANCE))

    def p_value(self, tp: int) -> float:
        """P(T >= tp)."""
        return float(self._tail[tp])


def null_of(n_members: int, n_nonmembers: int, fp_cap: int, ties: tuple[int, ...] | np.ndarray | None = None) -> Null:
    """The distribution of :func:`log_mia_null` with its mean, critical value and tail; kept for the next call."""
    _check_counts(n_members, n_nonmembers, fp_cap)
    if ties is None:
        return _untied(int(n_members), int(n_nonmembers), int(fp_cap))
    sizes = np.asarray(ties, dtype=np.int64)
    if sizes.ndim != 1 or (sizes < 1).any() or sizes.sum() != n_members + n_nonmembers:
        raise InputError(
            "ties",
            f"groups of {int(sizes.sum())} scores in all",
            f"give the sizes of the groups, from the highest score down, {n_members + n_nonmembers} scores in all",
        )
    if (sizes == 1).all():
        return _untied(int(n_members), int(n_nonmembers), int(fp_cap))
    return _tied(int(n_members), int(n_nonmembers), int(fp_cap), tuple(sizes.tolist()))


@lru_cache(maxsize=4096)
def accepted_null(n_members: int, n_nonmembers: int, accepted: int) -> Null:
    """True positives among ``accepted`` records that a threshold from elsewhere calls members: hypergeometric."""
    _check_counts(n_members, n_nonmembers, 0)
    t = np.arange(n_members + 1)
    return Null(np.exp(_log_hypergeometric(t, n_members + n_nonmembers, n_members, accepted)))


@lru_cache(maxsize=4096)
def _untied(n_in: int, n_out: int, cap: int) -> Null:
    if cap >= n_out:
        return _certain(n_in)
    t = np.arange(n_in + 1)
    log_p = _log_comb(t + cap, cap) + _log_comb(n_in + n_out - t - cap - 1, n_out - cap - 1)
    return Null(np.exp(log_p - _log_comb(n_in + n_out, n_in)))


@lru_cache(maxsize=16384)
def _tied(n_in: int, n_out: int, cap: int, sizes: tuple[int, ...]) -> Null:
    if cap >= n_out:
        return _certain(n_in)
    total = n_in + n_out
    before = np.cumsum((0, *sizes))[:-1]  # records above each group
    false = np.arange(cap + 1)
    reached = np.exp(_log_hypergeometric(false, total, n_out, before[:, None]))  # [groups, cap + 1]
    groups, met = np.nonzero(reached > _NEGLIGIBLE)
    above, false = before[groups], false[met]
    group, left = np.asarray(sizes)[groups], cap - false
    more = np.arange(cap + 1)
    # The group fits under the cap with this probability; where it does not, the ranking ends above it.
    fits = np.exp(_log_hypergeometric(more, (total - above)[:, None], (n_out - false)[:, None], group[:, None]))
    stops = 1.0 - np.where(more <= left[:, None], fits, 0.0).sum(axis=1)
    pmf = np.bincount(above - false, reached[groups, met] * np.clip(stops, 0.0, 1.0), minlength=n_in + 1)
    return Null(pmf / pmf.sum())


def _certain(n_in: int) -> Null:
    return Null(np.append(np.zeros(n_in), 1.0))


def _log_hypergeometric(
    k: np.ndarray, total: int | np.ndarray, marked: int | np.ndarray, drawn: int | np.ndarray
) -> np.ndarray:
    """Log of the probability of k marked ones among ``drawn`` of ``total``; -inf where it cannot be."""
    return _log_comb(marked, k) + _log_comb(np.subtract(total, marked), np.subtract(drawn, k)) - _log_comb(total, drawn)


def _log_comb(n: int | np.ndarray, k: int | np.ndarray) -> np.ndarray:
    """log C(n, k), -inf where k < 0 or k > n."""
    n, k = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(k, dtype=np.float64))
    possible = (k >= 0) & (k <= n)
    inside = np.where(possible, k, 0.0)
    whole = np.maximum(n, 0.0)
    return np.where(possible, gammaln(whole + 1) - gammaln(inside + 1) - gammaln(whole - inside + 1), -np.inf)


def _check_counts(n_members: int, n_nonmembers: int, fp_cap: int) -> None:
    for argument, given, least in (
        ("n_members", n_members, 1),
        ("n_nonmembers", n_nonmembers, 1),
        ("fp_cap", fp_cap, 0),
    ):
        if isinstance(given, bool) or int(given) != given or given < least:
            raise InputError(argument, f"{given}", f"give a whole number, at least {least}")
