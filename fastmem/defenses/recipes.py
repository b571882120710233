"""Calibration by training: the same recipe with smoothed labels, or with decaying weights.

Label smoothing minimises ``(1 - a) (-log p_y) + a mean_k(-log p_k)`` (Szegedy et al. 2016), which is what
:class:`fastmem.training.Recipe` calls ``label_smoothing``.
"""

from __future__ import annotations

from dataclasses import replace

from fastmem.training import Recipe

__all__ = ["decayed", "smoothed"]


def smoothed(recipe: Recipe, share: float) -> Recipe:
    """The recipe with label smoothing; ``share`` of the target, from 0 to below 1, is spread over all classes.

    Raises:
        InputError: If the share is out of range.
    """
    return replace(recipe, label_smoothing=share)


def decayed(recipe: Recipe, weight_decay: float) -> Recipe:
    """The recipe with weight decay (with optimizers sgd and adam an L2 penalty of ``weight_decay / 2 |w|^2``).

    Raises:
        InputError: If it is negative.
    """
    return replace(recipe, weight_decay=weight_decay)
