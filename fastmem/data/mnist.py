"""MNIST and Fashion-MNIST from their IDX files, in torchvision's folder layout, gzipped or not.

The format (LeCun, Cortes, Burges): two zero bytes, a type code (8 = unsigned byte), the number of dimensions, the
dimensions as big-endian 32-bit integers, then the values. Reading it here needs no torchvision, and takes the gzipped
files as they are published.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from fastmem.data.dataset import Dataset
from fastmem.errors import InputError

__all__ = ["load_fashion_mnist", "load_mnist", "read_idx"]

_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load_mnist(root: Path) -> Dataset:
    """MNIST from ``root/MNIST/raw``: 60,000 + 10,000 images [1, 28, 28]."""
    return _load("mnist", root, "MNIST", tuple(map(str, range(10))))


def load_fashion_mnist(root: Path) -> Dataset:
    """Fashion-MNIST from ``root/FashionMNIST/raw``: 60,000 + 10,000 images [1, 28, 28]."""
    return _load("fashion-mnist", root, "FashionMNIST", _FASHION_CLASSES)


def _load(name: str, root: Path, torchvision_class: str, class_names: tuple[str, ...]) -> Dataset:
    folder = root / torchvision_class / "raw"

    def split(prefix: str, test: Dataset | None) -> Dataset:
        images, labels = (
            read_idx(_find(name, folder, f"{prefix}-{kind}", torchvision_class))
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        if images.ndim != 3 or labels.ndim != 1:
            raise InputError(
                "data_root",
                f"{folder} holds no images and labels: {images.shape}, {labels.shape}",
                _remedy(torchvision_class),
            )
        x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))
        return Dataset(name, x, y, 10, test, class_names)

    return split("train", split("t10k", None))


def _find(name: str, folder: Path, stem: str, torchvision_class: str) -> Path:
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            return path
    raise InputError(
        "data_root", f"no {stem} or {stem}.gz in {str(folder)!r}, where {name} should be", _remedy(torchvision_class)
    )


def _remedy(torchvision_class: str) -> str:
    return f"fetch: fastmem.compat.import_torchvision().datasets.{torchvision_class}(DATA_ROOT, download=True)"


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes (``.gz``: compressed).

    Raises:
        InputError: If the file is not that, or is cut short.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError("data_root", f"cannot read {str(path)!r} ({error})", "fetch the file again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise InputError("data_root", f"{str(path)!r} is not an IDX file of bytes", "fetch the file again")
    start = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise InputError(
            "data_root",
            f"{str(path)!r} has {len(raw) - start} bytes of data where its header says {math.prod(shape)}",
            "fetch the file again",
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()
