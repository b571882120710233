"""The batches of one model: order and augmentation from its own seed, gathered on the device by index."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastmem.data.transforms import Augmentation, normalise
from fastmem.training.job import Job, batch_bounds, stream_seed

__all__ = ["BLOCK_VALUES", "Batches"]

# Values that are gathered and normalised at a time. Small batches share one gather, which costs as much as a step of a
# small network; 1 million floats (4 MB) stay near the core.
BLOCK_VALUES = 1 << 20


class Batches:
    """Epoch after epoch of one model's batches.

    Args:
        job: Data, recipe and device.
        index: The model's place in the job.
        dtype: Of the network.
        memory_format: Of the batches; ``torch.channels_last`` needs images.
    """

    def __init__(
        self,
        job: Job,
        index: int,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._job = job
        self._records = job.records[index]
        self._dtype, self._format = dtype, memory_format
        self._order = torch.Generator().manual_seed(stream_seed(job.seeds[index], "order"))
        self._choice = torch.Generator().manual_seed(stream_seed(job.seeds[index], "augment"))
        self.augmentation = Augmentation(job.recipe.augment, job.x.shape[1:])
        self.bounds = batch_bounds(len(self._records), job.recipe.batch_size)
        self.sizes = [end - start for start, end in itertools.pairwise(self.bounds)]

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Network inputs (normalised) and labels of the batches of the next epoch."""
        for x, y, sizes in self.blocks():
            yield from zip(x.split(sizes), y.split(sizes), strict=True)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """The next epoch, several batches at a time: inputs and labels one after the other, and the batches' sizes."""
        job = self._job
        order, choices = self.draw()
        order = order.to(job.device)
        together = max(1, BLOCK_VALUES // (max(self.sizes) * math.prod(job.x.shape[1:])))
        for first in range(0, len(self.sizes), together):
            sizes = self.sizes[first : first + together]
            part = slice(self.bounds[first], self.bounds[first] + sum(sizes))
            rows = order[part]
            x = self.augmentation.apply(job.x[rows], None if choices is None else choices[part])
            x = normalise(x, *job.normalisation).to(self._dtype).contiguous(memory_format=self._format)
            yield x, job.y[rows], sizes

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """The next epoch's order (record numbers, int64 on the CPU) and augmentation choices."""
        shuffle = torch.randperm(len(self._records), generator=self._order)
        return self._records[shuffle], self.augmentation.draw(len(shuffle), self._choice)
