"""The table of chunks from which one launch over many tensors learns what each program works on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["BLOCK", "STEPS", "chunk_table"]

#: Elements that a program takes at a time, and how often: a chunk has ``BLOCK * STEPS`` elements, which is enough to
#: hide the cost of its row in the table, and few enough for many programs on a multiprocessor.
BLOCK, STEPS = 1024, 16


def chunk_table(columns: Sequence[tuple[list[Tensor], int]]) -> Tensor:
    """``[chunks, columns + 1]`` int64: the addresses of each chunk in every column's tensor, then its elements.

    Args:
        columns: Contiguous tensors, and how many elements one of theirs stands for (8 for masks of a bit each). Sizes
            are those of the first column.

    Returns:
        The table, on the tensors' device.
    """
    sizes, chunk = [tensor.numel() for tensor in columns[0][0]], BLOCK * STEPS
    chunks = [-(-size // chunk) for size in sizes]
    index = np.concatenate([np.arange(count) for count in chunks])
    table = np.empty((len(index), len(columns) + 1), dtype=np.int64)
    for column, (tensors, packed) in enumerate(columns):
        starts = np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64)
        table[:, column] = np.repeat(starts, chunks) + index * (chunk * tensors[0].element_size() // packed)
    table[:, -1] = np.minimum(np.repeat(np.array(sizes, dtype=np.int64), chunks) - index * chunk, chunk)
    return torch.from_numpy(table).to(columns[0][0][0].device)
