"""How many models train at once on a device: as many as its free memory holds, and fewer where that was too many."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

from fastmem.data.transforms import normalise
from fastmem.training.evaluate import model_dtype
from fastmem.training.job import Job, TrainedModel, batch_bounds

__all__ = ["bytes_of_training", "pack_size", "train_in_packs"]

_log = logging.getLogger(__name__)

# Of the memory that is free: the rest is for what the estimate does not see, such as work space of convolutions.
_SHARE = 0.7
# Models in a pack on a GPU, at most: by then the batched products fill it.
_LARGEST_PACK = 256


def train_in_packs(job: Job, size: int, train: Callable[[list[int]], list[TrainedModel]]) -> list[TrainedModel]:
    """Train all models of a job, at most ``size`` at once, each pack of models that take as many steps an epoch.

    Where a pack does not fit the device's memory, it starts again in halves, and later packs are no larger.

    Args:
        job: The job.
        size: Models in a pack.
        train: Trains the models at these places, from their initial weights on.

    Raises:
        torch.OutOfMemoryError: If a single model does not fit.
    """
    alike: dict[int, list[int]] = defaultdict(list)
    for index, records in enumerate(job.records):
        alike[len(batch_bounds(len(records), job.recipe.batch_size))].append(index)
    trained: dict[int, TrainedModel] = {}
    for indices in alike.values():
        while indices:
            pack = indices[:size]
            try:
                trained |= zip(pack, train(pack), strict=True)
            except torch.OutOfMemoryError:
                if len(pack) == 1:
                    raise
                size = len(pack) // 2
                _log.info("%d models do not fit the memory of %s, going on with %d", len(pack), job.device, size)
            else:
                indices = indices[len(pack) :]
                continue
            # Outside of the except clause, whose exception keeps the pack's tensors alive.
            if job.device.type == "cuda":
                torch.cuda.empty_cache()
    return [trained[index] for index in range(len(job.seeds))]


def pack_size(job: Job, model: nn.Module) -> int:
    """How many models like this one fit the device's free memory."""
    if job.device.type != "cuda":
        return _LARGEST_PACK
    free, _ = torch.cuda.mem_get_info(job.device)
    return max(1, min(_LARGEST_PACK, int(_SHARE * free) // bytes_of_training(job, model)))


def bytes_of_training(job: Job, model: nn.Module) -> int:
    """What a model takes while it trains: weights, gradients, the optimiser's state, and twice a batch's activations.

    The activations are what autograd keeps of one forward pass, made here on the device of ``model``.
    """
    kept = 0

    def keep(value: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += value.numel() * value.itemsize
        return value

    device = next(model.parameters()).device
    count = min(job.recipe.batch_size, len(job.x))
    mean, std = (part.to(device) for part in job.normalisation)
    x = normalise(job.x[:count].to(device), mean, std).to(model_dtype(model))
    training = model.training
    # In eval mode: a look at the model leaves no trace in its running statistics.
    model.eval()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(x)
    model.train(training)
    weights = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    copies = 3 if job.recipe.optimizer == "sgd" else 4
    return copies * weights + 2 * kept
