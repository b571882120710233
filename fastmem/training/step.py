"""One optimisation step of one model in PyTorch: forward, backward, update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.training.recipe import Recipe

__all__ = ["Step", "make_optimizer"]


class Step:
    """Moves ``model`` by one batch at a time.

    Args:
        model: On ``device``.
        recipe: Optimiser, loss, precision and clipping.
        device: Where the model and its batches are.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self._model = model
        self._recipe = recipe
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = make_optimizer(self._parameters, recipe)
        self._context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if recipe.mixed_precision != "none":
            dtype = torch.bfloat16 if recipe.mixed_precision == "bf16" else torch.float16
            self._context = torch.autocast(device.type, dtype)
        # float16 gradients underflow without it; the others need no scaling.
        self._scaler = torch.amp.GradScaler(device.type) if recipe.mixed_precision == "fp16" else None

    def __call__(self, x: Tensor, y: Tensor, rate: float) -> Tensor:
        """Take the step at learning rate ``rate``; returns the mean loss before it, on the device."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with self._context:
            loss = F.cross_entropy(self._model(x), y, label_smoothing=self._recipe.label_smoothing)
        self._optimizer.zero_grad()
        if self._scaler is None:
            loss.backward()
            self._clip()
            self._optimizer.step()
        else:
            self._scaler.scale(loss).backward()
            if self._recipe.clip_norm is not None:
                self._scaler.unscale_(self._optimizer)
                self._clip()
            self._scaler.step(self._optimizer)
            self._scaler.update()
        return loss.detach()

    def _clip(self) -> None:
        if self._recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip_norm)


def make_optimizer(parameters: Sequence[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; all parameters in one fused kernel where torch has one for them."""
    options: dict[str, Any] = {"lr": recipe.peak_rate, "weight_decay": recipe.weight_decay}
    kind: Callable[..., torch.optim.Optimizer] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }[recipe.optimizer]
    if recipe.optimizer == "sgd":
        options |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    try:
        return kind(parameters, **options | {"fused": True})
    except (RuntimeError, ValueError):  # no fused kernel for these devices or dtypes
        return kind(parameters, **options)
