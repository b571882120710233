"""Attack-P: is the loss unusually low among records that no model trained on? (Ye et al. 2022, arXiv:2111.09679)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmem.attacks.membership.base import Attack, AttackResult
from fastmem.signals import Signals

__all__ = ["Population"]


@dataclass(frozen=True)
class Population(Attack):
    """Share of the population whose loss in the target is larger than the record's; a mean over queries.

    Public scripts take the target's own non-members for the population, which an attacker does not have; here it is
    records that no model trained on. Ties are no win. Within a target this ranks as the loss does, in Z + 1 steps.
    """

    needs_population = True

    @property
    def key(self) -> str:
        """``population``."""
        return "population"

    @property
    def title(self) -> str:
        """The name for human readers."""
        return "Population (Attack-P)"

    @property
    def required_stats(self) -> tuple[str, ...]:
        """The loss."""
        return ("loss",)

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        assert population is not None
        loss_x, loss_z = signals.stat("loss"), population.stat("loss")
        scores = [
            np.mean([_share_above(z, x) for x, z in zip(loss_x[target].T, loss_z[target].T, strict=True)], axis=0)
            for target in targets
        ]
        return AttackResult(np.stack(scores))


def _share_above(population: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each value the share of the population [Z] that is strictly larger."""
    return 1.0 - np.searchsorted(np.sort(population), values, side="right") / len(population)
