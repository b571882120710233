"""Pictures in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmem.data.folder import load_folder
from fastmem.errors import InputError

RNG = np.random.default_rng(0)


def picture(path: Path, height: int = 4, width: int = 6, mode: str = "RGB") -> np.ndarray:
    shape = (height, width) if mode == "L" else (height, width, 3)
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_numbers_classes_and_pictures_by_name(tmp_path: Path) -> None:
    expected = [picture(tmp_path / name) for name in ("cat/a.png", "cat/b.PNG", "cat/deep/a.png", "dog/z.bmp")]
    picture(tmp_path / ".hidden" / "x.png")
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    data = load_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.y.tolist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(data.x.permute(0, 2, 3, 1), np.stack(expected))
    assert data.name == tmp_path.name


def test_grey_stays_grey_unless_mixed_with_colour(tmp_path: Path) -> None:
    grey = picture(tmp_path / "a" / "0.png", mode="L")
    picture(tmp_path / "b" / "0.png", mode="L")
    assert load_folder(tmp_path).input_shape == (1, 4, 6)
    picture(tmp_path / "b" / "1.png")
    mixed = load_folder(tmp_path)
    assert mixed.input_shape == (3, 4, 6)
    np.testing.assert_array_equal(mixed.x[0], np.stack([grey] * 3))


def test_sizes_that_differ_are_named_and_resize_is_the_remedy(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.png")
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "0.png", 8, 8)
    with pytest.raises(InputError, match=r"4 x 6 \(2\), 8 x 8 \(1\); give one size with --resize"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, resize=5).input_shape == (3, 5, 5)


def test_a_picture_that_does_not_open_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.png")
    picture(tmp_path / "b" / "0.png")
    raw = (tmp_path / "b" / "0.png").read_bytes()
    (tmp_path / "b" / "1.png").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=r"cannot read picture .*b/1\.png"):
        load_folder(tmp_path)


def test_more_than_eight_bits_are_not_cut_off_in_silence(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(tmp_path / "b" / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits"):
        load_folder(tmp_path)


def test_needs_two_classes_with_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 sub-folders with 0 pictures"):
        load_folder(tmp_path)
    picture(tmp_path / "a" / "0.png")
    with pytest.raises(InputError, match="1 sub-folders with 1 pictures"):
        load_folder(tmp_path)


@pytest.mark.parametrize("resize", [0, -3])
def test_refuses_a_size_of_nothing(tmp_path: Path, resize: int) -> None:
    with pytest.raises(InputError, match="resize"):
        load_folder(tmp_path, resize=resize)


def test_labels_are_what_a_data_set_takes(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.png")
    picture(tmp_path / "b" / "0.png")
    assert load_folder(tmp_path).y.dtype == torch.int64
