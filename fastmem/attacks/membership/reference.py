"""Attack-R: how low is a record's loss among those of models that did not train on it? (Ye et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmem.attacks.membership.base import Attack, AttackResult, require_choice
from fastmem.attacks.membership.panel import Panel, sample_blocks
from fastmem.errors import InputError
from fastmem.ops.leave_one_out import missing_out
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
            said = torch.from_numpy(np.array(loss[:, samples])).clamp(0.0, self.ceiling)
            missing = missing_out(panel.keep[:, samples], panel.plan, samples.start)
            if missing is None:
                masks = [panel.reference_masks(row, samples)[1] for row in range(len(targets))]
                parts = [self._among(said[target], said, out) for target, out in zip(targets, masks, strict=True)]
                quantile = torch.stack(parts)
            else:
                quantile = self._among_sorted(said[targets], said, panel.keep[:, samples], missing)
            scores[:, samples] = 1.0 - quantile.mean(-1).numpy()
        return AttackResult(scores)

    def _among(self, x: Tensor, losses: Tensor, out: Tensor) -> Tensor:
        """Quantile of one target's losses [B, A] among those [M, B, A] of its references, ``out`` [M, B]."""
        out = out.unsqueeze(-1)
        is_below = out & (losses <= x)
        below = losses.where(is_below, 0.0).amax(0)
        above = losses.where(out & ~is_below, self.ceiling).amin(0)
        return self._interpolate(x, below, above, is_below.sum(0), out.sum(0))

    def _among_sorted(self, x: Tensor, losses: Tensor, keep: Tensor, missing: Tensor) -> Tensor:
        """The same for all targets [T, B, A]: OUT losses are sorted once, and the ``missing`` [T, B] is passed over."""
        # 0 before and the ceiling after the OUT losses, twice each: whatever is passed over, there are neighbours.
        ends = torch.tensor([0.0, 0.0, self.ceiling, self.ceiling], dtype=torch.float64)[:, None, None]
        ranked = torch.cat([losses.where(~keep.unsqueeze(-1), torch.inf), ends.expand(4, *losses.shape[1:])])
        ranked = ranked.permute(1, 2, 0).sort(dim=-1).values.contiguous()
        x, is_missing = x.permute(1, 2, 0).contiguous(), (missing >= 0).T.unsqueeze(1)
        passed = losses.permute(1, 2, 0).gather(2, missing.clamp(min=0).T.unsqueeze(1).expand_as(x))
        passed = passed.where(is_missing, torch.nan)

        place = torch.searchsorted(ranked, x, right=True).clamp(max=ranked.shape[-1] - 2)
        below, above = ranked.gather(2, place - 1), ranked.gather(2, place)
        below = torch.where(passed == below, ranked.gather(2, place - 2), below)
        above = torch.where(passed == above, ranked.gather(2, place + 1), above)
        count = place - 2 - (passed <= x).long()
        num_out = (~keep).sum(0)[:, None, None] - is_missing.long()
        return self._interpolate(x, below, above, count, num_out).permute(2, 0, 1)

    def _interpolate(self, x: Tensor, below: Tensor, above: Tensor, count: Tensor, num_out: Tensor) -> Tensor:
        """The quantile of x between its neighbours, ``count`` of ``num_out`` losses lying below it."""
        quantile = (count + (x - below) / (above - below)) / (num_out + 1)
        return quantile.masked_fill(x >= self.ceiling, 1.0)
