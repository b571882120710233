"""Train many models, each on its own records: the one door, behind which the way of doing so is chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.data.transforms import Augmentation
from fastmem.errors import InputError
from fastmem.training.fused import FusedTrainer
from fastmem.training.job import Job, OnEpoch, TrainedModel, Trainer
from fastmem.training.plain import PlainTrainer
from fastmem.training.recipe import Recipe
from fastmem.training.stacked import StackedTrainer
from fastmem.training.vmapped import VmappedTrainer

__all__ = ["train_models"]

_log = logging.getLogger(__name__)

# Tried in this order; the last one takes everything.
_TRAINERS: tuple[Trainer, ...] = (FusedTrainer(), StackedTrainer(), VmappedTrainer(), PlainTrainer())


def train_models(
    build: Callable[[int], nn.Module],
    x: Tensor,
    y: Tensor,
    keep: np.ndarray | Tensor | Sequence[np.ndarray],
    recipe: Recipe,
    seeds: Sequence[int],
    normalisation: tuple[Tensor, Tensor],
    device: str | torch.device = "cpu",
    on_epoch: OnEpoch | None = None,
    *,
    validation: tuple[Tensor, Tensor] | None = None,
) -> list[TrainedModel]:
    """Train K models; each is decided by its seed and its records alone, not by the others it is trained with.

    On the CPU, with the same number of threads, the same arguments give the same bytes. torch's global random state is
    left as it was.

    Args:
        build: Makes a model from its seed (``functools.partial(build_model, name, shape, classes)`` with ``seed`` last
            will do); what it draws from torch's global generator comes from that seed too.
        x: Stored samples, uint8 [N, C, H, W] or float32 [N, D]; moved to ``device`` whole, normalised batch by batch.
        y: int64 labels [N].
        keep: bool [K, N]: the records of each model, at least 2. Or K integer arrays, the record numbers of each model:
            entry i takes the i-th place in the orders that the seed draws, so two models of one seed whose lists differ
            in one entry are trained alike but for that record.
        recipe: How to train.
        seeds: K non-negative integers: initial weights, order of batches, augmentation and dropout of each model.
        normalisation: Mean and standard deviation (``Dataset.channel_stats``).
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``, ...
        on_epoch: Called with (model's place in the call, epochs done, mean training loss) after each of its epochs.
        validation: ``(x, y)`` of held-out records, which the recipe's ``patience`` watches.

    Returns:
        One :class:`~fastmem.training.job.TrainedModel` a seed, in order.

    Raises:
        InputError: If shapes, dtypes or lengths do not fit, or the device or the recipe cannot be had.
        DivergenceError: If a loss becomes NaN or infinite.
    """
    job = _job(build, x, y, keep, recipe, seeds, normalisation, device, on_epoch, validation)
    return _choose(job).train(job)


def _choose(job: Job) -> Trainer:
    with torch.random.fork_rng(devices=[]):
        model = job.build(job.seeds[0])
    for trainer in _TRAINERS:
        reason = trainer.supports(job, model)
        if reason is None:
            _log.info("training %d models with the %s trainer", len(job.seeds), trainer.name)
            return trainer
        _log.info("not with the %s trainer: %s", trainer.name, reason)
    raise AssertionError("the plain trainer takes everything")


def _job(
    build: Callable[[int], nn.Module],
    x: Tensor,
    y: Tensor,
    keep: np.ndarray | Tensor | Sequence[np.ndarray],
    recipe: Recipe,
    seeds: Sequence[int],
    normalisation: tuple[Tensor, Tensor],
    device: str | torch.device,
    on_epoch: OnEpoch | None,
    validation: tuple[Tensor, Tensor] | None,
) -> Job:
    where = _check_device(device, recipe)
    _check_samples("x, y", x, y)
    Augmentation(recipe.augment, x.shape[1:])  # refuses what these samples do not allow
    if len(seeds) == 0:
        raise InputError("seeds", "none", "give one a model")
    if any(seed < 0 for seed in seeds):
        raise InputError("seeds", f"{min(seeds)}", "give non-negative integers")
    records = _records(keep, len(seeds), len(x))
    for index, own in enumerate(records):
        if len(own) < 2:
            raise InputError("keep", f"model {index} has {len(own)} records", "a model needs at least 2")
    if recipe.patience is not None and validation is None:
        raise InputError("patience", f"{recipe.patience} without held-out records", "give validation=(x, y)")
    if validation is not None:
        _check_samples("validation", *validation)
        validation = (validation[0].to(where), validation[1].to(where))
    mean, std = normalisation
    return Job(
        build=build,
        x=x.to(where),
        y=y.to(where),
        records=records,
        recipe=recipe,
        seeds=tuple(int(seed) for seed in seeds),
        normalisation=(mean.to(where), std.to(where)),
        device=where,
        on_epoch=on_epoch or (lambda index, epoch, loss: None),
        validation=validation,
    )


def _records(keep: np.ndarray | Tensor | Sequence[np.ndarray], models: int, samples: int) -> list[Tensor]:
    """The record numbers of each model, from a mask or as they are given."""
    if isinstance(keep, Sequence):
        lists = [torch.as_tensor(own) for own in keep]
        wrong = [own for own in lists if own.ndim != 1 or own.is_floating_point() or own.dtype == torch.bool]
        if wrong or len(lists) != models:
            raise InputError("keep", f"{len(lists)} lists for {models} seeds", "give integers [n] for each seed")
        numbers = torch.cat(lists)
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < samples:
            raise InputError(
                "keep", f"records {int(numbers.min())} to {int(numbers.max())}", f"give numbers below {samples}"
            )
        return [own.to(torch.int64).cpu() for own in lists]
    mask = torch.as_tensor(keep)
    if mask.dtype != torch.bool or mask.ndim != 2 or mask.shape != (models, samples):
        raise InputError(
            "keep",
            f"{mask.dtype} {list(mask.shape)} for {models} seeds and {samples} samples".removeprefix("torch."),
            f"give bool [{models}, {samples}]: a row a model, a column a sample",
        )
    return [row.nonzero()[:, 0].cpu() for row in mask]


def _check_samples(argument: str, x: Tensor, y: Tensor) -> None:
    if len(x) != len(y) or y.dtype != torch.int64 or y.ndim != 1:
        raise InputError(
            argument, f"{len(x)} samples, labels {y.dtype} {list(y.shape)}", "give one int64 label a sample"
        )


def _check_device(device: str | torch.device, recipe: Recipe) -> torch.device:
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise InputError("device", f"{device!r}", "give cpu, cuda or cuda:N") from error
    if where.type not in ("cpu", "cuda"):
        raise InputError("device", f"{device!r}", "give cpu, cuda or cuda:N")
    if where.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (where.index or 0) >= count:
            found = f"torch {torch.__version__} finds {count} CUDA devices"
            raise InputError("device", f"{str(where)!r}, but {found}", "give cpu, or install a CUDA build of torch")
    elif recipe.mixed_precision != "none":
        raise InputError(
            "mixed_precision", f"{recipe.mixed_precision} on the CPU", "it needs a GPU; take none, or device cuda"
        )
    return where
