"""What enters a table of signals, checked once at the door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmem.errors import InputError
from fastmem.metrics.arrays import as_bool, as_float64, as_numpy, locate
from fastmem.signals.names import canonical_name, trailing_shape

__all__ = ["check_indices", "check_keep", "check_logits", "check_stats"]

_LOGIT_AXES = ("model", "sample", "query", "class")


def check_keep(keep: Any, num_samples: int) -> np.ndarray:
    """The membership mask as bool [M, N]."""
    mask = as_bool("keep", keep)
    if mask.ndim != 2 or mask.shape[0] == 0 or mask.shape[1] != num_samples:
        raise InputError(
            "keep",
            f"shape {mask.shape} for {num_samples} labels",
            "give [M, N]: a row per model (at least one), a column per sample",
        )
    return mask


def check_logits(logits: Any, keep: np.ndarray) -> np.ndarray:
    """Logits as finite floating [M, N, A, C], in the dtype they came in."""
    array = as_numpy("logits", logits)
    if array.dtype.kind != "f":
        raise InputError("logits", f"dtype {array.dtype}", "give the network's floating-point outputs before softmax")
    if array.ndim == 3 and array.shape[:2] == keep.shape:
        raise InputError("logits", f"shape {array.shape} has no query axis", "for one query give logits[:, :, None, :]")
    if array.ndim != 4 or array.shape[:2] != keep.shape or array.shape[2] < 1 or array.shape[3] < 2:
        raise InputError(
            "logits",
            f"shape {array.shape} for keep {keep.shape}",
            "give [M, N, A, C] with M and N as in keep, at least one query and two classes",
        )
    if not all(np.isfinite(row).all() for row in array):  # row by row: no mask as large as the logits
        bad = ~np.isfinite(array)
        raise InputError("logits", locate(array, bad, _LOGIT_AXES), "leave out or retrain the models concerned")
    return array


def check_stats(stats: Mapping[str, Any], keep: np.ndarray, num_queries: int | None) -> dict[str, np.ndarray]:
    """Statistics as finite float64 [M, N, A(, k)] under their canonical names, all with the same number of queries."""
    checked: dict[str, np.ndarray] = {}
    for given_name, values in stats.items():
        name = canonical_name(given_name)
        argument = f"stats[{given_name!r}]"
        if name in checked:
            raise InputError(argument, f"{name!r} is given twice", "give each statistic once")
        array = as_float64(argument, values, axes=("model", "sample", "query", "entry"))
        trailing = trailing_shape(name)
        layout = "[M, N, A" + "".join(f", {size}" for size in trailing) + "]"
        queries = num_queries if num_queries is not None else (array.shape[2] if array.ndim > 2 else 1)
        if array.shape != (*keep.shape, queries, *trailing) or queries < 1:
            fix = f"; for one query give {argument}[:, :, None]" if array.shape == keep.shape else ""
            raise InputError(
                argument,
                f"shape {array.shape} for keep {keep.shape}" + (f" and {num_queries} queries" if num_queries else ""),
                f"give {layout}, the same queries in every statistic{fix}",
            )
        num_queries = queries
        checked[name] = array
    return checked


def check_indices(argument: str, indices: Any, count: int) -> np.ndarray:
    """Positions in ``0..count-1`` from integers, a boolean mask, a slice or a range."""
    try:
        chosen = np.arange(count)[indices if isinstance(indices, slice) else as_numpy(argument, indices)]
    except IndexError:
        raise InputError(
            argument,
            f"an index out of range, a mask of another length, or not integers: {indices!r}",
            f"give integers in 0..{count - 1}, or a boolean mask of length {count}",
        ) from None
    chosen = np.atleast_1d(chosen)
    if chosen.ndim != 1 or chosen.size == 0:
        raise InputError(argument, f"selects shape {chosen.shape}", "give a list of at least one index")
    return chosen
