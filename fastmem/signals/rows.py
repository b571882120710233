"""Arrays with one row per model, in memory or in a store, read a row or a whole at a time."""

from __future__ import annotations

from typing import Protocol

import numpy as np

__all__ = ["MemoryRows", "Rows"]


class Rows(Protocol):
    """An array [M, N, ...] whose rows belong to models; what a store holds is read, and verified, when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [M, N, ...]."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The dtype of what :meth:`row` and :meth:`read` return."""
        ...

    def row(self, model: int) -> np.ndarray:
        """What one model said, [N, ...]."""
        ...

    def read(self) -> np.ndarray:
        """All rows, [M, N, ...]."""
        ...

    def select(self, models: np.ndarray | None, samples: np.ndarray | None) -> Rows:
        """The same for some models and samples; None keeps all."""
        ...


class MemoryRows:
    """:class:`Rows` of a numpy array."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [M, N, ...]."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the array."""
        return self._array.dtype

    def row(self, model: int) -> np.ndarray:
        """What one model said, [N, ...]; a view."""
        return self._array[model]

    def read(self) -> np.ndarray:
        """The array itself."""
        return self._array

    def select(self, models: np.ndarray | None, samples: np.ndarray | None) -> MemoryRows:
        """The same for some models and samples; None keeps all."""
        array = self._array if models is None else self._array[models]
        return MemoryRows(array if samples is None else array[:, samples])
