"""What is known of one model while it trains: its losses, when it is to stop, and its best weights so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastmem.training.evaluate import evaluate
from fastmem.training.job import DivergenceError, Job, TrainedModel

__all__ = ["Progress"]


class Progress:
    """Follows the model at place ``index`` of the job, whatever way it is trained."""

    def __init__(self, job: Job, index: int) -> None:
        self._job = job
        self._index = index
        self._history: dict[str, list[float]] = {"train_loss": []}
        self._best_loss = math.inf
        self._best_epoch = 0
        self._best_state: dict[str, Tensor] | None = None

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return len(self._history["train_loss"])

    def ends(self, model: nn.Module, loss: float) -> bool:
        """Note an epoch with this mean loss, after which the model is as given; whether it was the last.

        Raises:
            DivergenceError: If the loss is not finite.
        """
        job, recipe, epoch = self._job, self._job.recipe, self.epochs + 1
        if not math.isfinite(loss):
            raise DivergenceError.of(self._index, job.seeds[self._index], epoch, loss, recipe)
        self._history["train_loss"].append(loss)
        job.on_epoch(self._index, epoch, loss)
        return self._learned_enough(model) or self._lost_patience(model) or epoch == recipe.epochs

    def result(self, model: nn.Module) -> TrainedModel:
        """What is left of the model: of its best epoch, where the recipe asks for that."""
        job = self._job
        if self._best_state is not None:
            model.load_state_dict(self._best_state)
        _, accuracy = evaluate(model, job.x, job.y, job.normalisation, job.records[self._index])
        return TrainedModel(_copy(model, "cpu"), self._history, accuracy, self.epochs, self._best_epoch or self.epochs)

    def _learned_enough(self, model: nn.Module) -> bool:
        job, enough = self._job, self._job.recipe.stop_at_train_accuracy
        if enough is None:
            return False
        return evaluate(model, job.x, job.y, job.normalisation, job.records[self._index])[1] >= enough

    def _lost_patience(self, model: nn.Module) -> bool:
        job, patience = self._job, self._job.recipe.patience
        if patience is None or job.validation is None:
            return False
        loss, _ = evaluate(model, *job.validation, job.normalisation)
        self._history.setdefault("validation_loss", []).append(loss)
        if loss < self._best_loss:
            self._best_loss, self._best_epoch, self._best_state = loss, self.epochs, _copy(model, job.device)
        return self.epochs - self._best_epoch >= patience


def _copy(model: nn.Module, device: torch.device | str) -> dict[str, Tensor]:
    """Fresh, contiguous copies: nothing of the optimiser or the device's memory stays alive with them."""
    return {
        name: value.detach().to(device).clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
