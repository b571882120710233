"""The training variants of the papers: each changes the recipe or the network, and nothing else.

Hartley and Tsaftaris 2022 report that none of them keeps a network from memorising a unique feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastmem.errors import InputError, UnknownNameError
from fastmem.models import build_model
from fastmem.training import Recipe

__all__ = ["REGULARISERS", "Training", "training_of"]

_DROPOUT = 0.5
_WEIGHT_DECAY = 1e-3
_PATIENCE = 3


@dataclass(frozen=True)
class _Change:
    title: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


_CHANGES = {
    "none": _Change("no regulariser"),
    "dropout": _Change("dropout", {"dropout": _DROPOUT}),
    "batchnorm": _Change("batch normalisation", {"batch_norm": True}),
    "weight-decay": _Change("weight decay", recipe={"weight_decay": _WEIGHT_DECAY}),
    "augment": _Change("augmentation", recipe={"augment": "crop"}),
    "early-stopping": _Change("early stopping", recipe={"patience": _PATIENCE}),
}
_CHANGES["all"] = _Change(
    "all of them",
    {name: value for change in _CHANGES.values() for name, value in change.model_args.items()},
    {name: value for change in _CHANGES.values() for name, value in change.recipe.items()},
)

#: Every variant and its title in reports.
REGULARISERS = {name: change.title for name, change in _CHANGES.items()}


@dataclass(frozen=True)
class Training:
    """One variant, ready to train.

    Args:
        name: A key of ``REGULARISERS``.
        model_args: Arguments of the network.
        recipe: How to train it.
    """

    name: str
    model_args: dict[str, Any]
    recipe: Recipe


def training_of(
    name: str,
    model: str,
    model_args: Mapping[str, Any],
    recipe: Recipe,
    input_shape: tuple[int, ...],
    num_classes: int,
) -> Training:
    """A variant of a network and its recipe.

    Args:
        name: A key of ``REGULARISERS``.
        model: Name or import path of the network.
        model_args: Its arguments without the variant's.
        recipe: The recipe without the variant's changes; where it sets one of them already, that is kept.
        input_shape: Shape of one record.
        num_classes: C.

    Raises:
        UnknownNameError: There is no such variant.
        InputError: The network does not take it.
    """
    if name not in _CHANGES:
        raise UnknownNameError("regularise", name, _CHANGES)
    change = _CHANGES[name]
    changed = {**change.model_args, **model_args}
    try:
        build_model(model, input_shape, num_classes, 0, **changed)
    except InputError as error:
        if error.argument in change.model_args and error.argument not in model_args:
            raise InputError(
                "regularise",
                f"{name!r}, but {model} has no option {error.argument}",
                "take mlp or cnn, or leave it out",
            ) from error
        raise
    untouched = Recipe()
    steps = {key: value for key, value in change.recipe.items() if getattr(recipe, key) == getattr(untouched, key)}
    return Training(name, changed, replace(recipe, **steps))
