"""Samples and labels that a user brings as arrays: brought into the one form that :class:`Dataset` holds."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.data.dataset import Dataset
from fastmem.errors import InputError

__all__ = ["from_arrays", "load_npz", "read_npz"]

_CHANNELS = (1, 3, 4)
_PAIRS = (("x", "y"), ("x_train", "y_train"))


def from_arrays(
    name: str,
    x: Any,
    y: Any,
    *,
    test: tuple[Any, Any] | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """A data set from arrays or tensors.

    Args:
        name: What to call it.
        x: Images as integers 0 to 255, [N, H, W], [N, C, H, W] or [N, H, W, C] with C of 1, 3 or 4; or numbers
            [N, D], which are features.
        y: Integer labels, [N] or [N, 1].
        test: ``(x, y)`` of a test split.
        num_classes: By default one more than the largest label.
        class_names: One a class.

    Raises:
        InputError: If the arrays are not that, or the order of the dimensions of ``x`` cannot be told.
    """
    labels = _labels(name, y)
    test_labels = _labels(f"{name} (test)", test[1]) if test is not None else None
    if num_classes is None:
        num_classes = len(class_names) if class_names is not None else _count_classes(name, labels, test_labels)
    names = None if class_names is None else tuple(map(str, class_names))
    held_out = None
    if test is not None and test_labels is not None:
        held_out = Dataset(f"{name} (test)", _samples(name, test[0]), test_labels, num_classes, None, names)
    return Dataset(name, _samples(name, x), labels, num_classes, held_out, names)


def load_npz(path: Path) -> Dataset:
    """A data set from ``x`` and ``y`` (or ``x_train`` and ``y_train``) in an .npz file.

    ``x_test`` and ``y_test`` become the test split; ``num_classes`` and ``class_names`` are taken when there.

    Raises:
        InputError: If the file is missing or corrupt, needs pickle, or lacks an array.
    """
    found = read_npz(path, ("x", "y", "x_train", "y_train", "x_test", "y_test", "num_classes", "class_names"))
    pair = next((pair for pair in _PAIRS if all(name in found for name in pair)), None)
    if pair is None:
        held = ", ".join(found) or "none of them"
        raise InputError("data", f"{str(path)!r} holds {held}", "it needs x and y (or x_train and y_train)")
    test = (found["x_test"], found["y_test"]) if "x_test" in found and "y_test" in found else None
    return from_arrays(
        path.stem,
        found[pair[0]],
        found[pair[1]],
        test=test,
        num_classes=int(found["num_classes"]) if "num_classes" in found else None,
        class_names=[str(name) for name in found["class_names"]] if "class_names" in found else None,
    )


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the arrays ``names`` that an .npz file holds; its others are not read.

    Raises:
        InputError: If the file is missing or corrupt, or an array needs pickle.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError("data", f"{str(path)!r} holds a single array", "write it again with numpy.savez(x=, y=)")
        with archive:
            return {name: _read(path, archive, name) for name in names if name in archive.files}
    except FileNotFoundError as error:
        raise InputError("data", f"no file {str(path)!r}", "check the path") from error
    except InputError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            "data", f"{str(path)!r} is no readable .npz file ({error})", "write it again with numpy.savez(x=, y=)"
        ) from error


def _read(path: Path, archive: Any, name: str) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        if "pickle" not in str(error).lower():
            raise
        raise InputError(
            "data",
            f"{name} in {str(path)!r} is an array of Python objects, which only pickle can read",
            "pickle can run code and is refused; save numbers, e.g. x.astype('uint8')",
        ) from error


def _as_array(name: str, argument: str, values: Any) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "buif":
        raise InputError(argument, f"dtype {array.dtype} in {name}", "give numbers")
    return array


def _samples(name: str, x: Any) -> Tensor:
    array = _as_array(name, "x", x)
    if array.ndim == 2:
        with np.errstate(over="ignore"):  # becomes an infinity, which Dataset reports
            return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if array.ndim not in (3, 4):
        raise InputError("x", f"shape {list(array.shape)} in {name}", "give images [N, C, H, W] or features [N, D]")
    if array.dtype.kind not in "ui" or (array.size and not 0 <= array.min() <= array.max() <= 255):
        span = f" from {array.min():g} to {array.max():g}" if array.size else ""
        raise InputError(
            "x",
            f"{array.dtype} images{span} in {name}",
            "give integers 0 to 255, e.g. (x * 255).round().astype('uint8')",
        )
    return torch.from_numpy(np.array(_channels_first(name, array), dtype=np.uint8, order="C"))


def _channels_first(name: str, array: np.ndarray) -> np.ndarray:
    """[N, C, H, W] from [N, H, W], [N, C, H, W] or [N, H, W, C]."""
    if array.ndim == 3:
        return array[:, None]
    first, last = array.shape[1] in _CHANNELS, array.shape[3] in _CHANNELS
    if first == last:
        problem = "either order of dimensions is possible" if first else "no dimension of 1, 3 or 4 channels"
        raise InputError(
            "x", f"shape {list(array.shape)} in {name}: {problem}", "give a fastmem.data.Dataset with x [N, C, H, W]"
        )
    return array if first else array.transpose(0, 3, 1, 2)


def _labels(name: str, y: Any) -> Tensor:
    array = _as_array(name, "y", y)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "bui":
        raise InputError("y", f"{array.dtype} {list(array.shape)} in {name}", "give integer labels [N]")
    return torch.from_numpy(array.astype(np.int64))


def _count_classes(name: str, *labels: Tensor | None) -> int:
    given = torch.cat([part for part in labels if part is not None])
    if len(given) == 0:
        raise InputError("y", f"no labels in {name}", "give at least one record")
    largest = int(given.max())
    if largest >= len(given):
        raise InputError(
            "y",
            f"labels up to {largest} for {len(given)} records of {name}",
            "number the classes 0, 1, 2, ... or give num_classes",
        )
    return largest + 1
