"""Leading dimensions as a GPU kernel wants them: as few as possible, any strides, broadcast ones with stride 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Leading", "Summed", "broadcasts", "leading", "summed_over"]


class Leading(NamedTuple):
    """The rows of some operands as one shape.

    Attributes:
        shape: The broadcast leading shape.
        sizes: The same rows in the same order with as few dimensions as the strides allow.
        strides: Of every operand, its strides (elements) over ``sizes``.
    """

    shape: torch.Size
    sizes: list[int]
    strides: list[list[int]]


class Summed(NamedTuple):
    """The rows of an operand that broadcasts, and for each of them the rows to sum over.

    Attributes:
        kept: Sizes over the rows of the operand.
        summed: Sizes over the rows that share one of them.
        strides: Of every operand, its strides over ``kept`` and then ``summed``.
        row_strides: The same of a contiguous array with one entry for each broadcast row.
    """

    kept: list[int]
    summed: list[int]
    strides: list[list[int]]
    row_strides: list[int]


def leading(*operands: Tensor) -> Leading:
    """The leading dimensions of ``[*, C]`` operands of one number of dimensions, sizes equal or 1."""
    shape = torch.broadcast_shapes(*(operand.shape[:-1] for operand in operands))
    dims = range(len(shape))
    # Dimensions in which an operand broadcasts stay apart from others: a gradient sums over the former only.
    kinds = [tuple(operand.shape[d] == 1 for operand in operands) for d in dims]
    sizes, strides = _merged(shape, [_expanded_strides(operand, shape) for operand in operands], kinds)
    return Leading(shape, sizes, strides)


def broadcasts(operand: Tensor, shape: torch.Size) -> bool:
    """Whether several rows of ``shape`` share one of the operand."""
    return operand.shape[:-1] != shape


def summed_over(operand: Tensor, *others: Tensor) -> Summed:
    """The leading dimensions for the gradient of ``operand``, which broadcasts against the others."""
    operands = (operand, *others)
    shape = torch.broadcast_shapes(*(each.shape[:-1] for each in operands))
    rows = _contiguous_strides(shape)
    strides = [*(_expanded_strides(each, shape) for each in operands), rows]
    kept, summed = [], []
    for d in range(len(shape)):
        (summed if operand.shape[d] != shape[d] else kept).append(d)
    sizes: list[list[int]] = []
    joined: list[list[int]] = [[] for _ in strides]
    for dims in (kept, summed):
        part_sizes, part_strides = _merged([shape[d] for d in dims], [[s[d] for d in dims] for s in strides])
        sizes.append(part_sizes)
        for total, part in zip(joined, part_strides, strict=True):
            total += part
    return Summed(sizes[0], sizes[1], joined[:-1], joined[-1])


def _expanded_strides(operand: Tensor, shape: torch.Size) -> list[int]:
    return [0 if operand.shape[d] != shape[d] else operand.stride(d) for d in range(len(shape))]


def _contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides = [1] * len(shape)
    for d in reversed(range(len(shape) - 1)):
        strides[d] = strides[d + 1] * shape[d + 1]
    return strides


def _merged(
    shape: Sequence[int], strides: list[list[int]], kinds: Sequence[object] | None = None
) -> tuple[list[int], list[list[int]]]:
    """Drop dimensions of size 1 and join neighbours that every operand walks through as one."""
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    last_kind: object = None
    for d in reversed(range(len(shape))):
        if shape[d] == 1:
            continue
        kind = kinds[d] if kinds is not None else None
        if sizes and kind == last_kind and all(s[d] == m[0] * sizes[0] for s, m in zip(strides, merged, strict=True)):
            sizes[0] *= shape[d]
            continue
        sizes.insert(0, shape[d])
        for s, m in zip(strides, merged, strict=True):
            m.insert(0, s[d])
        last_kind = kind
    return sizes, merged
