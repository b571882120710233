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
        details: dict[str, Any] = {"population": population.num_samples}
        pbar_x, pbar_z = at_large, mean_out
        if self.variant == "offline":
            a = [self._tuned(panel, margin_x, target) if self.a == "tune" else float(self.a) for target in targets]
            details["a"] = a if self.a == "tune" else self.a
            pbar_x = pbar_z = offline(torch.tensor(a, dtype=torch.float64)[:, None, None])
        mean = self.queries == "mean" or signals.num_queries == 1
        log_x = log_ratios(panel, margin_x, pbar_x, mean=mean)
        log_z = log_ratios(panel.of_population(population.num_samples), margin_z, pbar_z, mean=mean)
        scores = (rmia(log_x, log_z, math.log(self.gamma)) if mean else self._vote(log_x, log_z)).numpy()
        return AttackResult(scores, *_ties(scores, details))

    def _tuned(self, panel: Panel, margin: np.ndarray, target: int) -> float:
        """The a whose ratios tell best which records another model trained on, without the target."""
        others = np.delete(np.arange(len(margin)), [target, *panel.partner_of(target)])
        rest = np.delete(np.arange(len(margin)), target)
        pseudo_target = int(np.searchsorted(rest, others[0]))
        keep = panel.keep.numpy()[rest]
        candidates = offline(torch.tensor(_A_GRID, dtype=torch.float64)[:, None, None])
        ratios = log_ratios(Panel(keep, [pseudo_target], self.counts), margin[rest], candidates).numpy()
        aucs = [roc(ratio, keep[pseudo_target]).auc for ratio in ratios]
        return _A_GRID[int(np.argmax(aucs))]

    def _vote(self, log_x: Tensor, log_z: Tensor) -> Tensor:
        """The share of the population over which most queries win, [T, N] from [T, N, A] and [T, Z, A]."""
        left = log_x - math.log(self.gamma)
        num_queries = left.shape[-1]
        size = max(1, _VOTE_ELEMENTS // log_z[0].numel())
        scores = torch.empty(left.shape[:2], dtype=torch.float64)
        for row, (x, z) in enumerate(zip(left, log_z, strict=True)):
            votes = [(part[:, None] > z).sum(-1) for part in x.split(size)]
            scores[row] = torch.cat([(2 * vote > num_queries).double().mean(-1) for vote in votes])
        return scores


def _ties(scores: np.ndarray, details: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the population does not tell apart."""
    at_zero, at_one = float((scores == 0.0).mean()), float((scores == 1.0).mean())
    details |= {"distinct_scores": len(np.unique(scores)), "share_at_zero": at_zero, "share_at_one": at_one}
    if at_one <= _TIED_SHARE:
        return details, ()
    return details, (
        f"{at_one:.1%} of the scores are exactly 1: the population does not tell these records apart, so false "
        "positive rates below their share among non-members are not resolved",
    )
