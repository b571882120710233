"""One model after another, by ordinary PyTorch: takes any network and any recipe, and is what other ways must equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastmem.errors import InputError
from fastmem.training.batches import Batches
from fastmem.training.evaluate import evaluate, model_dtype
from fastmem.training.job import DivergenceError, Job, TrainedModel, stream_seed
from fastmem.training.step import Step

__all__ = ["PlainTrainer", "own_randomness"]


class PlainTrainer:
    """Trains the models of a job one at a time."""

    name = "plain"

    def supports(self, job: Job, model: nn.Module) -> str | None:
        """None: it takes everything."""
        return None

    def train(self, job: Job) -> list[TrainedModel]:
        """Train them all, in the job's order."""
        return [_Training(job, index).run() for index in range(len(job.seeds))]


class _Training:
    """The training of one model of the job, from its initial weights to its last."""

    def __init__(self, job: Job, index: int) -> None:
        self.job = job
        self.index = index
        self.history: dict[str, list[float]] = {"train_loss": []}
        self.best_loss = math.inf
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] | None = None

    def run(self) -> TrainedModel:
        job, seed = self.job, self.job.seeds[self.index]
        with own_randomness(job.device) as reseed:
            reseed(seed)
            model = job.build(seed).to(job.device)
            reseed(stream_seed(seed, "dropout"))
            self._fit(model)
            if self.best_state is not None:
                model.load_state_dict(self.best_state)
            _, accuracy = evaluate(model, job.x, job.y, job.normalisation, job.records[self.index])
        epochs_run = len(self.history["train_loss"])
        return TrainedModel(_copy(model, "cpu"), self.history, accuracy, epochs_run, self.best_epoch or epochs_run)

    def _fit(self, model: nn.Module) -> None:
        job, recipe = self.job, self.job.recipe
        memory_format = torch.contiguous_format
        if job.x.ndim == 4 and getattr(model, "channels_last", False):
            memory_format = torch.channels_last
            nn.utils.convert_conv2d_weight_memory_format(model, memory_format)
        batches = Batches(job, self.index, model_dtype(model), memory_format)
        _check_batch_norm(model, batches.sizes)
        step = Step(model, recipe, job.device)
        sizes = torch.tensor(batches.sizes, dtype=torch.float64)
        rates = iter(recipe.rates(len(sizes)))
        model.train()
        for epoch in range(1, recipe.epochs + 1):
            losses = [step(x, y, next(rates)) for x, y in batches.epoch()]
            loss = float(torch.stack(losses).double().cpu() @ (sizes / sizes.sum()))  # the epoch's only wait for a GPU
            if not math.isfinite(loss):
                raise DivergenceError.of(self.index, job.seeds[self.index], epoch, loss, recipe)
            self.history["train_loss"].append(loss)
            job.on_epoch(self.index, epoch, loss)
            if self._learned_enough(model) or self._lost_patience(model, epoch):
                break

    def _learned_enough(self, model: nn.Module) -> bool:
        job, enough = self.job, self.job.recipe.stop_at_train_accuracy
        if enough is None:
            return False
        return evaluate(model, job.x, job.y, job.normalisation, job.records[self.index])[1] >= enough

    def _lost_patience(self, model: nn.Module, epoch: int) -> bool:
        job, patience = self.job, self.job.recipe.patience
        if patience is None or job.validation is None:
            return False
        loss, _ = evaluate(model, *job.validation, job.normalisation)
        self.history.setdefault("validation_loss", []).append(loss)
        if loss < self.best_loss:
            self.best_loss, self.best_epoch, self.best_state = loss, epoch, _copy(model, job.device)
        return epoch - self.best_epoch >= patience


@contextmanager
def own_randomness(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Within, what is yielded reseeds torch's global generators for one model; afterwards they are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):

        def reseed(seed: int) -> None:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)

        yield reseed


def _copy(model: nn.Module, device: torch.device | str) -> dict[str, Tensor]:
    """Fresh, contiguous copies: nothing of the optimiser or the device's memory stays alive with them."""
    return {
        name: value.detach().to(device).clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }


def _check_batch_norm(model: nn.Module, sizes: list[int]) -> None:
    if min(sizes) == 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise InputError(
            "batch_size",
            f"{max(sizes)} leaves a batch of 1 record, on which batch normalisation fails",
            "give at least 3",
        )
