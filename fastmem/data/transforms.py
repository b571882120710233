"""From stored bytes to a network's input: normalisation, queries and training augmentation, all on whole batches.

Queries are the views of a record that are shown to every trained model: the same for all models, query 0 being the
clean record. Augmentation is what training does to a batch, at random from a generator that the model owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.errors import InputError, UnknownNameError

__all__ = ["AUGMENTATIONS", "QUERY_KINDS", "Augmentation", "Query", "make_queries", "normalise"]

QUERY_KINDS = ("none", "flip", "shift", "flip+shift")
AUGMENTATIONS = ("none", "flip", "crop", "flip+crop")


def normalise(batch: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Stored values to float32 network inputs.

    Args:
        batch: uint8 images [B, C, H, W] or float features [B, D].
        mean: float32 [C] in units of pixel / 255, or [D] (``Dataset.channel_stats``).
        std: As ``mean``; no zeros.

    Returns:
        float32 of the same shape: (pixel / 255 - mean) / std, or (feature - mean) / std.
    """
    scale = 1 / std.to(batch.device, torch.float32)
    offset = -mean.to(batch.device, torch.float32) * scale
    if batch.ndim == 4:
        scale, offset = (scale / 255).view(1, -1, 1, 1), offset.view(1, -1, 1, 1)
    return (batch * scale).add_(offset)


@dataclass(frozen=True)
class Query:
    """One deterministic view of a batch of images: perhaps mirrored, then shifted with reflected borders.

    Args:
        flip: Mirror left to right.
        down: Rows by which the picture moves down.
        right: Columns by which it moves to the right.
    """

    flip: bool = False
    down: int = 0
    right: int = 0

    @property
    def name(self) -> str:
        """For example ``"clean"``, ``"flip"``, ``"shift(+1,-1)"`` (down, right) or ``"flip shift(+1,-1)"``."""
        parts = ["flip"] if self.flip else []
        if self.down or self.right:
            parts.append(f"shift({self.down:+d},{self.right:+d})")
        return " ".join(parts) or "clean"

    def __call__(self, batch: Tensor) -> Tensor:
        """The view of ``batch`` ([B, C, H, W], any dtype; the clean query takes features [B, D] too)."""
        if self == Query():
            return batch
        if self.flip:
            batch = batch.flip(-1)
        for dim, by in ((-2, self.down), (-1, self.right)):
            if by:
                size = batch.shape[dim]
                batch = batch.index_select(dim, _reflect(torch.arange(size, device=batch.device) - by, size))
        return batch


def make_queries(kind: str, input_shape: Sequence[int] | None = None) -> list[Query]:
    """The queries of one kind, the clean one first.

    Args:
        kind: ``"none"`` (1 query), ``"flip"`` (2), ``"shift"`` (9: by one pixel to every side and corner) or
            ``"flip+shift"`` (18, the set of Carlini et al. 2022, section VI-B).
        input_shape: Shape of one sample, to refuse kinds that it does not allow.

    Raises:
        InputError: If the kind is unknown, or needs images of at least 2 x 2 and the samples are not.
    """
    if kind not in QUERY_KINDS:
        raise UnknownNameError("queries", kind, QUERY_KINDS)
    _check_image_kind("queries", kind, input_shape)
    flips = (False, True) if "flip" in kind else (False,)
    steps = (0, 1, -1) if "shift" in kind else (0,)
    return [Query(flip, down, right) for flip in flips for down in steps for right in steps]


class Augmentation:
    """Random mirroring and cropping of training batches.

    ``draw`` takes an epoch's random numbers from the model's own generator in one go; ``apply`` is then a gather on
    the device that holds the batch. So what a record looks like depends on the seed and its place in the epoch only,
    on any device.

    Args:
        kind: ``"none"``, ``"flip"``, ``"crop"`` or ``"flip+crop"``. A crop moves the picture by up to an eighth of its
            height and width (4 pixels at 32 x 32), with reflected borders.
        input_shape: Shape of one sample.

    Raises:
        InputError: If the kind is unknown, or not ``"none"`` and the samples are not images.
    """

    def __init__(self, kind: str, input_shape: Sequence[int]) -> None:
        if kind not in AUGMENTATIONS:
            raise UnknownNameError("augment", kind, AUGMENTATIONS)
        _check_image_kind("augment", kind, input_shape)
        self.kind = kind
        self._reach = tuple(max(1, size // 8) if "crop" in kind else 0 for size in input_shape[-2:])

    def draw(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Random choices for ``count`` records: int64 [count, 3] (down, right, flip), None for ``"none"``."""
        if self.kind == "none":
            return None
        high = [2 * reach + 1 for reach in self._reach] + [2 if "flip" in self.kind else 1]
        low = [-reach for reach in self._reach] + [0]
        # A fixed number of draws a record, whatever the kind.
        columns = [
            torch.randint(0, n, (count,), generator=generator) + first for n, first in zip(high, low, strict=True)
        ]
        return torch.stack(columns, dim=1)

    def apply(self, batch: Tensor, choices: Tensor | None) -> Tensor:
        """``batch`` [B, C, H, W] as ``choices`` [B, 3] say, of the same shape and dtype."""
        if choices is None:
            return batch
        down, right, flip = (choices[:, i, None].to(batch.device) for i in range(3))
        height, width = batch.shape[-2:]
        rows = _reflect(torch.arange(height, device=batch.device) - down, height)
        columns = _reflect(torch.arange(width, device=batch.device) - right, width)
        columns = torch.where(flip > 0, width - 1 - columns, columns)
        record = torch.arange(len(batch), device=batch.device)
        channel = torch.arange(batch.shape[1], device=batch.device)
        return batch[
            record[:, None, None, None], channel[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]
        ]


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices at most ``size - 1`` outside the range, mirrored back into it without repeating the border."""
    index = index.abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)


def _check_image_kind(argument: str, kind: str, input_shape: Sequence[int] | None) -> None:
    if kind == "none" or input_shape is None:
        return
    if len(input_shape) != 3 or min(input_shape[-2:]) < 2:
        raise InputError(
            argument,
            f"{kind!r} for samples of shape {list(input_shape)}",
            'flips and shifts need images [C, H, W] of at least 2 x 2; take "none"',
        )
