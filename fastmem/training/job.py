"""One call of ``train_models``, checked: what every way of training it is handed, and what it gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fastmem.errors import FastmemError
from fastmem.training.recipe import Recipe

__all__ = ["DivergenceError", "Job", "OnEpoch", "TrainedModel", "Trainer", "batch_bounds", "stream_seed"]

OnEpoch = Callable[[int, int, float], None]
"""Called after each epoch of each model: (model's place in the call, epochs done, mean training loss)."""


class DivergenceError(FastmemError):
    """The loss of a model became NaN or infinite."""

    @classmethod
    def of(cls, index: int, seed: int, epoch: int, loss: float, recipe: Recipe) -> DivergenceError:
        """For the model at place ``index``, whose loss was ``loss`` in ``epoch`` (from 1)."""
        return cls(
            "training",
            f"model {index} (seed {seed}) diverged: its mean loss in epoch {epoch} is {loss}",
            f"lower learning_rate (now {recipe.peak_rate:g}), or set clip_norm or warmup_epochs",
        )


@dataclass
class TrainedModel:
    """What training leaves of one model.

    Attributes:
        state: Parameters and buffers by name, on the CPU (``nn.Module.load_state_dict`` takes it).
        history: ``train_loss``, the mean over the epoch's batches as they were met, and with patience
            ``validation_loss``, after each epoch.
        train_accuracy: Share of the model's own records that it classifies right at the end, in eval mode.
        epochs_run: Epochs trained, less than the recipe's when stopped early.
        best_epoch: The epoch (from 1) that ``state`` is from.
    """

    state: dict[str, Tensor]
    history: dict[str, list[float]]
    train_accuracy: float
    epochs_run: int
    best_epoch: int


@dataclass(frozen=True, eq=False)
class Job:
    """Checked arguments of ``train_models``; ``x``, ``y``, ``normalisation`` and ``validation`` are on ``device``."""

    build: Callable[[int], nn.Module]
    x: Tensor
    y: Tensor
    records: list[Tensor]  # of each model, int64 on the CPU, in the order that its seed shuffles
    recipe: Recipe
    seeds: tuple[int, ...]
    normalisation: tuple[Tensor, Tensor]
    device: torch.device
    on_epoch: OnEpoch
    validation: tuple[Tensor, Tensor] | None = None


class Trainer(Protocol):
    """One way of training all models of a job.

    Whatever the way, a model is decided by its seed and its records: its initial weights by ``build(seed)``, the order
    of its batches by ``stream_seed(seed, "order")``, its augmentation by ``stream_seed(seed, "augment")``.
    """

    name: str

    def supports(self, job: Job, model: nn.Module) -> str | None:
        """None if this way gives what the plain one gives, up to rounding; else why not. ``model``: one of the job."""
        ...

    def train(self, job: Job) -> list[TrainedModel]:
        """Train them all, in the job's order."""
        ...


def stream_seed(seed: int, stream: str) -> int:
    """A seed for one use of randomness of the model with ``seed``, independent of its other uses."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "big") >> 1


def batch_bounds(records: int, batch_size: int) -> list[int]:
    """Where the batches of an epoch begin and end: sizes differ by at most one, none exceeds ``batch_size``."""
    batches = -(-records // batch_size)
    return [records * i // batches for i in range(batches + 1)]
