"""Arrays of a user's own: shapes, dtypes and label ranges are brought into one form or refused; pickle never runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmem.data.arrays import from_arrays, load_npz
from fastmem.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (6, 3, 5, 7), dtype=np.uint8)  # [N, C, H, W]
Y = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint32])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NHW"])
def test_images_of_any_layout_and_integer_type(dtype: type, layout: str) -> None:
    given = {"NCHW": X, "NHWC": X.transpose(0, 2, 3, 1), "NHW": X[:, 0]}[layout].astype(dtype)
    data = from_arrays("d", given, Y)
    expected = X[:, :1] if layout == "NHW" else X
    assert data.x.dtype == torch.uint8
    assert data.x.is_contiguous()
    np.testing.assert_array_equal(data.x, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, bool])
def test_two_dimensions_are_features(dtype: type) -> None:
    given = RNG.integers(0, 2, (6, 4)).astype(dtype)
    data = from_arrays("d", given, Y)
    assert data.x.dtype == torch.float32
    np.testing.assert_array_equal(data.x, given.astype(np.float32))


def test_takes_tensors_and_columns_of_labels_and_copies() -> None:
    tensor = torch.from_numpy(X.copy())
    data = from_arrays("d", tensor, torch.from_numpy(Y)[:, None])
    tensor.zero_()
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.y, Y)


def test_counts_classes_over_both_splits() -> None:
    assert from_arrays("d", X, Y).num_classes == 3
    data = from_arrays("d", X, Y, test=(X[:2], np.array([3, 0])))
    assert data.num_classes == 4
    assert data.test is not None
    assert data.test.num_classes == 4
    assert from_arrays("d", X, Y, num_classes=7).num_classes == 7
    assert from_arrays("d", X, Y, class_names=["a", "b", "c", "d"]).num_classes == 4


BAD = {
    "float images": ((X / 255.0, Y), "float64 images from 0 to 1"),
    "integers beyond a byte": ((X.astype(int) + 1, Y), "to 256"),
    "negative integers": ((X.astype(int) - 1, Y), "from -1"),
    "both orders possible": ((X[:, :, :, :3], Y), r"\[6, 3, 5, 3\].*either order"),
    "no channels": ((np.zeros((6, 5, 5, 5), np.uint8), Y), "no dimension of 1, 3 or 4"),
    "one dimension": ((np.zeros(6), Y), "images .* or features"),
    "text": ((np.array([["a"]] * 6), Y), "give numbers"),
    "float labels": ((X, Y / 1.0), "integer labels"),
    "one-hot labels": ((X, np.eye(3, dtype=int)[Y]), "integer labels"),
    "labels as identifiers": ((X, Y + 1000), "labels up to 1002 for 6 records"),
    "negative labels": ((X, Y - 1), "first -1 at record 0"),
    "lengths": ((X, Y[:4]), "4 labels for 6 samples"),
    "NaN": ((np.full((6, 2), np.nan), Y), "6 of 6 records"),
    "overflow": ((np.full((6, 2), 1e300), Y), "6 of 6 records"),
    "empty": ((X[:0], Y[:0]), "no labels"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_arrays("d", *arguments)


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, x=X, y=Y, x_test=X[:2], y_test=Y[:2], class_names=np.array(["a", "b", "c"]), other=np.zeros(1))
    data = load_npz(path)
    assert (data.name, data.num_classes, data.class_names) == ("mine", 3, ("a", "b", "c"))
    np.testing.assert_array_equal(data.x, X)
    assert data.test is not None
    np.testing.assert_array_equal(data.test.y, Y[:2])


def test_npz_with_train_and_test(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x_train=X, y_train=Y, x_test=X, y_test=Y, num_classes=5)
    data = load_npz(tmp_path / "d.npz")
    assert data.num_classes == 5
    assert data.test is not None


class _Explosive:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_npz_that_needs_pickle_is_refused_unread(tmp_path: Path) -> None:
    fuse = tmp_path / "exploded"
    np.savez(tmp_path / "d.npz", x=np.array([_Explosive(fuse)] * 6, dtype=object), y=Y)
    with pytest.raises(InputError, match=r"x in .*only pickle can read; pickle can run code and is refused"):
        load_npz(tmp_path / "d.npz")
    assert not fuse.exists()
    with np.load(tmp_path / "d.npz", allow_pickle=True) as archive:
        _ = archive["x"]
    assert fuse.exists(), "the test file would not have done harm: it shows nothing"


def test_npz_lacking_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, labels=Y)
    with pytest.raises(InputError, match="holds x; it needs x and y"):
        load_npz(tmp_path / "d.npz")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "flipped", "npy"])
def test_npz_that_is_damaged(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=X, y=Y)
    raw = bytearray(path.read_bytes())
    if damage == "truncated":
        raw = raw[: len(raw) // 2]
    elif damage == "flipped":
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo("x.npy").header_offset
        raw[start + 120] ^= 0xFF
    elif damage == "npy":
        with path.open("wb") as file:
            np.save(file, X)
        raw = bytearray(path.read_bytes())
    else:
        raw = bytearray(b"x,y\n1,2\n" if damage == "text" else b"")
    path.write_bytes(raw)
    with pytest.raises(InputError, match="write it again"):
        load_npz(path)


def test_npz_with_any_bytes_changed_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=X, y=Y)
    raw, rng, refused = path.read_bytes(), np.random.default_rng(1), 0
    for _ in range(300):
        changed = bytearray(raw)
        for place in rng.integers(len(raw), size=3):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            load_npz(path)
        except InputError:
            refused += 1
    assert refused > 200


def test_npz_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        load_npz(tmp_path / "none.npz")
