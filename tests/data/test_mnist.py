"""IDX files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fastmem.data.mnist import load_fashion_mnist, load_mnist, read_idx
from fastmem.errors import InputError

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(root: Path, compress: bool) -> dict[str, np.ndarray]:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    arrays = {}
    for prefix, count in (("train", 12), ("t10k", 5)):
        arrays[f"{prefix}-images-idx3-ubyte"] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = RNG.integers(0, 10, count, dtype=np.uint8)
    for name, array in arrays.items():
        raw = idx(array)
        (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(raw) if compress else raw)
    return arrays


@pytest.mark.parametrize("compress", [False, True])
def test_reads_what_was_written(tmp_path: Path, compress: bool) -> None:
    arrays = write_mnist(tmp_path, compress)
    data = load_mnist(tmp_path)
    assert data.test is not None
    np.testing.assert_array_equal(data.x[:, 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.y, arrays["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(data.test.x[:, 0], arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.test.y, arrays["t10k-labels-idx1-ubyte"])


def test_the_real_files(shared_data: Path) -> None:
    mnist = load_mnist(shared_data)
    assert mnist.test is not None
    assert (len(mnist), len(mnist.test), mnist.input_shape) == (60_000, 10_000, (1, 28, 28))
    assert mnist.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    fashion = load_fashion_mnist(shared_data)
    assert fashion.class_names is not None
    assert fashion.class_names[int(fashion.y[0])] == "Ankle boot"
    assert fashion.y.bincount().tolist() == [6_000] * 10


def test_a_missing_file_names_the_folder_and_the_remedy(tmp_path: Path) -> None:
    write_mnist(tmp_path, compress=True)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        InputError, match=r"no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz in .*MNIST/raw.*download=True"
    ):
        load_mnist(tmp_path)


GOOD = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (GOOD[:-1], "5 bytes of data where its header says 6"),
        (GOOD + b"x", "7 bytes"),
        (b"", "not an IDX file"),
        (GOOD[:6], "not an IDX file"),
        (b"\0\0\x0d" + GOOD[3:], "not an IDX file"),
    ],
    ids=["cut short", "too long", "empty", "cut in the header", "floats"],
)
def test_refuses_a_damaged_file(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(InputError, match=message):
        read_idx(tmp_path / "f")


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"plain text"])
def test_refuses_damaged_gzip(tmp_path: Path, damage) -> None:
    (tmp_path / "f.gz").write_bytes(damage(gzip.compress(GOOD)))
    with pytest.raises(InputError, match="fetch the file again"):
        read_idx(tmp_path / "f.gz")


def test_the_good_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(GOOD)
    assert read_idx(tmp_path / "f").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_images_where_labels_should_be(tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path, compress=False)
    raw = tmp_path / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(arrays["t10k-images-idx3-ubyte"]))
    with pytest.raises(InputError, match="no images and labels"):
        load_mnist(tmp_path)
