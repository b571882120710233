"""RMIA, the robust membership inference attack (Zarifzadeh et al. 2024, arXiv:2312.03262).

``score(x) = #{z : r_x > gamma r_z} / Z`` with ``r = p(target)/pbar`` (:mod:`fastmem.attacks.membership.ratio`): over
how many records z that no model trained on does x win, if a win must exceed the factor gamma? Records and population
go through the same formula, with the same references: x with its IN and OUT references, z, for which all of these
are OUT, with the mean of all. For one target the score is a monotone function of r_x; z makes targets comparable and
decides on ties, among them all x above ``gamma max r_z``, which share the score 1. So Z records resolve a false
positive rate f only if Z >= 10/f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.attacks.membership.base import Attack, AttackResult, require_choice
from fastmem.attacks.membership.panel import Panel
from fastmem.attacks.membership.ratio import (
    at_large,
    log_ratios,
    margin_name,
    mean_out,
    offline,
    require_positive,
)
from fastmem.errors import InputError
from fastmem.metrics import roc
from fastmem.ops.leave_one_out import reference_sizes
from fastmem.ops.rmia import rmia
from fastmem.signals import Signals

__all__ = ["RMIA"]

#: What a is chosen from when it is tuned.
_A_GRID = tuple(i / 10 for i in range(11))
#: Elements of [records, population, queries] compared at once when queries vote.
_VOTE_ELEMENTS = 1 << 22
#: A share of scores at exactly 0 or 1 that is worth a warning.
_TIED_SHARE = 0.01


@dataclass(frozen=True)
class RMIA(Attack):
    """The robust membership inference attack, exact in O((N + Z) log Z).

    Args:
        variant: ``"online"`` uses models that trained on a record and models that did not, ``"offline"`` the latter.
        a: Offline, how IN models are guessed from OUT models: 1 says that training on a record changes nothing, 0 that
            it makes the answer certain. ``"tune"`` chooses it for each target on another model, whose membership the
            attacker knows, with the target left out altogether. Authors: .3 on CIFAR-10, .6 on CIFAR-100.
        gamma: The factor by which a record must win; larger is coarser.
        temperature: T of ``p = softmax(h/T)_y``.
        queries: What becomes of several queries. ``"mean"``: the mean of log ratios. ``"vote"``: a win over z is one
            in more than half of the queries, as in the authors' code; it takes N x Z comparisons.
        counts: ``"equal"`` or ``"all"``; see :mod:`fastmem.ops.leave_one_out`.

    Raises:
        InputError: An option that does not exist. When called: no population, or a record without references of a kind
            that is used.
    """

    variant: str = "online"
    a: float | str = 0.3
    gamma: float = 1.0
    temperature: float = 1.0
    queries: str = "mean"
    counts: str = "equal"

    needs_references = True
    needs_population = True

    def __post_init__(self) -> None:
        require_choice("variant", self.variant, ("online", "offline"))
        require_choice("queries", self.queries, ("mean", "vote"))
        require_choice("counts", self.counts, ("equal", "all"))
        require_positive("gamma", self.gamma)
        require_positive("temperature", self.temperature)
        if self.a != "tune" and not (isinstance(self.a, int | float) and 0.0 <= self.a <= 1.0):
            raise InputError("a", f"got {self.a!r}", "give a number from 0 to 1, or 'tune'")

    @property
    def key(self) -> str:
        """``rmia_online`` or ``rmia_offline``."""
        return f"rmia_{self.variant}"

    @property
    def title(self) -> str:
        """The name for human readers."""
        return f"RMIA {self.variant}"

    @property
    def required_stats(self) -> tuple[str, ...]:
        """The margin at the temperature."""
        return (margin_name(self.temperature),)

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        assert population is not None
        panel = Panel(signals.keep, targets, self.counts)
        panel.require(self.key, n_in=1 if self.variant == "online" else 0, n_out=1)
        name = margin_name(self.temperature)
        margin_x, margin_z = signals.stat(name), population.stat(name)
        chosen: dict[str, Any] = {}
        pbar_x, pbar_z = at_large, mean_out
        if self.variant == "offline":
            a = [self._tuned(panel, margin_x, target) if self.a == "tune" else float(self.a) for target in targets]
            chosen["a"] = a if self.a == "tune" else self.a
            pbar_x = pbar_z = offline(torch.tensor(a, dtype=torch.float64)[:, None, None])
        mean = self.queries == "mean" or signals.num_queries == 1
        log_x = log_ratios(panel, margin_x, pbar_x, mean=mean)
        log_z = log_ratios(panel.of_population(population.num_samples), margin_z, pbar_z, mean=mean)
        count = rmia if mean else vote
        scores = count(log_x, log_z, math.log(self.gamma)).numpy()
        details, warnings = _ties(scores, population.num_samples)
        return AttackResult(scores, chosen | details, warnings)

    def _tuned(self, panel: Panel, margin: np.ndarray, target: int) -> float:
        """The a by which ratios tell best who trained another model; the target has no part in it."""
        rest = np.delete(np.arange(len(margin)), target)
        pseudo_target = int(np.flatnonzero(~np.isin(rest, panel.partner_of(target)))[0])
        keep = panel.keep.numpy()[rest]
        other = Panel(keep, [pseudo_target], self.counts)
        if any((n_out == 0).any() for _, n_out in reference_sizes(other.keep, other.plan)):
            raise InputError(
                "a",
                f"to tune it for target {target} some records have no OUT reference left",
                "give a number, or more models",
            )
        grid = torch.tensor(_A_GRID, dtype=torch.float64)[:, None, None]
        ratios = log_ratios(other, margin[rest], offline(grid)).numpy()
        return _A_GRID[int(np.argmax([roc(ratio, keep[pseudo_target]).auc for ratio in ratios]))]


def vote(log_x: Tensor, log_z: Tensor, log_gamma: float) -> Tensor:
    """The share of the population over which a record wins in more than half of its queries.

    Args:
        log_x: Log ratios of the records, float64 [T, N, A].
        log_z: Log ratios of the population, float64 [T, Z, A].
        log_gamma: Natural logarithm of gamma.

    Returns:
        float64 [T, N], by N x Z comparisons in chunks.
    """
    num_queries = log_x.shape[-1]
    scores = torch.empty(log_x.shape[:2], dtype=torch.float64)
    for row, (x, z) in enumerate(zip(log_x - log_gamma, log_z, strict=True)):
        chunks = x.split(max(1, _VOTE_ELEMENTS // z.numel()))
        votes = torch.cat([2 * (chunk[:, None] > z).sum(-1) for chunk in chunks])
        scores[row] = (votes > num_queries).double().mean(-1)
    return scores


def _ties(scores: np.ndarray, num_population: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the population does not tell apart: scores are wins / Z."""
    wins = np.bincount(np.rint(scores * num_population).astype(np.int64).ravel(), minlength=num_population + 1)
    share_at_one = float(wins[-1] / scores.size)
    details = {
        "population": num_population,
        "distinct_scores": int((wins > 0).sum()),
        "share_at_zero": float(wins[0] / scores.size),
        "share_at_one": share_at_one,
    }
    if share_at_one <= _TIED_SHARE:
        return details, ()
    return details, (
        f"{share_at_one:.1%} of the scores are exactly 1: the population does not tell these records apart, so false "
        "positive rates below their share among non-members are not resolved",
    )
