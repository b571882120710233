"""What few-shot operators share: class means, unit vectors and distances of many small episodes at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops._checks import require_dtype, require_same_device, require_tensor

__all__ = ["class_means", "require_episodes", "require_members", "require_numbers", "squared_distances", "unit"]

# Below this a vector has no direction.
_SMALLEST_NORM = 1e-6


def class_means(features: Tensor, members: Tensor) -> Tensor:
    """Mean features of the non-members and of the members, [E, 2, d], of [E, S, d] and bool [E, S]."""
    weight = torch.stack([~members, members], dim=1).to(features.dtype)
    return torch.bmm(weight / weight.sum(dim=2, keepdim=True), features)


def unit(features: Tensor, centre: Tensor | None) -> Tensor:
    """(f - m) / max(|f - m|, 1e-6), rows of [E, n, d]; without a centre m = 0."""
    moved = features if centre is None else features - centre
    return moved / moved.norm(dim=-1, keepdim=True).clamp_min(_SMALLEST_NORM)


def squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Squared Euclidean distances [E, n, m] between [E, n, d] and [E, m, d]."""
    ends = rows.square().sum(dim=2)[:, :, None] + columns.square().sum(dim=2)[:, None, :]
    return torch.baddbmm(ends, rows, columns.mT, alpha=-2).clamp_min_(0)


def require_episodes(argument: str, value: Any, shape: tuple[int | None, ...], like: Tensor | None = None) -> None:
    """Refuse what is not float32 or float64 of a shape in which None stands for any size, beside another operand.

    Raises:
        InputError: The argument is of another type, dtype, shape or device.
    """
    require_tensor(argument, value)
    require_dtype(argument, value, (torch.float32, torch.float64))
    fits = value.ndim == len(shape) and all(
        want is None or size == want for size, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(argument, f"has shape {list(value.shape)}", f"give [{wanted}]")
    if like is not None:
        require_same_device(argument, value, "the first argument", like)


def require_numbers(argument: str, value: Any, records: Tensor) -> None:
    """Refuse what is not int64 [E, n], each the number of one of the records.

    Raises:
        InputError: It is not.
    """
    require_tensor(argument, value)
    require_dtype(argument, value, (torch.int64,))
    if value.ndim != 2:
        raise InputError(argument, f"has shape {list(value.shape)}", "give [episodes, records]")
    require_same_device(argument, value, "records", records)
    if value.numel() and (int(value.min()) < 0 or int(value.max()) >= len(records)):
        raise InputError(
            argument, f"names records {int(value.min())} to {int(value.max())} of {len(records)}", "count from 0"
        )


def require_members(members: Any, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse a mask that is not bool of this shape, or that lacks a kind in one of its rows.

    Raises:
        InputError: It does.
    """
    require_tensor("members", members)
    require_dtype("members", members, (torch.bool,))
    if members.shape != shape:
        raise InputError("members", f"has shape {list(members.shape)}", f"give {list(shape)}, one a known record")
    require_same_device("members", members, "the first argument", like)
    if bool((members.all(dim=1) | ~members.any(dim=1)).any()):
        raise InputError("members", "an episode has records of one kind only", "give members and non-members in each")
