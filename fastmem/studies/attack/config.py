"""What ``fastmem attack`` is given, in one frozen dataclass; the docstring of a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastmem.errors import InputError
from fastmem.studies.keys import split_keys

__all__ = ["OPTION_GROUPS", "AttackConfig"]

OPTION_GROUPS = {
    "What the models said": ("signals", "logits", "keep", "labels", "population_logits", "population_labels"),
    "Attacks": ("attacks", "targets"),
    "The run": ("out", "name", "workers", "seed"),
}


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Membership attacks on answers that are already there."""

    signals: Path | None = None
    """Folder of a run, or a signals.zarr; instead of the arrays below."""
    logits: Path | None = None
    """.npy with the outputs before softmax of M models on N records, [M, N, C], or [M, N, A, C] with A views of each
    record."""
    keep: Path | None = None
    """.npy, bool [M, N]: record n was in the training set of model m."""
    labels: Path | None = None
    """.npy, integers [N]: the class of each record."""
    population_logits: Path | None = None
    """.npy like the logits, on Z records that no model trained on (RMIA and Population need it)."""
    population_labels: Path | None = None
    """.npy, integers [Z]: their classes."""

    attacks: str | tuple[str, ...] = "all"
    """Attacks, comma-separated keys (--list shows them), or all that can work with what is given."""
    targets: int | None = None
    """How many of the models to attack, the first ones, each against all others (default: all)."""

    out: Path | None = None
    """Folder of this run (default: runs/NAME)."""
    name: str = "attack"
    """Name of the run."""
    workers: int | None = None
    """Attacks that run at the same time, one thread each (default: one a core)."""
    seed: int = 0
    """Seed of the shuffled control and of the intervals."""

    def __post_init__(self) -> None:
        arrays = [name for name in OPTION_GROUPS["What the models said"][1:] if getattr(self, name) is not None]
        if self.signals is not None and arrays:
            raise InputError("signals", f"given beside {', '.join(arrays)}", "give one or the other")
        for name in ("targets", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(name, f"{value}", "give at least 1")
        if self.seed < 0:
            raise InputError("seed", f"{self.seed}", "give a number from 0")

    @property
    def attack_keys(self) -> tuple[str, ...]:
        """The attacks asked for; ``("all",)`` for all."""
        return split_keys(self.attacks)

    @property
    def run_dir(self) -> Path:
        """The run's folder: ``out``, else ``runs/<name>``."""
        return self.out if self.out is not None else Path("runs") / self.name
