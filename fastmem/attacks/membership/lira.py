"""LiRA, the likelihood ratio attack (Carlini et al. 2022, arXiv:2112.03570).

The margin ``s = log p_y - log(1 - p_y)`` of a record is close to normal over models that trained on it and over those
that did not. With centre mu and spread sigma of both groups of references, per record n and query a:

| variant | score, a mean over queries (spherical Gaussians, as in the paper's code) |
|---|---|
| ``online`` | log N(s; mu_in, sigma_in) - log N(s; mu_out, sigma_out) |
| ``offline_cdf`` | log Phi((s - mu_out) / sigma_out): the paper's one-sided test, in logs since Phi saturates at 8.3 sigma |
| ``offline_pdf`` | -log N(s; mu_out, sigma_out): two-sided as in the paper's script; it calls low confidence a member too |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from fastmem.attacks.membership.base import Attack, AttackResult, require_choice
from fastmem.attacks.membership.panel import Block, Panel
from fastmem.attacks.membership.spread import PooledSpread
from fastmem.errors import InputError
from fastmem.signals import Signals

__all__ = ["LiRA"]

_TITLES = {"online": "LiRA online", "offline_cdf": "LiRA offline, one-sided", "offline_pdf": "LiRA offline, two-sided"}
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

#: Normality is tested on about so many records, at this level.
_NORMALITY_RECORDS = 128
_NORMALITY_LEVEL = 0.05


class _Side(NamedTuple):
    """The IN or the OUT references of a block of records."""

    n: Tensor  # [T, B]
    mean: Tensor  # [T, B, A]
    var: Tensor  # [T, B, A]
    centre: Tensor  # [T, B, A]: median or mean


@dataclass(frozen=True)
class LiRA(Attack):
    """The likelihood ratio attack.

    Args:
        variant: ``"online"`` needs models that trained on a record and models that did not, ``"offline_cdf"`` and
            ``"offline_pdf"`` only the latter; see the module.
        fixed_variance: False: a sigma per record and query, better from about 64 models on. True or ``"residual"``:
            one sigma for IN and one for OUT, the pooled spread of ``s - mu``; better below. ``"raw"`` pools ``s``
            instead, and ``"raw_in"`` takes the IN one of these for both sides: so do published scripts; scores move by
            tens of nats, the ranking little.
        average: mu is the ``"median"`` or the ``"mean"`` of the references.
        counts: ``"equal"`` or ``"all"``; see :mod:`fastmem.ops.leave_one_out`.
        ddof: Variances divide by n - ddof; 0 or 1.
        floor: A sigma below this share of the pooled spread of ``s - mu`` is raised to it and counted: references
            that agree exactly would make scores infinite.

    Raises:
        InputError: An option that does not exist. When called: fewer than 2 references of a record on a side that is
            used (1 with a fixed variance), or references without any spread.
    """

    variant: str = "online"
    fixed_variance: bool | str = False
    average: str = "median"
    counts: str = "equal"
    ddof: int = 0
    floor: float = 1e-6

    needs_references = True

    def __post_init__(self) -> None:
        require_choice("variant", self.variant, _TITLES)
        require_choice("average", self.average, ("median", "mean"))
        require_choice("counts", self.counts, ("equal", "all"))
        if not isinstance(self.fixed_variance, bool):
            require_choice("fixed_variance", self.fixed_variance, ("residual", "raw", "raw_in"))
        if self.fixed_variance == "raw_in" and self.variant != "online":
            raise InputError(
                "fixed_variance", f"'raw_in' for variant {self.variant!r}", "use 'raw', which is OUT there"
            )
        if self.ddof not in (0, 1):
            raise InputError("ddof", f"got {self.ddof!r}", "accepted: 0, 1")
        if not 0.0 < self.floor < 1.0:
            raise InputError("floor", f"got {self.floor!r}", "give a share of the pooled spread between 0 and 1")

    @property
    def key(self) -> str:
        """``lira_<variant>``, followed by ``_fixed`` for a fixed variance."""
        return f"lira_{self.variant}" + ("_fixed" if self.fixed_variance else "")

    @property
    def title(self) -> str:
        """The name for human readers."""
        return _TITLES[self.variant] + (", fixed variance" if self.fixed_variance else "")

    @property
    def required_stats(self) -> tuple[str, ...]:
        """The margin."""
        return ("margin",)

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        panel = Panel(signals.keep, targets, self.counts)
        least = 1 if self.fixed_variance else 2
        panel.require(self.key, n_in=least if self.variant == "online" else 0, n_out=least)
        margin = signals.stat("margin")
        pooled = self._pooled(panel, margin)
        scores = np.empty((len(targets), signals.num_samples))
        floored = 0
        for block in self._blocks(panel, margin):
            gaussians = []
            for side, pool in zip(self._sides(block), pooled, strict=True):
                sigma, raised = self._sigma(side, pool)
                gaussians.append((side.centre, sigma))
                floored += raised
            scores[:, block.samples] = self._score(block.own, gaussians).mean(-1).numpy()
        return AttackResult(scores, *self._remarks(panel, margin, pooled, floored))

    def _blocks(self, panel: Panel, margin: np.ndarray) -> Iterator[Block]:
        return panel.blocks(margin, median=self.average == "median")

    def _sides(self, block: Block) -> list[_Side]:
        """OUT, and before it IN where the variant uses it."""
        m = block.moments
        sides = [
            _Side(m.n_in, m.mean_in, m.var_in, m.mean_in if m.median_in is None else m.median_in),
            _Side(m.n_out, m.mean_out, m.var_out, m.mean_out if m.median_out is None else m.median_out),
        ]
        return sides if self.variant == "online" else sides[1:]

    def _pooled(self, panel: Panel, margin: np.ndarray) -> list[Tensor]:
        """The spread of every side over all records and queries, [T]: a fixed sigma, or what the floor is a share of."""
        num_sides, raw = 2 if self.variant == "online" else 1, self.fixed_variance in ("raw", "raw_in")
        pools = [PooledSpread(len(panel.plan.targets)) for _ in range(num_sides)]
        for block in self._blocks(panel, margin):
            for side, pool in zip(self._sides(block), pools, strict=True):
                pool.add(side.n, side.mean if raw else side.mean - side.centre, side.var)
        sigmas = [pool.sigma(self.ddof) for pool in pools]
        if self.fixed_variance == "raw_in":
            sigmas = [sigmas[0]] * num_sides
        for sigma in sigmas:
            _require_spread(panel, sigma)
        return sigmas

    def _sigma(self, side: _Side, pooled: Tensor) -> tuple[Tensor, int]:
        """Sigma, broadcastable to [T, B, A], and how many of its entries were raised to the floor."""
        if self.fixed_variance:
            return pooled[:, None, None], 0
        n = side.n.double().unsqueeze(-1)
        sigma = (side.var * (n / (n - self.ddof))).sqrt()
        floor = (self.floor * pooled)[:, None, None]
        return sigma.maximum(floor), int((sigma < floor).sum())

    def _score(self, s: Tensor, gaussians: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The score of every query, [T, B, A]; ``gaussians`` are the (mu, sigma) of the sides."""
        mu_out, sigma_out = gaussians[-1]
        z_out = (s - mu_out) / sigma_out
        if self.variant == "offline_cdf":
            return torch.special.log_ndtr(z_out)
        log_out = -0.5 * z_out.square() - sigma_out.log()
        if self.variant == "offline_pdf":
            return _HALF_LOG_2PI - log_out
        mu_in, sigma_in = gaussians[0]
        return -0.5 * ((s - mu_in) / sigma_in).square() - sigma_in.log() - log_out

    def _remarks(
        self, panel: Panel, margin: np.ndarray, pooled: list[Tensor], floored: int
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        sides = ("in", "out")[-len(pooled) :]
        details: dict[str, Any] = {"non_normal_out_share": _non_normal_share(panel.keep.numpy(), margin)}
        if self.fixed_variance:
            details |= {f"sigma_{side}": sigma.tolist() for side, sigma in zip(sides, pooled, strict=True)}
            return details, ()
        num_spreads = len(sides) * len(panel.plan.targets) * margin[0].size
        details |= {"floored": floored, "spreads": num_spreads}
        if not floored:
            return details, ()
        return details, (
            f"{floored} of {num_spreads} spreads were below {self.floor:g} of the pooled one and raised to it: "
            "references that agree make scores depend on the floor",
        )


def _require_spread(panel: Panel, sigma: Tensor) -> None:
    bad = ~(sigma > 0)
    if bad.any():
        raise InputError(
            "signals",
            f"the references of target {int(panel.plan.targets[bad][0])} do not spread: one model on each record, or "
            "models that agree exactly",
            "give more models, each trained from a seed of its own",
        )


def _non_normal_share(keep: np.ndarray, margin: np.ndarray) -> float | None:
    """Share of records whose OUT margins fail the Shapiro-Wilk test at 5%; None if no record has 3 that differ.

    LiRA takes these margins for normal, and then some 5% fail. Asked of query 0 of evenly spaced records.
    """
    step = max(1, margin.shape[1] // _NORMALITY_RECORDS)
    values = [margin[~keep[:, n], n, 0] for n in range(0, margin.shape[1], step)]
    p_values = [scipy.stats.shapiro(x).pvalue for x in values if len(x) >= 3 and np.ptp(x) > 0]
    return float(np.mean(np.array(p_values) <= _NORMALITY_LEVEL)) if p_values else None
