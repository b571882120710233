"""A labelled data set in memory, checked once at the door and named by its content.

Images stay unsigned bytes, [N, C, H, W]; they become floats only inside a batch (:mod:`fastmem.data.transforms`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmem.errors import InputError

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and their classes.

    Args:
        name: What to call it in reports.
        x: uint8 [N, C, H, W] images, or float32 [N, D] features.
        y: int64 [N], each in 0 ... num_classes - 1.
        num_classes: Number of classes C, at least 2.
        test: Further records of the same kind that came as a test split, if any.
        class_names: One name a class.

    Raises:
        InputError: If shapes, dtypes, label range or values are not as above; NaN and infinities are counted.
    """

    name: str
    x: Tensor
    y: Tensor
    num_classes: int
    test: Dataset | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_samples(self.name, self.x)
        _check_labels(self.name, self.x, self.y, self.num_classes)
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise InputError(
                "class_names",
                f"{len(self.class_names)} names for {self.num_classes} classes of {self.name}",
                "give one name a class",
            )
        if self.test is not None and (
            self.test.input_shape != self.input_shape or self.test.num_classes != self.num_classes
        ):
            raise InputError(
                "data",
                f"the test split of {self.name} has samples {list(self.test.input_shape)} in "
                f"{self.test.num_classes} classes, the training split {list(self.input_shape)} in {self.num_classes}",
                "both splits need samples of one shape and the same classes",
            )

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def is_image(self) -> bool:
        """Whether samples are images [C, H, W], rather than feature vectors [D]."""
        return self.x.ndim == 4

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (D,)."""
        return tuple(self.x.shape[1:])

    def fingerprint(self) -> str:
        """SHA-256 (hex) of what decides a result: values, dtypes, shapes and order of samples and labels, and C.

        The name and the test split do not enter.
        """
        digest = hashlib.sha256(b"fastmem.Dataset/1")
        digest.update(f"classes {self.num_classes}".encode())
        for tensor in (self.x, self.y):
            array = np.ascontiguousarray(tensor.cpu().numpy())
            # Bytes in a fixed order, so that the same data have the same name on every machine.
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"|{array.dtype.str} {array.shape}|".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def channel_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation for normalisation, float32.

        Returns:
            [C] each, a value a channel, in units of pixel / 255, for images; [D] each, a value a feature, for features.
            A constant channel or feature gets the standard deviation 1.
        """
        x = self.x.cpu().numpy()
        if self.is_image:
            counts = np.stack([np.bincount(x[:, channel].reshape(-1), minlength=256) for channel in range(x.shape[1])])
            mean, std = _moments_of_bytes(counts / counts.sum(axis=1, keepdims=True))
        else:
            mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
            std[(x == x[0]).all(axis=0)] = 0.0  # not the rounding error of their mean
        std = np.where(std > 0, std, 1.0)
        return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> Dataset:
        """The records at ``indices``, in that order, without the test split.

        Raises:
            InputError: If an index is outside the data set, or there is none.
        """
        index = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
        if index.ndim != 1 or len(index) == 0:
            raise InputError("indices", f"shape {list(index.shape)}", "give a non-empty list of record numbers")
        if int(index.min()) < 0 or int(index.max()) >= len(self):
            raise InputError(
                "indices",
                f"record numbers from {int(index.min())} to {int(index.max())}",
                f"{self.name} has records 0 to {len(self) - 1}",
            )
        return Dataset(self.name, self.x[index], self.y[index], self.num_classes, None, self.class_names)


def _moments_of_bytes(frequency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of pixel / 255 from the frequency [C, 256] of each byte: exact, in one pass."""
    level = np.arange(256) / 255
    mean = frequency @ level
    return mean, np.sqrt((frequency * (level - mean[:, None]) ** 2).sum(axis=1))


def _check_samples(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise InputError("x", f"{type(x).__name__} in {name}", "give a torch.Tensor")
    images = x.ndim == 4 and x.dtype == torch.uint8
    features = x.ndim == 2 and x.dtype == torch.float32
    if not (images or features):
        raise InputError(
            "x",
            f"{_dtype(x)} {list(x.shape)} in {name}",
            "give uint8 images [N, C, H, W] with values 0 to 255, or float32 features [N, D]",
        )
    if x.numel() == 0:
        raise InputError("x", f"no values in {name}, shape {list(x.shape)}", "give at least one non-empty sample")
    if features:
        bad = ~torch.isfinite(x).all(dim=1)
        if bad.any():
            raise InputError(
                "x",
                f"{int(bad.sum())} of {len(x)} records of {name} hold NaN or infinities, first record {_first(bad)}",
                "remove or fill them",
            )


def _check_labels(name: str, x: Tensor, y: Tensor, num_classes: int) -> None:
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.ndim != 1:
        given = f"{_dtype(y)} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise InputError("y", f"{given} in {name}", "give int64 labels [N]")
    if len(y) != len(x):
        raise InputError("y", f"{len(y)} labels for {len(x)} samples of {name}", "give one label a sample")
    if num_classes < 2:
        raise InputError("num_classes", f"{num_classes} in {name}", "a classifier needs at least 2 classes")
    bad = (y < 0) | (y >= num_classes)
    if bad.any():
        first = _first(bad)
        raise InputError(
            "y",
            f"{int(bad.sum())} labels of {name} out of range, first {int(y[first])} at record {first}",
            f"labels run from 0 to {num_classes - 1}",
        )


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
