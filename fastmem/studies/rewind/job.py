"""What the tasks of a rewinding study share: plain values and numpy arrays, so that they travel to other processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmem.studies.rewind.arms import Arm
from fastmem.studies.rewind.config import RewindConfig
from fastmem.training import Recipe

__all__ = ["Cohort", "Given", "Job"]

_BATCH_VALUES = 1 << 17
_SMALLEST_BATCH, _LARGEST_BATCH = 32, 1024


@dataclass(frozen=True, eq=False)
class Cohort:
    """Models of one recipe, from their initial weights.

    Args:
        name: Its folder of models.
        recipe: How they are trained.
        keys: Content key of each trained model.
    """

    name: str
    recipe: Recipe
    keys: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Given:
    """A model of the user's own; it is row 0.

    Args:
        trained: Its state by name.
        initial: Its state before training.
        source: Where that came from: ``file`` or ``seed N``.
        x: All records that it was trained on, which may be more than the pool holds.
        y: Their labels.
    """

    trained: dict[str, np.ndarray]
    initial: dict[str, np.ndarray]
    source: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, eq=False)
class Job:
    """What every task shares.

    Args:
        config: The config, resolved.
        arms: What is compared.
        cohorts: Models that are trained by recipe: ``none``, and ``early_stopping`` where it is asked for.
        seeds: Seed of each model.
        arm_keys: Content key of each row, by arm.
        entangle_keys: Content key of each comparison of scores.
        x: The pool [N, ...], then the test records.
        y: Labels [R] of both.
        pool: N.
        keep: Who trains on what, bool [M, R], False beyond the pool.
        reference_x: Reference records.
        reference_y: Their labels.
        validation_x: Validation records.
        validation_y: Their labels.
        num_classes: C.
        mean: Normalisation of the inputs.
        std: The same.
        device: ``"cpu"`` or ``"cuda"``.
        folder: Of the run.
        given: The user's own model, if there is one.
    """

    config: RewindConfig
    arms: tuple[Arm, ...]
    cohorts: dict[str, Cohort]
    seeds: tuple[int, ...]
    arm_keys: dict[str, tuple[str, ...]]
    entangle_keys: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    pool: int
    keep: np.ndarray
    reference_x: np.ndarray
    reference_y: np.ndarray
    validation_x: np.ndarray
    validation_y: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    device: str
    folder: str
    given: Given | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return tuple(self.x.shape[1:])

    @property
    def num_models(self) -> int:
        """M, a model of the user's own included."""
        return len(self.keep)

    @property
    def targets(self) -> list[int]:
        """Which models are attacked: all, or the user's own."""
        return list(range(self.num_models)) if self.given is None else [0]

    @property
    def store(self) -> str:
        """Folder of the answers."""
        return str(Path(self.folder) / "signals.zarr")

    @property
    def query_batch(self) -> int:
        """Records shown to a model at a time: as many as a core's caches hold, on a GPU many."""
        if self.device != "cpu":
            return _LARGEST_BATCH
        return min(max(_BATCH_VALUES // math.prod(self.input_shape), _SMALLEST_BATCH), _LARGEST_BATCH)

    def checkpoint(self, cohort: str, model: int) -> Path:
        """Where a model is saved."""
        return Path(self.folder) / "models" / cohort / f"{model:04d}.safetensors"

    def entanglement(self, model: int) -> Path:
        """Where the comparison of a model's scores is saved."""
        return Path(self.folder) / "entanglement" / f"{model:04d}.npz"
