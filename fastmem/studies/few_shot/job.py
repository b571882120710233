"""What the training tasks of a few-shot study share: plain values and numpy arrays, so that they travel to other processes.

Two groups of models are trained. Those of ``pool`` train on halves of the pool: the targets first, the rest are shadow
models for the attacks that few-shot is compared with. The one of ``blind`` trains on bystanders and never sees the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmem.models.shape import LanguageShape
from fastmem.training import Recipe

__all__ = ["Group", "Job"]


@dataclass(frozen=True, eq=False)
class Group:
    """Models that train on parts of one set of records.

    Args:
        x: Records: stored images or features, or tokens int64 [R, L].
        y: Labels [R]; zeros for text.
        train: Which of them each model trains on, bool [M, R].
        seeds: Of each model.
        keys: Content key of each trained model.
        answer_keys: Content key of what each model says.
        read: The models of which features are read, the first ones.
    """

    x: np.ndarray
    y: np.ndarray
    train: np.ndarray
    seeds: tuple[int, ...]
    keys: tuple[str, ...] = ()
    answer_keys: tuple[str, ...] = ()
    read: int = 0


@dataclass(frozen=True, eq=False)
class Job:
    """What every training task shares.

    Args:
        groups: ``pool`` and, where there are bystanders, ``blind``.
        pool: Records that every model is asked about.
        pool_labels: Their labels.
        population: Records that no model trains on, perhaps none.
        population_labels: Their labels.
        language: The language model, or None for images.
        vocabulary: Tokens, for text.
        model: Name or import path of the network, for images.
        model_args: Its options.
        input_shape: Shape of one image.
        num_classes: Classes.
        mean: Normalisation of images.
        std: The same.
        recipe: How to train.
        layers: Features to read.
        device: ``"cpu"`` or ``"cuda"``.
        folder: The run's folder.
    """

    groups: dict[str, Group]
    pool: np.ndarray
    pool_labels: np.ndarray
    population: np.ndarray
    population_labels: np.ndarray
    language: LanguageShape | None
    vocabulary: int
    model: str
    model_args: dict[str, Any]
    input_shape: tuple[int, ...]
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    recipe: Recipe
    layers: tuple[str, ...]
    device: str
    folder: str
