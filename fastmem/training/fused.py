"""ReLU perceptrons on the CPU, whole epochs of each in one native call (:mod:`fastmem.ops.mlp_sgd`).

As many models are in flight as torch has threads, one on each, and the next one starts where one ends: memory grows
with the threads, not with the models. What is computed is exactly what :mod:`fastmem.training.plain` computes, rounding
apart, early stopping included; and what a model becomes does not depend on its neighbours or the number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmem.data.transforms import normalise
from fastmem.models.mlp import relu_layers
from fastmem.ops import explain
from fastmem.ops._native import cpu_module
from fastmem.ops.mlp_sgd import Dense, Rule, Visit, mlp_sgd
from fastmem.training.batches import Batches
from fastmem.training.job import Job, TrainedModel
from fastmem.training.plain import initial_model
from fastmem.training.progress import Progress

__all__ = ["FusedTrainer"]

# Records are read through their index from one normalised copy of all of them, if it is no larger than this.
_POOL_BYTES = 1 << 28
# Multiplications of a call, about 20 ms of one core: a call of a few microseconds' work would cost as much as the work.
_CALL = 1 << 30


class FusedTrainer:
    """Trains ReLU perceptrons by stochastic gradient descent in C++."""

    name = "fused"

    def supports(self, job: Job, model: nn.Module) -> str | None:
        """None for ReLU perceptrons under a recipe without Adam or clipping on a CPU with AVX2, else why not."""
        recipe, kernel = job.recipe, explain("mlp_sgd")
        if job.device.type != "cpu":
            return "the device is not the CPU"
        if recipe.optimizer != "sgd":
            return "the optimizer is not sgd"
        if recipe.clip_norm is not None:
            return "gradients are clipped, which takes all of them before any weight moves"
        if kernel.chosen != "cpu":
            return f"its kernel does not run: {kernel.remarks['cpu']}"
        if cpu_module().isa() == "generic":
            return "the processor has no AVX2, without which PyTorch's matrix products are faster"
        layers = relu_layers(model)
        return layers if isinstance(layers, str) else None

    def train(self, job: Job) -> list[TrainedModel]:
        """Train them all, in the job's order."""
        records = _Records(job)
        waiting = iter(range(len(job.seeds)))
        active: list[_Model] = []
        trained: dict[int, TrainedModel] = {}
        while len(trained) < len(job.seeds):
            room = torch.get_num_threads() - len(active)
            active += [_Model(job, index) for index in itertools.islice(waiting, room)]
            losses = records.advance(active)
            for model, epochs in zip(active, losses, strict=True):
                # Not more than one epoch where the recipe may stop before the last.
                ended = [model.progress.ends(model.network, loss) for loss in epochs]
                if ended[-1]:
                    trained[model.index] = model.progress.result(model.network)
            active = [model for model in active if model.index not in trained]
        return [trained[index] for index in range(len(job.seeds))]


class _Model:
    """A model in flight."""

    def __init__(self, job: Job, index: int) -> None:
        self.index = index
        self.network = initial_model(job, index)
        linear = relu_layers(self.network)
        assert not isinstance(linear, str), linear
        self.layers = [_dense(layer) for layer in linear]
        self.dtype = linear[0].weight.dtype
        self.batches = Batches(job, index, self.dtype)
        self.rates = torch.tensor(job.recipe.rates(len(self.batches.sizes)), dtype=torch.float64)
        self.progress = Progress(job, index)

    def epochs_a_call(self, recipe_epochs: int) -> int:
        weights = sum(layer.weight.numel() for layer in self.layers)
        wanted = _CALL // (3 * weights * self.batches.bounds[-1])
        return max(1, min(wanted, recipe_epochs - self.progress.epochs))

    def visit(self, x: Tensor, y: Tensor, rows: Tensor, sizes: Sequence[int], first_step: int) -> Visit:
        bounds = torch.tensor([0, *itertools.accumulate(sizes)])
        return Visit(self.layers, x, y, rows, bounds, self.rates[first_step : first_step + len(sizes)])


def _dense(layer: nn.Linear) -> Dense:
    weight, bias = layer.weight.detach(), layer.bias.detach()
    return Dense(weight, bias, torch.zeros_like(weight), torch.zeros_like(bias))


class _Records:
    """The records of a job, and how models go through them."""

    def __init__(self, job: Job) -> None:
        recipe = job.recipe
        self._job = job
        self._rule = Rule(recipe.momentum, recipe.nesterov, recipe.weight_decay, recipe.label_smoothing)
        self._may_stop = recipe.patience is not None or recipe.stop_at_train_accuracy is not None
        self._pools: dict[torch.dtype, Tensor] = {}

    def advance(self, models: list[_Model]) -> list[list[float]]:
        """Take models through their next epochs, at least one; the mean loss of each epoch of each model."""
        dtype = models[0].dtype
        as_they_are = self._job.recipe.augment == "none"
        if as_they_are and self._job.x.numel() * dtype.itemsize <= _POOL_BYTES:
            return self._through_index(models, self._pool(dtype))
        return self._through_blocks(models)

    def _pool(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._pools:
            self._pools[dtype] = normalise(self._job.x, *self._job.normalisation).to(dtype).flatten(1).contiguous()
        return self._pools[dtype]

    def _through_index(self, models: list[_Model], pool: Tensor) -> list[list[float]]:
        counts = [1 if self._may_stop else model.epochs_a_call(self._job.recipe.epochs) for model in models]
        visits = []
        for model, count in zip(models, counts, strict=True):
            rows = torch.cat([model.batches.draw()[0] for _ in range(count)])
            steps = len(model.batches.sizes)
            visits.append(
                model.visit(pool, self._job.y, rows, model.batches.sizes * count, model.progress.epochs * steps)
            )
        losses = mlp_sgd(visits, self._rule)
        return [_means(model, loss) for model, loss in zip(models, losses, strict=True)]

    def _through_blocks(self, models: list[_Model]) -> list[list[float]]:
        losses: list[list[Tensor]] = [[] for _ in models]
        steps = [model.progress.epochs * len(model.batches.sizes) for model in models]
        for blocks in itertools.zip_longest(*(model.batches.blocks() for model in models)):
            taking = [place for place, block in enumerate(blocks) if block is not None]
            visits = []
            for place in taking:
                x, y, sizes = blocks[place]
                visits.append(models[place].visit(x.flatten(1), y, torch.arange(len(y)), sizes, steps[place]))
                steps[place] += len(sizes)
            for place, loss in zip(taking, mlp_sgd(visits, self._rule), strict=True):
                losses[place].append(loss)
        return [_means(model, torch.cat(parts)) for model, parts in zip(models, losses, strict=True)]


def _means(model: _Model, losses: Tensor) -> list[float]:
    """The mean loss over the records of each epoch, from that of each step."""
    sizes, count = model.batches.sizes, model.batches.bounds[-1]
    # Exact sums: how many epochs are summed at once does not show.
    return [
        math.fsum(loss * size for loss, size in zip(epoch, sizes, strict=True)) / count
        for epoch in losses.view(-1, len(sizes)).tolist()
    ]
