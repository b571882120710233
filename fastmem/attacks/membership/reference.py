"""Attack-R: how low is a record's loss among those of models that did not train on it? (Ye et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmem.attacks.membership.base import Attack, AttackResult, require_choice
from fastmem.attacks.membership.panel import Panel, sample_blocks
from fastmem.errors import InputError
from fastmem.signals import Signals

__all__ = ["AttackR"]


@dataclass(frozen=True)
class AttackR(Attack):
    """One minus the interpolated rank of the loss among the record's K OUT losses; a mean over queries.

    The sorted losses, with 0 before and ``ceiling`` after them, are taken for quantiles 0, 1/(K+1), ..., 1 and
    interpolated linearly (arXiv:2111.09679). There are K + 1 levels apart from interpolation, so a false positive rate
    below 1/K means little for a single record.

    Args:
        ceiling: The loss of quantile 1; losses beyond it score 0.
        counts: ``"equal"`` or ``"all"``; see :mod:`fastmem.ops.leave_one_out`.

    Raises:
        InputError: An option that does not exist. When called: a record without OUT references.
    """

    ceiling: float = 1000.0
    counts: str = "equal"

    needs_references = True

    def __post_init__(self) -> None:
        require_choice("counts", self.counts, ("equal", "all"))
        if not 0.0 < self.ceiling < float("inf"):
            raise InputError("ceiling", f"got {self.ceiling!r}", "give a loss that none exceeds, such as 1000")

    @property
    def key(self) -> str:
        """``reference``."""
        return "reference"

    @property
    def title(self) -> str:
        """The name for human readers."""
        return "Reference (Attack-R)"

    @property
    def required_stats(self) -> tuple[str, ...]:
        """The loss."""
        return ("loss",)

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        panel = Panel(signals.keep, targets, self.counts)
        panel.require(self.key, n_in=0, n_out=1)
        loss = signals.stat("loss")
        scores = np.empty((len(targets), signals.num_samples))
        for samples in sample_blocks(loss):
            said = torch.from_numpy(np.array(loss[:, samples]))
            for row, target in enumerate(targets):
                out = panel.reference_masks(row, samples)[1]
                scores[row, samples] = 1.0 - self._rank(said[target], said, out).mean(-1).numpy()
        return AttackResult(scores)

    def _rank(self, loss: Tensor, losses: Tensor, out: Tensor) -> Tensor:
        """Interpolated quantile [B, A] of ``loss`` [B, A] among the ``losses`` [M, B, A] of the models ``out`` [M, B]."""
        loss = loss.clamp(max=self.ceiling)
        out = out.unsqueeze(-1)
        is_below = out & (losses <= loss)
        below = losses.where(is_below, 0.0).amax(0)
        above = losses.where(out & ~is_below, self.ceiling).amin(0).clamp(max=self.ceiling)
        part = ((loss - below) / (above - below)).nan_to_num(1.0)
        return (is_below.sum(0) + part) / (out.sum(0) + 1)
