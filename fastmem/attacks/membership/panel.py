"""The targets of an attack and the references of each, read a block of records at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops.leave_one_out import CUT_NOTHING, leave_one_out, reference_masks, reference_sizes
from fastmem.ops.lira_moments import LiraMoments, lira_moments

__all__ = ["Block", "Panel", "sample_blocks"]

#: Elements of [models or targets, records, queries] in a block: 2 MB of float64, so that what is computed from it
#: stays in cache and adds nothing to the peak of memory.
_BLOCK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Block:
    """Some records, what the targets said about them (float64 [T, B, A]), and the moments of the references."""

    samples: slice
    own: Tensor
    moments: LiraMoments


class Panel:
    """Targets and their references on one set of records.

    Args:
        keep: Membership, bool [M, N].
        targets: Rows of the targets.
        counts: ``"equal"`` or ``"all"``; see :mod:`fastmem.ops.leave_one_out`.
    """

    def __init__(self, keep: np.ndarray, targets: Sequence[int], counts: str) -> None:
        self.keep = torch.from_numpy(np.array(keep))
        self.counts = counts
        self.plan = leave_one_out(self.keep, targets, counts)

    def of_population(self, num_records: int) -> Panel:
        """The same targets and references on records that no model trained on: all references are OUT."""
        outside = object.__new__(Panel)
        outside.keep = torch.zeros((len(self.keep), num_records), dtype=torch.bool)
        outside.counts = self.counts
        outside.plan = self.plan._replace(rules=torch.full_like(self.plan.rules, CUT_NOTHING))
        return outside

    def partner_of(self, target: int) -> list[int]:
        """The model that is never this target's reference, if there is one."""
        row = self.plan.targets.tolist().index(target)
        return [partner] if (partner := int(self.plan.partners[row])) >= 0 else []

    def reference_masks(self, row: int, samples: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The IN and the OUT references of the target in this row, bool [M, B] each."""
        target, partner, rule = (int(part[row]) for part in self.plan)
        first = samples.indices(self.keep.shape[1])[0]
        return reference_masks(self.keep[:, samples], target, partner, rule, first)

    def require(self, attack: str, n_in: int, n_out: int) -> None:
        """Refuse records with fewer references of a kind than the attack needs.

        Raises:
            InputError: naming the first such record, its counts and what to do.
        """
        for target, sizes in zip(self.plan.targets.tolist(), reference_sizes(self.keep, self.plan), strict=True):
            short = (sizes[0] < n_in) | (sizes[1] < n_out)
            if short.any():
                record = int(short.nonzero()[0])
                needs = " and ".join(f"{n} {kind}" for n, kind in ((n_in, "IN"), (n_out, "OUT")) if n)
                raise InputError(
                    "keep",
                    f"for target {target}, record {record} ({int(short.sum())} such) has {int(sizes[0][record])} IN and "
                    f"{int(sizes[1][record])} OUT reference models (counts={self.counts!r}), and {attack} needs {needs}",
                    "train more models with every record in half of them, or leave such records out"
                    + (", or where members were drawn independently take counts='all'" if self.counts != "all" else ""),
                )

    def blocks(
        self, values: np.ndarray, of: Callable[[Tensor], Tensor] | None = None, *, median: bool = False
    ) -> Iterator[Block]:
        """The records in blocks, with the moments of their references.

        Args:
            values: A statistic, float64 [M, N, A].
            of: What the moments are taken of, a function of ``values``; None for the values themselves.
            median: Whether medians are wanted.
        """
        for samples in sample_blocks(values):
            said = torch.from_numpy(np.array(values[:, samples]))
            phi = said if of is None else of(said)
            moments = lira_moments(phi, self.keep[:, samples], self.plan, median=median, first_sample=samples.start)
            # In memory targets lie next to each other, as in the moments that it will meet.
            own = said.permute(1, 2, 0)[..., self.plan.targets].permute(2, 0, 1)
            yield Block(samples, own, moments)


def sample_blocks(values: np.ndarray) -> Iterator[slice]:
    """The records of a statistic [M, N, A] in blocks."""
    num_models, num_samples, num_queries = values.shape
    size = max(1, _BLOCK_ELEMENTS // (num_models * num_queries))
    for first in range(0, num_samples, size):
        yield slice(first, min(first + size, num_samples))
