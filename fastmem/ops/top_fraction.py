"""The most important fraction of all weights, exactly: as many as asked for, ties by position, masks of one bit each.

Roof: one read of the scores, 4 bytes a weight, and an eighth of a byte a weight written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops._checks import require_dtype, require_same_device, require_tensor
from fastmem.ops._registry import select

__all__ = ["TopFraction", "WeightMask", "top_fraction"]

Scope = Literal["global", "layer"]


@dataclass(frozen=True, eq=False)
class WeightMask:
    """Which weights of one tensor are selected, a bit each.

    Attributes:
        packed: uint8, ``ceil(n / 8)`` long; weight i (in row-major order) is bit ``i % 8`` of byte ``i // 8``.
        shape: The tensor's shape.
        count: How many weights are selected.
    """

    packed: Tensor
    shape: torch.Size
    count: int

    def unpack(self) -> Tensor:
        """The mask as a boolean tensor of the weights' shape."""
        bits = self.packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=self.packed.device) & 1
        return bits.flatten()[: self.shape.numel()].reshape(self.shape).bool()


@dataclass(frozen=True, eq=False)
class TopFraction:
    """The selected weights.

    Attributes:
        masks: By name.
        thresholds: The smallest selected score that each tensor was judged by, by name; all equal for scope global.
        count: How many weights are selected in all.
        total: Out of how many.
    """

    masks: dict[str, WeightMask]
    thresholds: dict[str, float]
    count: int
    total: int


def top_fraction(scores: Mapping[str, Tensor], fraction: float, scope: Scope = "global") -> TopFraction:
    """Select exactly ``max(1, floor(fraction * n))`` weights of the highest scores.

    Of equal scores at the threshold those that come first are taken: tensors in the order of the mapping, weights in
    row-major order. So the selection is the same on every device and for any number of threads.

    Args:
        scores: Scores by name, float32 or float64, not negative, on one device; shapes are free.
        fraction: Share of the weights to select, above 0 and at most 1.
        scope: ``"global"``: n counts all weights together. ``"layer"``: the same share of every tensor by itself.

    Returns:
        A :class:`TopFraction`.

    Raises:
        UnknownNameError: ``scope`` is neither of the two.
        InputError: There are no scores, one is negative or NaN, or the fraction is out of range.
    """
    if scope not in ("global", "layer"):
        raise UnknownNameError("scope", str(scope), ("global", "layer"))
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise InputError("fraction", f"got {fraction!r}", "give a number above 0 and at most 1")
    flat = _flat(scores)
    groups = [list(flat)] if scope == "global" else [[name] for name in flat]
    masks: dict[str, WeightMask] = {}
    thresholds: dict[str, float] = {}
    for names in groups:
        tensors = [flat[name] for name in names]
        count = max(1, math.floor(fraction * sum(tensor.numel() for tensor in tensors)))
        packed, threshold = select("top_fraction", tensors, count).forward(tensors, count)
        if threshold is None:
            raise InputError("scores", f"{_first_invalid(names, tensors)}", "importance scores are numbers from 0 up")
        for name, bits in zip(names, packed, strict=True):
            masks[name] = WeightMask(bits, scores[name].shape, _count(bits))
            thresholds[name] = threshold
    count = sum(mask.count for mask in masks.values())
    return TopFraction(masks, thresholds, count, sum(tensor.numel() for tensor in flat.values()))


def _flat(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(scores, Mapping) or not scores:
        raise InputError("scores", f"got {'none' if isinstance(scores, Mapping) else type(scores).__name__}", "by name")
    first, model = next(iter(scores.items()))
    for name, score in scores.items():
        argument = f"scores[{name!r}]"
        require_tensor(argument, score)
        require_dtype(argument, score, (torch.float32, torch.float64))
        require_same_device(argument, score, f"scores[{first!r}]", model)
        require_dtype(argument, score, (model.dtype,))
        if score.numel() == 0:
            raise InputError(argument, "is empty", "leave it out")
    return {name: score.detach().contiguous().flatten() for name, score in scores.items()}


def _first_invalid(names: list[str], tensors: list[Tensor]) -> str:
    for name, tensor in zip(names, tensors, strict=True):
        invalid = ~(tensor >= 0)
        if invalid.any():
            where = int(invalid.nonzero()[0])
            return (
                f"{int(invalid.sum())} of {name!r} are negative or NaN, the first at {where} ({float(tensor[where])})"
            )
    raise AssertionError("an implementation refused scores that are all valid")


def _count(packed: Tensor) -> int:
    byte = torch.arange(256, dtype=torch.int64, device=packed.device)
    ones = sum(byte >> bit & 1 for bit in range(8))
    assert isinstance(ones, Tensor)
    return int((torch.bincount(packed.int(), minlength=256) * ones).sum())


def forward_arguments(
    scores: Mapping[str, Tensor], fraction: float, scope: Scope = "global"
) -> tuple[list[Tensor], int]:
    """What an implementation would be handed for a public call (for ``explain``)."""
    tensors = list(_flat(scores).values())
    return tensors, max(1, math.floor(fraction * sum(tensor.numel() for tensor in tensors)))
