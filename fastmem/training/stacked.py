"""Many perceptrons at once: their weights stacked, each matrix product one batched product.

On a GPU a perceptron of any size leaves most of it idle; on a CPU without the C++ kernels (:mod:`.fused`) a step of a
small one is a dozen operators of a few microseconds of arithmetic each, and calling them is what costs. Stacked, one
call serves a whole pack of models. Forward and backward are written out, so that no graph is recorded and the momentum
is updated by the product that makes the gradient: v <- momentum v + x' d, with d the loss's derivative by the layer's
output. What is computed is exactly what :mod:`fastmem.training.plain` computes, rounding apart.

A model's result does not depend on the pack it is in: batches are padded to the recipe's size with records of weight
zero, whatever the pack, and a batched product treats its matrices one by one. (That holds bit for bit on the CPU.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastmem.data.transforms import normalise
from fastmem.models import count_parameters
from fastmem.models.mlp import relu_layers
from fastmem.training.batches import BLOCK_VALUES, Batches
from fastmem.training.job import Job, TrainedModel
from fastmem.training.packs import pack_size, train_in_packs
from fastmem.training.plain import initial_model
from fastmem.training.progress import Progress

__all__ = ["StackedTrainer"]

# Model-steps in a second of one AVX-512 core against one model at a time, batches of 58: 3 times at 10,000 weights,
# twice at 50,000, 1.6 times at 235,000. Beyond, the products themselves are the cost.
_LARGEST = 250_000
# Models in a pack: enough to share the cost of a call, few enough that weights, momentum and batch stay near the core.
_PACK = 16


class StackedTrainer:
    """Trains packs of equal, small perceptrons by plain stochastic gradient descent."""

    name = "stacked"

    def supports(self, job: Job, model: nn.Module) -> str | None:
        """None for ReLU perceptrons under a plain recipe, on a CPU small ones, else why not."""
        recipe = job.recipe
        reasons = {
            "the optimizer is not sgd, or uses Nesterov's form": recipe.optimizer != "sgd" or recipe.nesterov,
            "gradients are clipped": recipe.clip_norm is not None,
            "models may stop early": recipe.patience is not None or recipe.stop_at_train_accuracy is not None,
            "mixed precision is asked for": recipe.mixed_precision != "none",
        }
        reason = next((reason for reason, applies in reasons.items() if applies), None)
        if reason is None:
            layers = relu_layers(model)
            if isinstance(layers, str):
                reason = layers
            elif job.device.type == "cpu" and count_parameters(model) > _LARGEST:
                reason = f"the model has more than {_LARGEST} weights, where stacking gains little on a CPU"
        return reason

    def train(self, job: Job) -> list[TrainedModel]:
        """Train them all, in packs of models that take the same batches."""
        size = _PACK if job.device.type == "cpu" else pack_size(job, initial_model(job, 0).to(job.device))
        return train_in_packs(job, size, lambda pack: _train_pack(job, pack))


@dataclass
class _Layer:
    """A linear layer of each model of the pack, with its momentum: weight [K, in, out], bias [K, 1, out]."""

    weight: Tensor
    bias: Tensor
    weight_speed: Tensor
    bias_speed: Tensor


def _train_pack(job: Job, pack: list[int]) -> list[TrainedModel]:
    recipe = job.recipe
    models = [initial_model(job, index).to(job.device) for index in pack]
    layers = _stack(models)
    feed = _PackedBatches(job, [Batches(job, index) for index in pack])
    rates = iter(recipe.rates(feed.steps))
    progress = [Progress(job, index) for index in pack]
    for _ in range(recipe.epochs):
        total = torch.zeros(len(pack), dtype=torch.float64, device=job.device)
        for x, y, weight, share in feed.epoch(layers[0].weight.dtype):
            loss = _step(
                layers, x, y, weight, next(rates), recipe.momentum, recipe.weight_decay, recipe.label_smoothing
            )
            total += loss * share
        for model, own, loss in zip(models, progress, total.tolist(), strict=True):
            own.ends(model, loss)
    for place, model in enumerate(models):
        _unstack(layers, place, model)
    return [own.result(model) for own, model in zip(progress, models, strict=True)]


def _step(
    layers: list[_Layer],
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    rate: float,
    momentum: float,
    decay: float,
    smoothing: float,
) -> Tensor:
    """Move every model by its own batch.

    Args:
        layers: Changed in place.
        x: [K, B, D] inputs.
        y: int64 [K, B, 1] labels.
        weight: [K, B, 1] weight of each record in the mean; 0 for padding.
        rate: Learning rate.
        momentum: Factor of the former speed.
        decay: Factor of the weights added to the gradient.
        smoothing: Share of the target spread over all classes.

    Returns:
        [K] mean losses before the step.
    """
    inputs = [x]
    for layer in layers[:-1]:
        inputs.append(torch.baddbmm(layer.bias, inputs[-1], layer.weight).clamp_(min=0))
    log_p = torch.baddbmm(layers[-1].bias, inputs[-1], layers[-1].weight).log_softmax(dim=2)
    loss = log_p.gather(2, y).neg_()
    if smoothing:
        loss = loss.mul_(1 - smoothing).sub_(log_p.mean(dim=2, keepdim=True), alpha=smoothing)
    slope = log_p.exp().scatter_add_(2, y, weight.new_full((), smoothing - 1).expand_as(y))
    if smoothing:
        slope.sub_(smoothing / slope.shape[2])
    slope.mul_(weight)
    for place in reversed(range(len(layers))):
        layer, inside, outside = layers[place], inputs[place], slope
        if place:  # before the weights change
            slope = torch.bmm(outside, layer.weight.mT).mul_(inside > 0)
        layer.weight_speed.baddbmm_(inside.mT, outside, beta=momentum)
        layer.bias_speed.mul_(momentum).add_(outside.sum(dim=1, keepdim=True))
        if decay:
            layer.weight_speed.add_(layer.weight, alpha=decay)
            layer.bias_speed.add_(layer.bias, alpha=decay)
        layer.weight.add_(layer.weight_speed, alpha=-rate)
        layer.bias.add_(layer.bias_speed, alpha=-rate)
    return loss.mul_(weight).sum(dim=(1, 2))


class _PackedBatches:
    """The batches of a pack's models side by side, each padded to the recipe's batch size."""

    def __init__(self, job: Job, batches: list[Batches]) -> None:
        self._job = job
        self._batches = batches
        size = job.recipe.batch_size
        self.steps = len(batches[0].sizes)
        # Where each record of a model's epoch goes in its row of steps x size places.
        self._places = [
            torch.cat([step * size + torch.arange(count) for step, count in enumerate(own.sizes)]) for own in batches
        ]
        sizes = torch.tensor([own.sizes for own in batches])
        weight = (torch.arange(size) < sizes[..., None]).double() / sizes[..., None]
        self._weight = weight.to(job.device)  # [K, steps, size]
        self._share = (sizes.double() / sizes.sum(dim=1, keepdim=True)).to(job.device)  # [K, steps]

    def epoch(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Inputs [K, B, D], labels [K, B, 1], weights [K, B, 1] and the step's share [K] of the epoch's mean loss."""
        job, size, steps = self._job, self._job.recipe.batch_size, self.steps
        order = torch.zeros(len(self._batches), steps * size, dtype=torch.int64)
        choices = None
        for row, (own, places) in enumerate(zip(self._batches, self._places, strict=True)):
            records, moves = own.draw()
            order[row, places] = records
            if moves is not None:
                choices = torch.zeros(*order.shape, moves.shape[1], dtype=moves.dtype) if choices is None else choices
                choices[row, places] = moves
        weight = self._weight.to(dtype)
        order = order.to(job.device)
        together = max(1, BLOCK_VALUES // (len(self._batches) * size * math.prod(job.x.shape[1:])))
        for first in range(0, steps, together):
            part = slice(first * size, min(first + together, steps) * size)
            rows = order[:, part].reshape(-1)
            moves = None if choices is None else choices[:, part].reshape(len(rows), -1)
            x = normalise(self._batches[0].augmentation.apply(job.x[rows], moves), *job.normalisation).to(dtype)
            x = x.view(len(self._batches), -1, size, math.prod(job.x.shape[1:]))
            y = job.y[rows].view(len(self._batches), -1, size, 1)
            for step in range(x.shape[1]):
                yield x[:, step], y[:, step], weight[:, first + step, :, None], self._share[:, first + step]


def _stack(models: list[nn.Module]) -> list[_Layer]:
    layers = []
    for same in zip(*(_layers(model) for model in models), strict=True):
        weight = torch.stack([module.weight.detach().T for module in same])
        bias = torch.stack([module.bias.detach()[None] for module in same])
        layers.append(_Layer(weight, bias, torch.zeros_like(weight), torch.zeros_like(bias)))
    return layers


def _unstack(layers: list[_Layer], place: int, model: nn.Module) -> None:
    with torch.no_grad():
        for layer, module in zip(layers, _layers(model), strict=True):
            module.weight.copy_(layer.weight[place].T)
            module.bias.copy_(layer.bias[place, 0])


def _layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]
