"""Training of language models on blocks of tokens, one model after another.

The recipe means what it means for classifiers, where it applies; what decides a model is its seed and its blocks, as in
:func:`fastmem.training.train_models`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.errors import InputError
from fastmem.training.job import DivergenceError, OnEpoch, TrainedModel, batch_bounds, stream_seed
from fastmem.training.plain import own_randomness
from fastmem.training.recipe import Recipe
from fastmem.training.step import Step

__all__ = ["check_language_recipe", "train_language_models"]

_BATCH = 32


def check_language_recipe(recipe: Recipe) -> None:
    """Refuses what has no meaning for blocks of tokens, or is not made for them.

    Raises:
        InputError: For augmentation, early stopping or mixed precision.
    """
    for name, unset in (("augment", "none"), ("stop_at_train_accuracy", None), ("patience", None)):
        if getattr(recipe, name) != unset:
            raise InputError(
                f"text_recipe.{name}", f"{getattr(recipe, name)}", "language models are trained without it"
            )


def train_language_models(
    build: Callable[[int], nn.Module],
    tokens: Tensor,
    keep: np.ndarray,
    recipe: Recipe,
    seeds: Sequence[int],
    device: str | torch.device = "cpu",
    on_epoch: OnEpoch | None = None,
) -> list[TrainedModel]:
    """Train K language models, each on its own blocks.

    Args:
        build: Makes a model from its seed; it maps tokens [B, L] to logits [B, L, V].
        tokens: int64 [N, L].
        keep: bool [K, N]: the blocks of each model, at least 2.
        recipe: How to train; an epoch is one pass over the model's blocks.
        seeds: K non-negative integers: initial weights and order of batches.
        device: ``"cpu"``, ``"cuda"``, ...
        on_epoch: Called with (model's place in the call, epochs done, mean training loss) after each of its epochs.

    Returns:
        One result a seed; ``train_accuracy`` is the share of next tokens of its own blocks that a model predicts.

    Raises:
        InputError: If shapes do not fit, or the recipe has what language models are not trained with.
        DivergenceError: If a loss becomes NaN or infinite.
    """
    check_language_recipe(recipe)
    if keep.dtype != np.bool_ or keep.shape != (len(seeds), len(tokens)):
        raise InputError(
            "keep", f"{keep.dtype} {list(keep.shape)}", f"give bool [{len(seeds)}, {len(tokens)}], a row a model"
        )
    if int(keep.sum(axis=1).min()) < 2:
        raise InputError("keep", "a model has less than 2 blocks", "give each at least 2")
    where = torch.device(device)
    stored = tokens.to(where)
    report = on_epoch or (lambda index, epoch, loss: None)
    trained = []
    for index, (mask, seed) in enumerate(zip(keep, seeds, strict=True)):
        own = torch.from_numpy(np.flatnonzero(mask))
        with own_randomness(where) as reseed:
            reseed(seed)
            model = build(seed).to(where)
            reseed(stream_seed(seed, "dropout"))
            history = _fit(model, stored, own, recipe, seed, index, report)
        state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        accuracy = _accuracy(model, stored, own)
        trained.append(TrainedModel(state, {"train_loss": history}, accuracy, recipe.epochs, recipe.epochs))
    return trained


class _Rows(nn.Module):
    """The model's answers as rows, so that a row of logits is contiguous and the loss an ordinary cross-entropy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.model(tokens)
        return logits[:, :-1].reshape(-1, logits.shape[2])


def _fit(
    model: nn.Module, tokens: Tensor, own: Tensor, recipe: Recipe, seed: int, index: int, report: OnEpoch
) -> list[float]:
    order = torch.Generator().manual_seed(stream_seed(seed, "order"))
    bounds = batch_bounds(len(own), recipe.batch_size)
    rates = iter(recipe.rates(len(bounds) - 1))
    rows = _Rows(model).train()
    step = Step(rows, recipe, tokens.device)
    history = []
    for epoch in range(1, recipe.epochs + 1):
        shuffled = own[torch.randperm(len(own), generator=order)].to(tokens.device)
        total = torch.zeros((), dtype=torch.float64, device=tokens.device)
        for start, end in itertools.pairwise(bounds):
            batch = tokens[shuffled[start:end]]
            total += step(batch, batch[:, 1:].reshape(-1), next(rates)).double() * (end - start)
        loss = float(total) / len(own)
        if not math.isfinite(loss):
            raise DivergenceError.of(index, seed, epoch, loss, recipe)
        history.append(loss)
        report(index, epoch, loss)
    return history


def _accuracy(model: nn.Module, tokens: Tensor, own: Tensor) -> float:
    model.eval()
    right = 0
    with torch.no_grad():
        for part in own.split(_BATCH):
            batch = tokens[part.to(tokens.device)]
            right += int((model(batch)[:, :-1].argmax(dim=2) == batch[:, 1:]).sum())
    return right / (len(own) * (tokens.shape[1] - 1))
