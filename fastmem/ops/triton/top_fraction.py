"""Selection of the k largest scores by Triton kernels: three histograms narrow the threshold down, 31 bits in all.

Scores from 0 up are ordered as their bits are. The first pass counts the highest 11 bits; the digit in which the k-th
largest lies is chosen on the device, and the next passes count 10 bits each among the scores that share what is known.
Counts are kept by chunk, so that the last of them also say how many scores equal to the threshold stand before a chunk.

Roof: memory traffic, four reads of the scores (16 bytes a weight), 1/8 byte of mask, and 15 KB of counts a chunk of 16384
scores written and read (1 byte a score). One synchronisation, at the end.

Reasoned, compiled ahead of time and run in Triton's interpreter, but not yet measured: no GPU was at hand.
"""

# Launching a kernel adds options to its arguments.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import struct

import torch
from torch import Tensor

from fastmem.ops._registry import Backend, register
from fastmem.ops.triton import OPTIONS, launching, why_elsewhere, why_unavailable
from fastmem.ops.triton._chunks import BLOCK, chunk_table

__all__ = ["PASSES", "forward"]

#: Lowest bit and number of bits of each pass; the highest bit is the sign, which is 0.
PASSES = ((20, 11), (10, 10), (0, 10))


def forward(scores: list[Tensor], count: int) -> tuple[list[Tensor], float | None]:
    """Packed masks of the ``count`` largest of all flat scores and the smallest of them; ``None`` for invalid scores."""
    from fastmem.ops.triton._importance_kernels import count_digits, mark_highest

    masks = [score.new_empty(-(-score.numel() // 8), dtype=torch.uint8) for score in scores]
    table = chunk_table([(scores, 1), (masks, 8)])
    options = {"BLOCK": BLOCK, "num_warps": 4, **OPTIONS}
    above = table.new_zeros(1)
    wanted = table.new_full((1,), count)
    invalid = table.new_empty(len(table), dtype=torch.int32)
    at_digit = invalid
    with launching(table):
        for shift, bits in PASSES:
            counts = invalid.new_empty((len(table), 1 << bits))
            count_digits[(len(table),)](
                table, above, counts, invalid, SHIFT=shift, DIGITS=1 << bits, FIRST=shift == PASSES[0][0], **options
            )
            digit, larger = _digit_of(counts.sum(0), wanted)
            above, wanted = (above << bits) + digit, wanted - larger
            at_digit = counts.index_select(1, digit)[:, 0]
        equal_before = at_digit.cumsum(0) - at_digit
        mark_highest[(len(table),)](table, above, equal_before, wanted, **options)
    bad, threshold = torch.cat([invalid.sum(0, keepdim=True), above]).tolist()
    return ([], None) if bad else (masks, struct.unpack("<f", struct.pack("<i", threshold))[0])


def _digit_of(counts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The digit of the ``wanted``-th largest, and how many scores have a higher one; both ``[1]``, on the device."""
    at_least = counts.flip(0).cumsum(0).flip(0)
    digit = ((at_least >= wanted).sum(0, keepdim=True) - 1).clamp_(min=0)  # (below 0 with invalid scores only)
    return digit, at_least.gather(0, digit) - counts.gather(0, digit)


def _supports(scores: list[Tensor], count: int) -> str | None:
    if scores[0].dtype is not torch.float32:
        return "it selects among float32 scores"
    return why_elsewhere(scores[0])


register(
    Backend(
        op="top_fraction",
        name="triton",
        # On CPU tensors (the interpreter) it serves tests, and never by itself.
        priority=lambda scores, count: -1 if scores[0].device.type == "cpu" else 30,
        available=why_unavailable,
        supports=_supports,
        forward=forward,
    )
)
