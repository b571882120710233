"""The gradients of all samples for one parameter, held before they are multiplied out.

A :class:`Form` knows ``g_i`` for every sample i of a batch as a product of small factors. What is asked of it (sums of
``g``, ``g^2``, ``|g|``, norms, products) a subclass computes from the factors where an identity allows it; this module
holds the general way, which multiplies out a few samples at a time, and the forms that need no identity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["CHUNK_BYTES", "SUMS", "Direct", "Form", "Stack", "Total"]

#: What :meth:`Form.sums` can compute: over samples, of the parameter's shape, and ``norm_sq`` of shape [B].
SUMS = ("sum", "sum_sq", "sum_abs", "norm_sq")

#: Multiplied-out gradients take about this much at a time (at least one sample).
CHUNK_BYTES = 16 << 20


class Form(ABC):
    """The gradients ``g_i`` of one parameter, i = 0..B-1.

    Attributes:
        shape: The parameter's shape.
        batch: B.
        dtype: Of all results, float32 or float64.
    """

    shape: torch.Size
    batch: int
    dtype: torch.dtype

    @abstractmethod
    def grads(self, start: int, stop: int) -> Tensor:
        """``g_i`` of samples start..stop-1, ``[stop - start, *shape]``."""

    def sums(self, names: Collection[str]) -> dict[str, Tensor]:
        """Those of :data:`SUMS` that are named."""
        found = self._zero_sums(names)
        for start, g in self._chunks():
            if "norm_sq" in found:
                found["norm_sq"][start : start + len(g)] = g.flatten(1).square().sum(1)
            if "sum" in found:
                found["sum"] += g.sum(0)
            if "sum_abs" in found:
                found["sum_abs"] += g.abs().sum(0)
            if "sum_sq" in found:
                found["sum_sq"] += g.square_().sum(0)
        return found

    def weighted(self, weights: Tensor) -> Tensor:
        """``sum_i weights_i g_i`` for weights [B], of the parameter's shape."""
        total = self._zeros(self.shape)
        for start, g in self._chunks():
            total += torch.tensordot(weights[start : start + len(g)].to(g), g, 1)
        return total

    def dot(self, direction: Tensor) -> Tensor:
        """``<g_i, direction>`` for a direction of the parameter's shape, [B]."""
        found = self._zeros((self.batch,))
        for start, g in self._chunks():
            found[start : start + len(g)] = g.flatten(1) @ direction.to(g).flatten()
        return found

    def gram(self) -> Tensor:
        """``<g_i, g_j>``, [B, B], by pairs of chunks."""
        found = self._zeros((self.batch, self.batch))
        for start, left in self._chunks():
            rows = slice(start, start + len(left))
            for other, right in self._chunks(start):
                columns = slice(other, other + len(right))
                found[rows, columns] = left.flatten(1) @ right.flatten(1).T
                found[columns, rows] = found[rows, columns].T.clone()
        return found

    @property
    def device(self) -> torch.device:
        """Where the results lie."""
        return self.grads(0, 0).device

    def chunk(self) -> int:
        """How many samples are multiplied out at a time."""
        return max(1, CHUNK_BYTES // max(1, self.shape.numel() * self.dtype.itemsize))

    def _chunks(self, start: int = 0) -> Iterator[tuple[int, Tensor]]:
        size = self.chunk()
        for first in range(start, self.batch, size):
            yield first, self.grads(first, min(first + size, self.batch))

    def _zeros(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _zero_sums(self, names: Collection[str]) -> dict[str, Tensor]:
        return {name: self._zeros((self.batch,) if name == "norm_sq" else self.shape) for name in names}


class Direct(Form):
    """Gradients that are small enough to be held as they are: biases, and the scales of normalisation layers."""

    def __init__(self, grads: Tensor) -> None:
        self._grads = grads
        self.shape, self.batch, self.dtype = grads.shape[1:], len(grads), grads.dtype

    def grads(self, start: int, stop: int) -> Tensor:
        """A copy, which the caller may overwrite."""
        return self._grads[start:stop].clone()


class Total(Form):
    """The sum of several forms of one parameter: it is used more than once, in ways that do not join.

    A nonlinear function of the sum is not the sum of functions, so samples are multiplied out.
    """

    def __init__(self, parts: Sequence[Form]) -> None:
        self._parts = parts
        self.shape, self.batch, self.dtype = parts[0].shape, parts[0].batch, parts[0].dtype

    def grads(self, start: int, stop: int) -> Tensor:
        """The parts' gradients added."""
        total = self._parts[0].grads(start, stop)
        for part in self._parts[1:]:
            total += part.grads(start, stop)
        return total

    def chunk(self) -> int:
        """The smallest of the parts'."""
        return min(part.chunk() for part in self._parts)

    def weighted(self, weights: Tensor) -> Tensor:
        """Linear, so part by part."""
        return torch.stack([part.weighted(weights) for part in self._parts]).sum(0)

    def dot(self, direction: Tensor) -> Tensor:
        """Linear, so part by part."""
        return torch.stack([part.dot(direction) for part in self._parts]).sum(0)


class Stack(Form):
    """A parameter whose rows (first dimension) are used in separate ranges, as attention does with its projections.

    Args:
        parts: ``(first row, last row + 1, form of those rows)``; the ranges do not overlap.
        shape: The whole parameter's shape. Rows in no range have no gradient.
    """

    def __init__(self, parts: Sequence[tuple[int, int, Form]], shape: torch.Size) -> None:
        self._parts = parts
        self.shape = shape
        self.batch, self.dtype = parts[0][2].batch, parts[0][2].dtype

    def grads(self, start: int, stop: int) -> Tensor:
        """Every range's gradients in their rows."""
        first = self._parts[0][2].grads(start, stop)
        found = first.new_zeros((stop - start, *self.shape))
        for low, high, part in self._parts:
            found[:, low:high] = part.grads(start, stop)
        return found

    def sums(self, names: Collection[str]) -> dict[str, Tensor]:
        """Ranges do not meet: each by itself."""
        found = self._zero_sums(names)
        for low, high, part in self._parts:
            for name, value in part.sums(names).items():
                if name == "norm_sq":
                    found[name] += value
                else:
                    found[name][low:high] = value
        return found

    def weighted(self, weights: Tensor) -> Tensor:
        """Every range by itself."""
        found = self._zeros(self.shape)
        for low, high, part in self._parts:
            found[low:high] = part.weighted(weights)
        return found

    def dot(self, direction: Tensor) -> Tensor:
        """The ranges' products added."""
        return torch.stack([part.dot(direction[low:high]) for low, high, part in self._parts]).sum(0)

    def gram(self) -> Tensor:
        """The ranges' products added."""
        return torch.stack([part.gram() for _, _, part in self._parts]).sum(0)
