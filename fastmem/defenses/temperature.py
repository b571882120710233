"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599): ``softmax(h / T)``, T fixed or fitted on held-out records.

It changes how sure a model claims to be, never what it answers. For more than two classes it does change the order of
records by confidence, and so what membership attacks find.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from fastmem.errors import InputError
from fastmem.metrics.arrays import as_float64, as_labels

__all__ = ["TemperatureScaling"]

# Beyond these the fitted optimum means "as sharp, or as flat, as you please".
_LOWEST, _HIGHEST = 0.01, 1000.0


@dataclass(frozen=True)
class TemperatureScaling:
    """Divides logits by a temperature.

    Args:
        temperature: T, above 0; above 1 makes a model less sure.

    Raises:
        InputError: If it is not a finite number above 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError("temperature", f"{self.temperature}", "give a number above 0, for example 2")

    @classmethod
    def fit(cls, logits: Any, labels: Any) -> TemperatureScaling:
        """The temperature of the smallest mean cross-entropy on some records.

        The cross-entropy is convex in 1 / T, so the optimum is unique; it is sought between 0.01 and 1000.

        Args:
            logits: Floating [N, C].
            labels: Integers [N]. The records must be held out: on the training records T comes out too low, and on
                records that are evaluated afterwards the result flatters itself.

        Raises:
            InputError: If shapes or values do not fit.
        """
        h = as_float64("logits", logits, axes=("record", "class"))
        if h.ndim != 2 or not len(h):
            raise InputError("logits", f"shape {h.shape}", "give [N, C], at least one record")
        y = as_labels("labels", labels, h.shape[1])
        if len(y) != len(h):
            raise InputError("labels", f"{len(y)} labels for {len(h)} records", "give one label a record")
        tensor, rows = torch.from_numpy(np.ascontiguousarray(h)), torch.from_numpy(y)

        def loss(sharpness: float) -> float:
            return float(torch.nn.functional.cross_entropy(tensor * sharpness, rows))

        best: Any = minimize_scalar(
            lambda log: loss(math.exp(log)),
            bounds=(-math.log(_HIGHEST), -math.log(_LOWEST)),
            method="bounded",
            options={"xatol": 1e-8},
        )
        return cls(math.exp(-float(best.x)))

    def __call__(self, logits: Tensor) -> Tensor:
        """``logits / T``, of the same shape and dtype."""
        return logits / self.temperature
