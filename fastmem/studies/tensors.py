"""Arrays that reach a worker through shared memory, as tensors."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_tensor"]


def as_tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor, to be read only."""
    # Such arrays are read-only, which torch remarks on; nothing writes into them.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)
