"""Where data come from: a name, a file, a folder of pictures, or a function of the user's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fastmem.data import cifar, mnist
from fastmem.data.arrays import from_arrays, load_npz
from fastmem.data.dataset import Dataset
from fastmem.data.folder import load_folder
from fastmem.errors import InputError, UnknownNameError
from fastmem.imports import import_object, is_import_path

__all__ = ["DATASET_NAMES", "load_dataset"]


def load_dataset(source: str, data_root: str | None = None, *, resize: int | None = None) -> Dataset:
    """Load a labelled data set.

    Args:
        source: One of

            - a name: ``digits`` (comes with scikit-learn), ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``;
            - ``FILE.npz`` with arrays ``x`` and ``y``, and perhaps ``x_test`` and ``y_test``
              (:func:`fastmem.data.arrays.load_npz`);
            - a folder with a sub-folder of pictures a class (:func:`fastmem.data.folder.load_folder`);
            - ``package.module:function``, called without arguments, which returns a :class:`Dataset` or ``(x, y)``.
        data_root: The folder that holds the named data sets, in torchvision's layout; by default the environment
            variable ``FASTMEM_DATA``.
        resize: For a folder of pictures: make each this many pixels high and wide.

    Raises:
        InputError: If there is no such data set, or it is not what it should be; the message says what is missing
            and what to do.
    """
    if resize is not None and not Path(source).is_dir():
        raise InputError("resize", f"{resize} with data {source!r}", "only folders of pictures are resized")
    if source == "digits":
        return _digits()
    if source in _FROM_ROOT:
        return _FROM_ROOT[source](_root(source, data_root))
    if is_import_path(source):
        return _from_function(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return load_folder(path, resize)
    if path.suffix == ".npz":
        return load_npz(path)
    if path.is_file():
        raise InputError("data", f"cannot read files like {path.name!r}", "give an .npz file with arrays x and y")
    if os.sep in source or path.suffix:
        raise InputError("data", f"no file or folder {source!r}", "check the path")
    raise UnknownNameError("data", source, DATASET_NAMES)


_FROM_ROOT: dict[str, Callable[[Path], Dataset]] = {
    "mnist": mnist.load_mnist,
    "fashion-mnist": mnist.load_fashion_mnist,
    "cifar10": cifar.load_cifar10,
    "cifar100": cifar.load_cifar100,
}

DATASET_NAMES = ("digits", *_FROM_ROOT)


def _root(name: str, data_root: str | None) -> Path:
    given = data_root or os.environ.get("FASTMEM_DATA")
    if not given:
        raise InputError(
            "data_root", f"not given, and {name} is not bundled", "give --data-root DIR or set FASTMEM_DATA=DIR"
        )
    root = Path(given).expanduser()
    if not root.is_dir():
        argument = "data_root" if data_root else "FASTMEM_DATA"
        raise InputError(argument, f"no folder {str(root)!r}", f"give the folder that holds {name}")
    return root


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, of which 17 grey levels are stretched to 0 ... 255."""
    from sklearn.datasets import load_digits  # a slow import, needed here alone

    levels, labels = load_digits(return_X_y=True)
    pixels = np.round(np.reshape(levels, (-1, 1, 8, 8)) * (255 / 16)).astype(np.uint8)
    return Dataset(
        "digits",
        torch.from_numpy(pixels),
        torch.from_numpy(np.asarray(labels, np.int64)),
        10,
        class_names=tuple(map(str, range(10))),
    )


def _from_function(source: str) -> Dataset:
    function = import_object("data", source)
    if not callable(function):
        raise InputError("data", f"{source} is a {type(function).__name__}", "name a function that returns (x, y)")
    try:
        result = function()
    except InputError:
        raise
    except Exception as error:  # a user's function may fail in any way
        problem = " ".join(f"{source}() failed with {type(error).__name__}: {error}".split())
        raise InputError("data", problem, "it is called without arguments and returns (x, y) or a Dataset") from error
    if isinstance(result, Dataset):
        return result
    if isinstance(result, tuple) and len(result) == 2:
        return from_arrays(source, *result)
    raise InputError(
        "data", f"{source}() returned a {type(result).__name__}", "return (x, y) or a fastmem.data.Dataset"
    )
