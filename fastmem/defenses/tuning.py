"""Training on with a loss of one's choice while some weights stay frozen bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fastmem.defenses.freezing import FrozenWeights
from fastmem.defenses.importance import Records
from fastmem.defenses.losses import Loss
from fastmem.errors import InputError, UnknownNameError
from fastmem.training import DivergenceError, Recipe
from fastmem.training.batches import Batches
from fastmem.training.evaluate import model_dtype
from fastmem.training.job import Job, stream_seed
from fastmem.training.plain import check_batch_norm, own_randomness
from fastmem.training.step import make_optimizer

__all__ = ["BATCH_NORM", "BatchNormRule", "fine_tune", "recalibrate"]

BatchNormRule = Literal["update", "recalibrate", "freeze"]
#: What becomes of batch normalisation's running statistics.
BATCH_NORM: tuple[BatchNormRule, ...] = ("update", "recalibrate", "freeze")

_NORM = nn.modules.batchnorm._BatchNorm
_RECALIBRATION_BATCH = 256


def fine_tune(
    model: nn.Module,
    members: Records,
    recipe: Recipe,
    loss: Loss,
    frozen: Mapping[str, Tensor] | None = None,
    batch_norm: BatchNormRule = "update",
    seed: int = 0,
) -> list[float]:
    """Trains a network on from where it is, with a new optimiser; frozen weights keep their values bit for bit.

    Batch normalisation: with ``update`` its running statistics follow the batches, as in any training; ``recalibrate``
    then replaces them by the mean over all members under the final weights; ``freeze`` trains with the statistics that
    are there, and leaves them.

    Args:
        model: Changed in place; on any device.
        members: What it is trained on.
        recipe: How: optimiser, rates, epochs, batches, augmentation. In the network's own dtype, to the last epoch.
        loss: What is minimised.
        frozen: Which weights are frozen, bool of the parameter's shape, by name.
        batch_norm: See above.
        seed: Of the order of records, augmentation and dropout.

    Returns:
        Mean training loss of each epoch.

    Raises:
        UnknownNameError: There is no such rule for batch normalisation.
        InputError: The recipe stops early, smooths labels (that is a loss here) or asks for mixed precision.
        DivergenceError: The loss became NaN or infinite.
        RuntimeError: A frozen weight changed, which cannot be.
    """
    require_recipe(recipe, batch_norm)
    device = next(model.parameters()).device
    held = FrozenWeights(model, frozen or {})
    batches = batches_of(model, members, recipe, seed)
    if batch_norm != "freeze":
        check_batch_norm(model, batches.sizes)
    optimizer = make_optimizer([value for value in model.parameters() if value.requires_grad], recipe)
    rates = iter(recipe.rates(len(batches.sizes)))
    sizes = torch.tensor(batches.sizes, dtype=torch.float64)
    history = []
    with own_randomness(device) as reseed:
        reseed(stream_seed(seed, "dropout"))
        set_training(model, batch_norm)
        for epoch in range(recipe.epochs):
            losses = []
            for x, y in batches.epoch():
                for group in optimizer.param_groups:
                    group["lr"] = next(rates)
                value = loss(model(x), y, epoch)
                optimizer.zero_grad()
                value.backward()
                held.mask_gradients()
                if recipe.clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                optimizer.step()
                held.restore()
                losses.append(value.detach())
            mean = float(torch.stack(losses).double().cpu() @ (sizes / sizes.sum()))
            if not abs(mean) < float("inf"):
                raise DivergenceError.of(0, seed, epoch + 1, mean, recipe)
            history.append(mean)
    model.eval()
    if batch_norm == "recalibrate":
        recalibrate(model, members)
    held.require_unchanged()
    return history


@torch.no_grad()
def recalibrate(model: nn.Module, records: Records) -> None:
    """Replaces the running statistics of batch normalisation by their mean over all records, in equal batches.

    Weights stay. A network without batch normalisation is left alone.
    """
    norms = [module for module in model.modules() if isinstance(module, _NORM) and module.track_running_stats]
    if not norms:
        return
    like, modes = next(model.parameters()), {module: module.training for module in model.modules()}
    momenta = [module.momentum for module in norms]
    model.eval()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # torch's name for the mean over all batches
        module.train()
    parts = max(1, len(records) // _RECALIBRATION_BATCH)
    for rows in torch.arange(len(records)).tensor_split(parts):
        model(records.batch(rows, like)[0])
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    for module, mode in modes.items():
        module.training = mode


def require_recipe(recipe: Recipe, batch_norm: str) -> None:
    """Refuses what this training does not do."""
    if batch_norm not in BATCH_NORM:
        raise UnknownNameError("batch_norm", str(batch_norm), BATCH_NORM)
    for name, nothing in (
        ("patience", None),
        ("stop_at_train_accuracy", None),
        ("label_smoothing", 0.0),
        ("mixed_precision", "none"),
    ):
        if getattr(recipe, name) != nothing:
            remedy = "take the loss label_smoothing" if name == "label_smoothing" else "leave it out"
            raise InputError(name, f"{getattr(recipe, name)} in fine-tuning", remedy)


def set_training(model: nn.Module, batch_norm: str) -> None:
    """Training mode; batch normalisation keeps its statistics where they are frozen."""
    model.train()
    if batch_norm == "freeze":
        for module in model.modules():
            if isinstance(module, _NORM):
                module.eval()


def batches_of(model: nn.Module, members: Records, recipe: Recipe, seed: int) -> Batches:
    """The batches of all members, in the order that the seed draws."""
    device = next(model.parameters()).device
    zero, one = torch.zeros((), device=device), torch.ones((), device=device)
    normalisation = members.normalisation
    mean, std = (zero, one) if normalisation is None else (value.to(device) for value in normalisation)
    job = Job(
        build=lambda seed: model,
        x=members.x.to(device),
        y=members.y.to(device),
        records=[torch.arange(len(members))],
        recipe=recipe,
        seeds=(seed,),
        normalisation=(mean, std),
        device=device,
        on_epoch=lambda index, epoch, loss: None,
    )
    return Batches(job, 0, model_dtype(model))
