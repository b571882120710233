"""Arrays at the door: numpy arrays and torch tensors in, checked numpy arrays out.

Scores, masks and statistics enter fastmem from notebooks, files and GPUs. The functions here turn them into numpy
without copying where that is possible, and refuse what would only fail, or lie, further inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmem.errors import InputError

__all__ = ["as_bool", "as_float64", "as_labels", "as_numpy", "locate"]


def as_numpy(argument: str, value: Any) -> np.ndarray:
    """A numpy array of ``value``: shared memory where possible, bfloat16 tensors widened to float32.

    Args:
        argument: The name that errors use.
        value: A numpy array, a torch tensor on any device, or nested sequences of numbers.

    Returns:
        The array; its dtype is boolean, integer or floating.

    Raises:
        InputError: if ``value`` holds anything but numbers or truth values, or ragged rows.
    """
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a tensor, recognised without importing torch
        tensor = value.detach().cpu()
        value = tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(argument, "its rows have different lengths", "give one rectangular array") from None
    if array.dtype.kind not in "biuf":
        raise InputError(argument, f"dtype {array.dtype} is not numeric", "give boolean, integer or floating values")
    return array


def as_bool(argument: str, value: Any) -> np.ndarray:
    """A boolean array; integers are refused, since 0/1, 1/2 and indices look alike.

    Args:
        argument: The name that errors use.
        value: A boolean array or tensor.

    Returns:
        The array, dtype bool.

    Raises:
        InputError: if the dtype is not boolean.
    """
    array = as_numpy(argument, value)
    if array.dtype != np.bool_:
        raise InputError(
            argument, f"dtype {array.dtype} is not boolean", f"convert a 0/1 mask with {argument}.astype(bool)"
        )
    return array


def as_labels(argument: str, value: Any, num_classes: int | None = None) -> np.ndarray:
    """Class labels as int64 [N], each at least 0 and, where ``num_classes`` is known, below it.

    Args:
        argument: The name that errors use.
        value: Integer labels [N].
        num_classes: The number of classes, or None where unknown.

    Returns:
        Labels [N], int64.

    Raises:
        InputError: for another dtype, more than one dimension, or a label out of range (the first is located).
    """
    array = as_numpy(argument, value)
    if array.dtype.kind not in "iu":
        raise InputError(argument, f"dtype {array.dtype} is not integer", f"convert with {argument}.astype('int64')")
    if array.ndim != 1:
        raise InputError(argument, f"shape {array.shape}", "give one label per sample, shape [N]")
    wrong = array < 0 if num_classes is None else (array < 0) | (array >= num_classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        accepted = "labels start at 0" if num_classes is None else f"labels must be in 0..{num_classes - 1}"
        raise InputError(
            argument, f"{wrong.sum()} values out of range, first {array[first]} at sample {first}", accepted
        )
    return array.astype(np.int64, copy=False)


def as_float64(argument: str, value: Any, *, axes: tuple[str, ...], allow_inf: bool = False) -> np.ndarray:
    """A float64 array without NaN, and by default without infinities.

    Args:
        argument: The name that errors use.
        value: Numbers of any floating or integer dtype.
        axes: The axis names used to locate the first bad value, for example ``("model", "sample")``.
        allow_inf: Accept infinities, where only the order of the values matters.

    Returns:
        The array in float64.

    Raises:
        InputError: if a value is NaN (or infinite): how many, and where the first one is.
    """
    array = as_numpy(argument, value)
    if array.dtype.kind == "b":
        raise InputError(argument, "dtype bool", "give numbers")
    array = array.astype(np.float64, copy=False)
    if not np.isfinite(array).all():  # one pass in the common case
        bad = np.isnan(array) if allow_inf else ~np.isfinite(array)
        if bad.any():
            raise InputError(argument, locate(array, bad, axes), "remove or recompute them")
    return array


def locate(array: np.ndarray, bad: np.ndarray, axes: tuple[str, ...]) -> str:
    """``3 NaN values, first at model 0, sample 12``: the count, the kinds and the first place of ``bad`` entries."""
    kind = "NaN" if np.isnan(array[bad]).all() else "infinite" if np.isinf(array[bad]).all() else "NaN or infinite"
    count = int(bad.sum())
    first = np.unravel_index(int(np.argmax(bad)), bad.shape)
    where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, first, strict=False))
    return f"{count} {kind} value{'s' if count > 1 else ''}, first at {where}"
