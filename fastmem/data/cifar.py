"""CIFAR-10 and CIFAR-100 from any of the forms they are kept in.

In the order in which they are looked for below the data root:

- the binary version, ``cifar-10-batches-bin/*.bin``, ``cifar-100-binary/*.bin``;
- the Python version as torchvision lays it out, ``cifar-10-batches-py/``, ``cifar-100-python/``. Its files are pickles,
  and a pickle can run code: only files with the official MD5 sums are opened, and with an unpickler that knows numpy
  arrays and nothing else;
- ``cifar10/``: six lossless sheets (``train-0.webp`` ... ``train-4.webp``, ``test.webp``), each 100 x 100 tiles of
  32 x 32 pixels in the official order, row by row, with ``labels.npz`` (``y_train``, ``y_test``).
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmem.data.arrays import read_npz
from fastmem.data.dataset import Dataset
from fastmem.errors import InputError

__all__ = ["load_cifar10", "load_cifar100"]

_PIXELS = 3 * 32 * 32
_AGAIN = "fetch the file again"


@dataclass(frozen=True)
class _Archive:
    """One of the two data sets, as it is published."""

    name: str
    torchvision_class: str
    binary_folder: str
    binary_train: tuple[str, ...]
    binary_test: str
    label_bytes: int  # before the pixels of a binary record; the last one is the class
    pickle_folder: str
    pickle_train: dict[str, str]  # file -> MD5
    pickle_test: dict[str, str]
    label_key: str
    num_classes: int
    class_names: tuple[str, ...] | None


_CIFAR10 = _Archive(
    name="cifar10",
    torchvision_class="CIFAR10",
    binary_folder="cifar-10-batches-bin",
    binary_train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    binary_test="test_batch.bin",
    label_bytes=1,
    pickle_folder="cifar-10-batches-py",
    pickle_train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    pickle_test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    label_key="labels",
    num_classes=10,
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

_CIFAR100 = _Archive(
    name="cifar100",
    torchvision_class="CIFAR100",
    binary_folder="cifar-100-binary",
    binary_train=("train.bin",),
    binary_test="test.bin",
    label_bytes=2,
    pickle_folder="cifar-100-python",
    pickle_train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    pickle_test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    label_key="fine_labels",
    num_classes=100,
    class_names=None,
)


def load_cifar10(root: Path) -> Dataset:
    """CIFAR-10 below ``root``: 50,000 + 10,000 images [3, 32, 32]."""
    return _load(_CIFAR10, root, {"cifar10/labels.npz": _read_sheets})


def load_cifar100(root: Path) -> Dataset:
    """CIFAR-100 below ``root``, with its 100 fine classes: 50,000 + 10,000 images [3, 32, 32]."""
    return _load(_CIFAR100, root, {})


_Reader = Callable[[_Archive, Path], tuple[Any, Any, Any, Any]]


def _load(archive: _Archive, root: Path, more: dict[str, _Reader]) -> Dataset:
    readers: dict[str, _Reader] = {
        f"{archive.binary_folder}/{archive.binary_test}": _read_binary,
        f"{archive.pickle_folder}/{next(iter(archive.pickle_test))}": _read_pickles,
        **more,
    }
    for sign, reader in readers.items():
        if (root / sign).is_file():
            x, y, x_test, y_test = reader(archive, (root / sign).parent)
            return _dataset(archive, x, y, _dataset(archive, x_test, y_test, None))
    raise InputError(
        "data_root",
        f"no {archive.name} in {str(root)!r}: none of {', '.join(readers)}",
        f"fetch: fastmem.compat.import_torchvision().datasets.{archive.torchvision_class}(DATA_ROOT, download=True)",
    )


def _dataset(archive: _Archive, x: np.ndarray, y: Any, test: Dataset | None) -> Dataset:
    images = torch.from_numpy(np.ascontiguousarray(x).reshape(-1, 3, 32, 32))
    labels = torch.from_numpy(np.asarray(y).astype(np.int64))
    return Dataset(archive.name, images, labels, archive.num_classes, test, archive.class_names)


def _read_binary(archive: _Archive, folder: Path) -> tuple[Any, Any, Any, Any]:
    def split(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        width = archive.label_bytes + _PIXELS
        parts = []
        for name in names:
            raw = np.frombuffer(_bytes(archive, folder / name), np.uint8)
            if len(raw) == 0 or len(raw) % width:
                raise InputError("data_root", f"{str(folder / name)!r} has {len(raw)} bytes, not n x {width}", _AGAIN)
            parts.append(raw.reshape(-1, width))
        records = np.concatenate(parts)
        return records[:, archive.label_bytes :], records[:, archive.label_bytes - 1]

    return *split(archive.binary_train), *split((archive.binary_test,))


def _read_pickles(archive: _Archive, folder: Path) -> tuple[Any, Any, Any, Any]:
    def split(files: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
        batches = [_unpickle(archive, folder / name, md5) for name, md5 in files.items()]
        return (
            np.concatenate([batch["data"] for batch in batches]),
            np.concatenate([batch[archive.label_key] for batch in batches]),
        )

    return *split(archive.pickle_train), *split(archive.pickle_test)


def _unpickle(archive: _Archive, path: Path, md5: str) -> dict[str, Any]:
    raw = _bytes(archive, path)
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(
            "data_root",
            f"{str(path)!r} is a pickle and not the official file (MD5 {found}, expected {md5})",
            f"{_AGAIN}, or use the binary version",
        )
    return _ArrayUnpickler(io.BytesIO(raw), encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Knows what the official files hold, numpy arrays, and refuses any other object."""

    _known = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise InputError("data_root", f"a pickle asks for {module}.{name}", f"it is refused; {_AGAIN}")
        return self._known[module, name]


def _read_sheets(archive: _Archive, folder: Path) -> tuple[Any, Any, Any, Any]:
    from PIL import Image  # a slow import, needed here alone

    def sheet(name: str) -> np.ndarray:
        """uint8 [10000, 3, 32, 32] of one sheet."""
        path = folder / name
        try:
            with Image.open(io.BytesIO(_bytes(archive, path))) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise InputError("data_root", f"cannot read {str(path)!r} ({error})", _AGAIN) from error
        if pixels.shape != (3200, 3200, 3):
            raise InputError("data_root", f"{str(path)!r} has shape {pixels.shape}, not 3200 x 3200 pixels", _AGAIN)
        return pixels.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)

    labels = read_npz(folder / "labels.npz", ("y_train", "y_test"))
    if len(labels) < 2:
        raise InputError("data_root", f"{str(folder / 'labels.npz')!r} lacks y_train or y_test", _AGAIN)
    train = np.concatenate([sheet(f"train-{i}.webp") for i in range(5)])
    return train, labels["y_train"], sheet("test.webp"), labels["y_test"]


def _bytes(archive: _Archive, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            "data_root", f"{archive.name} is incomplete: cannot read {str(path)!r} ({error.strerror})", _AGAIN
        ) from error
