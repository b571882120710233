"""What the tasks of a canary study share: plain values and numpy arrays, so that they travel to other processes.

A *cohort* is one training variant. Its models come in seed-matched groups: null model i, and for each count of copies
the model of the same seed whose training set differs from it in the marked records alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmem.data import UniqueFeature
from fastmem.studies.canary.regularisers import Training

__all__ = ["Cohort", "Job", "Member"]

_BATCH_VALUES = 1 << 17
_SMALLEST_BATCH, _LARGEST_BATCH = 32, 1024


@dataclass(frozen=True)
class Member:
    """One model of a cohort.

    Args:
        copies: Records that carry the mark; 0 in a null model.
        pair: Which seed-matched group it belongs to.
        canary: Whose label its scores are for, and in a marked model who carries the mark.
        seed: Of its initial weights, batch order, augmentation and dropout.
        name: Of its files.
    """

    copies: int
    pair: int
    canary: int
    seed: int
    name: str


@dataclass(frozen=True, eq=False)
class Cohort:
    """The models of one training variant.

    Args:
        training: The variant.
        members: Its models.
        keys: Content key of each trained model.
        row_keys: Content key of each model's scores.
    """

    training: Training
    members: tuple[Member, ...]
    keys: tuple[str, ...]
    row_keys: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Job:
    """What every task shares.

    Args:
        cohorts: By name.
        x: Training records, uint8 [N + J K, C, H, W]: the pool, then the marked copies of canary 0, of canary 1, ...
        y: Their labels.
        pool: N.
        marks: Record numbers of the pool that carry the mark, the first k in a model of k copies, int64 [J, K].
        held_out: Records and labels that no model trains on.
        validation: Records and labels that early stopping watches, where there are any.
        evaluation: Images to score on, uint8 [n, C, H, W].
        patched: The same with the random patches.
        features: The mark, then its controls.
        variants: Of the score.
        labels: The canaries' labels, each once; None stands for an unknown one.
        model: Name or import path of the network.
        input_shape: Shape of one record.
        num_classes: C.
        mean: Normalisation of the inputs, from the pool without marks.
        std: The same.
        device: ``"cpu"`` or ``"cuda"``.
        save_models: Whether models are saved.
        folder: The run's folder.
    """

    cohorts: dict[str, Cohort]
    x: np.ndarray
    y: np.ndarray
    pool: int
    marks: np.ndarray
    held_out: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray] | None
    evaluation: np.ndarray
    patched: np.ndarray
    features: tuple[UniqueFeature, ...]
    variants: tuple[str, ...]
    labels: tuple[int | None, ...]
    model: str
    input_shape: tuple[int, ...]
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    device: str
    save_models: bool
    folder: str

    def records(self, member: Member) -> np.ndarray:
        """The training records of a model in order: a marked copy takes exactly its original's place."""
        records = np.arange(self.pool)
        first = self.pool + member.canary * self.marks.shape[1]
        records[self.marks[member.canary, : member.copies]] = first + np.arange(member.copies)
        return records

    @property
    def query_batch(self) -> int:
        """Images shown to a model at a time, as in an audit: as many as a core's caches hold, on a GPU many."""
        if self.device != "cpu":
            return _LARGEST_BATCH
        return min(max(_BATCH_VALUES // math.prod(self.input_shape), _SMALLEST_BATCH), _LARGEST_BATCH)

    def common(self) -> dict[str, Any]:
        """What decides the weights of every model, whatever its training variant, as ingredients of a content key."""
        return {
            "pool": (self.x[: self.pool], self.y[: self.pool]),
            "normalisation": (self.mean, self.std),
            "model": self.model,
            "device": self.device,
        }
