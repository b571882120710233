"""What every membership attack is: a pure function from :class:`~fastmem.signals.Signals` to scores [T, N].

Higher score = more likely a member, in every attack.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fastmem.errors import InputError, UnknownNameError
from fastmem.signals import Signals

__all__ = ["Attack", "AttackResult", "require_choice"]


@dataclass(frozen=True)
class AttackResult:
    """Scores of one attack, with what a report must say beside them.

    Attributes:
        scores: float64 [T, N], higher = more likely a member; a row per target, in the order of ``targets``.
        details: What the attack found out on its way (spreads, floored entries, mass of ties, ...), ready for JSON.
        warnings: What a reader of the scores must know, one sentence each; mostly empty.
    """

    scores: np.ndarray
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Attack(ABC):
    """A membership attack: its options are its fields, and calling it gives scores.

    Attributes:
        key: The name of the attack in reports and on the command line.
        title: The same for human readers.
        needs_references: Whether it compares a target with the other models.
        needs_population: Whether it needs records that no model trained on.
    """

    needs_references: ClassVar[bool] = False
    needs_population: ClassVar[bool] = False

    @property
    @abstractmethod
    def key(self) -> str:
        """The name of the attack, for example ``"lira_online"``."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The name for human readers."""

    @property
    @abstractmethod
    def required_stats(self) -> tuple[str, ...]:
        """The statistics it reads, by the names of :meth:`fastmem.signals.Signals.stat`."""

    @property
    def options(self) -> dict[str, Any]:
        """The value of every option, for the report."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}

    def __call__(
        self, signals: Signals, targets: Sequence[int] | None = None, population: Signals | None = None
    ) -> np.ndarray:
        """The scores of every record in every target.

        Args:
            signals: What M models said about the N records under attack.
            targets: Rows of the models under attack; None for all of them, one at a time. Every model but the target
                is a reference, also when it is a target itself.
            population: What the same M models said, under the same queries, about records that none trained on.
                Attacks that need none ignore it.

        Returns:
            float64 [T, N], higher = more likely a member.

        Raises:
            InputError: A target is out of range, there is no population where one is needed (or it does not fit), a
                statistic is missing, or a record has too few reference models.
        """
        return self.run(signals, targets, population).scores

    def run(
        self, signals: Signals, targets: Sequence[int] | None = None, population: Signals | None = None
    ) -> AttackResult:
        """The scores, with details and warnings for a report; arguments and errors as in :meth:`__call__`."""
        rows = _checked_targets(targets, signals.num_models)
        if self.needs_population:
            _check_population(self.key, signals, population)
        return self._run(signals, rows, population)

    @abstractmethod
    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        """The attack itself, on checked arguments."""


def require_choice(argument: str, given: object, accepted: Iterable[str]) -> None:
    """Refuse an option that is none of the accepted ones, and offer the nearest of them."""
    if given not in (names := tuple(accepted)):
        raise UnknownNameError(argument, str(given), names)


def _checked_targets(targets: Sequence[int] | None, num_models: int) -> list[int]:
    if targets is None:
        return list(range(num_models))
    rows = np.asarray(targets)
    if (
        rows.dtype.kind not in "iu"
        or rows.ndim != 1
        or len(np.unique(rows)) < len(rows)
        or not ((rows >= 0) & (rows < num_models)).all()
    ):
        raise InputError(
            "targets",
            f"got {targets!r}",
            f"give one or more of the models 0..{num_models - 1}, each once, as in [0, 1]",
        )
    return rows.tolist()


def _check_population(key: str, signals: Signals, population: Signals | None) -> None:
    if population is None:
        raise InputError(
            "population",
            f"{key} needs records that no model trained on, and got none",
            "give population=, the Signals of such records for the same models",
        )
    if (population.num_models, population.num_queries) != (signals.num_models, signals.num_queries):
        raise InputError(
            "population",
            f"{population.num_models} models and {population.num_queries} queries for signals of "
            f"{signals.num_models} models and {signals.num_queries} queries",
            "query the same models in the same way",
        )
    if population.keep.any():
        model, record = np.argwhere(population.keep)[0]
        raise InputError(
            "population",
            f"record {record} is in the training set of model {model}",
            "give records that no model trained on",
        )
