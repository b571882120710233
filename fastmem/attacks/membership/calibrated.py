"""Difficulty calibration: a statistic less what models say that did not see the record (Watson et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fastmem.attacks.membership.base import Attack, AttackResult, require_choice
from fastmem.attacks.membership.panel import Panel
from fastmem.ops.lira_moments import LiraMoments
from fastmem.signals import Signals

__all__ = ["Calibrated"]


@dataclass(frozen=True)
class Calibrated(Attack):
    """The target's statistic minus the average of the references'; a mean over queries.

    Args:
        on: ``"loss"``: minus the cross-entropy (Watson et al. 2022, arXiv:2111.08440). ``"margin"``: much stronger at
            low false positive rates.
        reference: ``"out"``: the average over OUT references. ``"both"``: the midpoint of the IN and the OUT average
            (Sablayrolles et al. 2019, arXiv:1908.11229).
        average: ``"mean"`` or ``"median"``.
        counts: ``"equal"`` or ``"all"``; see :mod:`fastmem.ops.leave_one_out`.

    Raises:
        InputError: An option that does not exist. When called: a record without references of a kind that is used.
    """

    on: str = "loss"
    reference: str = "out"
    average: str = "mean"
    counts: str = "equal"

    needs_references = True

    def __post_init__(self) -> None:
        require_choice("on", self.on, ("loss", "margin"))
        require_choice("reference", self.reference, ("out", "both"))
        require_choice("average", self.average, ("mean", "median"))
        require_choice("counts", self.counts, ("equal", "all"))

    @property
    def key(self) -> str:
        """``calibrated``."""
        return "calibrated"

    @property
    def title(self) -> str:
        """The name for human readers."""
        return f"Calibrated {self.on}"

    @property
    def required_stats(self) -> tuple[str, ...]:
        """The loss or the margin."""
        return (self.on,)

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        panel = Panel(signals.keep, targets, self.counts)
        panel.require(self.key, n_in=1 if self.reference == "both" else 0, n_out=1)
        sign = -1.0 if self.on == "loss" else 1.0
        scores = np.empty((len(targets), signals.num_samples))
        for block in panel.blocks(signals.stat(self.on), median=self.average == "median"):
            offset = block.own - self._average(block.moments)
            scores[:, block.samples] = sign * offset.mean(-1).numpy()
        return AttackResult(scores)

    def _average(self, moments: LiraMoments) -> Tensor:
        into, out = moments.mean_in, moments.mean_out
        if moments.median_in is not None and moments.median_out is not None:
            into, out = moments.median_in, moments.median_out
        return out if self.reference == "out" else 0.5 * (into + out)
