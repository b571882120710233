"""CIFAR in its three forms; a pickle is opened only when it is the official one, and then can name nothing but arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmem.data import cifar
from fastmem.data.cifar import load_cifar10, load_cifar100
from fastmem.errors import InputError

RNG = np.random.default_rng(0)


def pixels(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def write_binary(path: Path, images: np.ndarray, *labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [column.astype(np.uint8)[:, None] for column in labels]
    path.write_bytes(np.hstack([*columns, images.reshape(len(images), -1)]).tobytes())


def test_binary_cifar10(tmp_path: Path) -> None:
    images, labels = pixels(12), np.arange(12) % 10
    for i in range(5):
        part = slice(2 * i, 2 * i + 2)
        write_binary(tmp_path / "cifar-10-batches-bin" / f"data_batch_{i + 1}.bin", images[part], labels[part])
    write_binary(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", images[10:], labels[10:])
    data = load_cifar10(tmp_path)
    assert data.test is not None
    np.testing.assert_array_equal(data.x, images[:10])
    np.testing.assert_array_equal(data.y, labels[:10])
    np.testing.assert_array_equal(data.test.x, images[10:])
    assert data.class_names is not None
    assert data.class_names[3] == "cat"


def test_binary_cifar100_takes_the_fine_class(tmp_path: Path) -> None:
    images, coarse, fine = pixels(4), np.array([1, 2, 3, 4]), np.array([99, 0, 50, 7])
    write_binary(tmp_path / "cifar-100-binary" / "train.bin", images, coarse, fine)
    write_binary(tmp_path / "cifar-100-binary" / "test.bin", images[:1], coarse[:1], fine[:1])
    data = load_cifar100(tmp_path)
    np.testing.assert_array_equal(data.x, images)
    np.testing.assert_array_equal(data.y, fine)
    assert data.num_classes == 100


def test_a_binary_file_cut_short(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar-100-binary" / "test.bin", pixels(1), np.zeros(1), np.zeros(1))
    (tmp_path / "cifar-100-binary" / "train.bin").write_bytes(b"x" * 5000)
    with pytest.raises(InputError, match=r"train\.bin' has 5000 bytes, not n x 3074"):
        load_cifar100(tmp_path)


def test_a_file_of_the_set_is_missing(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", pixels(1), np.zeros(1))
    with pytest.raises(InputError, match=r"cifar10 is incomplete: cannot read .*data_batch_1\.bin"):
        load_cifar10(tmp_path)


class _Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as the official files have them."""

    def save_bytes(self, obj: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    dispatch = dict(pickle._Pickler.dispatch) | {bytes: save_bytes}


def write_pickle(path: Path, content: Any) -> str:
    """Writes it; returns its MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        _Python2Pickler(file, protocol=2).dump(content)
    raw = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(raw)
    return hashlib.md5(raw).hexdigest()


def expect(monkeypatch: pytest.MonkeyPatch, train: dict[str, str], test: dict[str, str]) -> None:
    """Take these MD5 sums for the official ones."""
    archive = dataclasses.replace(cifar._CIFAR100, pickle_train=train, pickle_test=test)
    monkeypatch.setattr(cifar, "_CIFAR100", archive)


def test_official_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, fine = pixels(4), [99, 0, 50, 7]
    batch = {"data": images.reshape(4, -1), "fine_labels": fine, "coarse_labels": [1, 2, 3, 4], "filenames": ["a"] * 4}
    folder = tmp_path / "cifar-100-python"
    md5 = write_pickle(folder / "train", batch)
    expect(monkeypatch, {"train": md5}, {"test": write_pickle(folder / "test", batch)})
    data = load_cifar100(tmp_path)
    np.testing.assert_array_equal(data.x, images)
    assert data.y.tolist() == fine


class _Explosive:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("official", [False, True], ids=["unknown sum", "sum taken for official"])
def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, official: bool
) -> None:
    fuse = tmp_path / "exploded"
    folder = tmp_path / "cifar-100-python"
    md5 = {name: write_pickle(folder / name, {"data": _Explosive(fuse)}) for name in ("train", "test")}
    if official:
        expect(monkeypatch, {"train": md5["train"]}, {"test": md5["test"]})
    with pytest.raises(InputError, match="asks for" if official else "is a pickle and not the official file"):
        load_cifar100(tmp_path)
    assert not fuse.exists()
    pickle.loads((folder / "train").read_bytes())
    assert fuse.exists(), "the test file would not have done harm: it shows nothing"


def test_the_lossless_sheets(shared_data: Path) -> None:
    data = load_cifar10(shared_data)
    assert data.test is not None
    assert (len(data), len(data.test), data.input_shape) == (50_000, 10_000, (3, 32, 32))
    assert data.y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert data.y.bincount().tolist() == [5_000] * 10
    mean, std = data.channel_stats()
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=5e-5)


def test_a_damaged_sheet_is_named(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "labels.npz", y_train=np.zeros(50_000), y_test=np.zeros(10_000))
    (tmp_path / "cifar10" / "train-0.webp").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"cannot read .*train-0\.webp"):
        load_cifar10(tmp_path)


def test_labels_that_lack_a_split(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "labels.npz", y_train=np.zeros(50_000))
    with pytest.raises(InputError, match="lacks y_train or y_test"):
        load_cifar10(tmp_path)


def test_nothing_there_names_every_form(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cifar-10-batches-bin.*cifar-10-batches-py.*cifar10/labels\.npz.*download"):
        load_cifar10(tmp_path)
