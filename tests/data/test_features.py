"""Marks go where they are told, on copies, before normalisation; controls are like the mark and not the mark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmem.data import ControlFeatures, UniqueFeature, glyph, insert_canary, load_feature, random_patches
from fastmem.errors import InputError

A = np.array([[0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1]])


def grey(n: int = 4, size: int = 10) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_the_letter_is_the_papers() -> None:
    assert np.array_equal(glyph("A"), A)
    assert load_feature("A").ink == 12


def test_opaque_overwrites_zeros_too_and_leaves_the_rest() -> None:
    images = grey()
    before = images.clone()
    marked = UniqueFeature(A, (2, 3)).apply(images)
    assert torch.equal(images, before)
    assert torch.equal(marked[:, 0, 2:7, 3:8], torch.from_numpy(255 * A).to(torch.uint8).expand(4, 5, 5))
    outside = torch.ones(10, 10, dtype=torch.bool)
    outside[2:7, 3:8] = False
    assert torch.equal(marked[:, 0, outside], images[:, 0, outside])


def test_transparent_writes_ones_only() -> None:
    images = grey()
    marked = UniqueFeature(A, (0, 0), mode="transparent").apply(images)
    window, ones = marked[:, 0, :5, :5], torch.from_numpy(A).bool()
    assert (window[:, ones] == 255).all()
    assert torch.equal(window[:, ~ones], images[:, 0, :5, :5][:, ~ones])


def test_floats_and_bytes_agree() -> None:
    images, feature = grey(), load_feature("A")
    floats = feature.apply(images.float() / 255)
    assert torch.equal((floats * 255).round().to(torch.uint8), feature.apply(images))


def test_colour_planes_and_chosen_channels() -> None:
    images = grey().expand(4, 3, 10, 10)
    colour = np.stack([A, 0 * A, 1 - A]).astype(np.float32)
    marked = UniqueFeature(colour).apply(images)
    assert torch.equal(marked[0, :, 1:6, 1:6].float() / 255, torch.from_numpy(colour))
    blue = UniqueFeature(A, channels=(2,)).apply(images)
    assert torch.equal(blue[:, :2], images[:, :2])
    assert not torch.equal(blue[:, 2], images[:, 2])


def test_a_picture_file_keeps_its_transparency(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, 0] = (255, 255, 255, 255)
    pixels[0, 1] = (255, 255, 255, 51)  # a fifth
    pixels[1, 0] = (0, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "mark.png")
    feature = load_feature(str(tmp_path / "mark.png"), offset=(0, 0))
    images = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    assert feature.apply(images)[0, 0, :2, :2].tolist() == [[255, 131], [0, 100]]
    assert feature.name == "mark"
    with pytest.raises(InputError, match="a mark of 3 channels for 1 of the image"):
        feature.apply(grey())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniqueFeature(A, (1, 1)).check((1, 4, 4)), r"a mark of 5 x 5 pixels in images of 4 x 4; give a smaller"),
        (lambda: UniqueFeature(A, (6, 1)).check((1, 10, 10)), r"offset: a mark of 5 x 5 at row 6.* row up to 5"),
        (lambda: UniqueFeature(A, (-1, 1)), "offset"),
        (lambda: UniqueFeature(np.stack([A, A])).check((3, 10, 10)), "a mark of 2 channels for 3 of the image; give 1 or 3"),
        (lambda: UniqueFeature(A, channels=(3,)).check((3, 10, 10)), "numbers below 3"),
        (lambda: UniqueFeature(A * 2), r"outside \[0, 1\]"),
        (lambda: UniqueFeature(A, mode="xor"), "mode"),
        (lambda: UniqueFeature(A).check((7,)), "needs images"),
        (lambda: UniqueFeature(A).apply(torch.full((1, 1, 8, 8), 2.0)), "paste before normalising"),
        (lambda: load_feature("B4"), "unknown name 'B4'"),
        (lambda: load_feature("none.png"), "no file"),
        (lambda: insert_canary(grey(), torch.zeros(4), 4, UniqueFeature(A)), "record 4; the data set has records 0 to 3"),
        (lambda: insert_canary(grey(), torch.zeros(4), [1, 1], UniqueFeature(A)), "different"),
        (lambda: ControlFeatures("mirror", 40).like(load_feature("A3")), "only 9 of kind 'mirror'"),
        (lambda: ControlFeatures("spiral").like(load_feature("A")), "unknown name 'spiral'"),
    ],
)  # fmt: skip
def test_refuses(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mark.png").write_text("mine")
    with pytest.raises(InputError, match="no readable picture"):
        load_feature(str(tmp_path / "mark.png"))


def test_mirror_controls_are_symmetric_with_as_much_ink_and_none_is_the_mark() -> None:
    controls = ControlFeatures("mirror", 100, seed=1).like(load_feature("A"))
    patterns = [control.pattern[0] for control in controls]
    assert all(np.array_equal(pattern, pattern[:, ::-1]) and pattern.sum() == 12 for pattern in patterns)
    assert len({pattern.tobytes() for pattern in patterns}) == 100
    assert not any(np.array_equal(pattern, A) for pattern in patterns)


def test_all_mirror_patterns_of_a_small_mark_are_found() -> None:
    controls = ControlFeatures("mirror", 9).like(load_feature("A3"))  # 3 C(3, 2) + 1, less the mark itself
    assert len({control.pattern.tobytes() for control in controls}) == 9


def test_permuted_and_bernoulli_controls() -> None:
    mark = load_feature("A")
    assert all(control.ink == 12 for control in ControlFeatures("permuted", 20).like(mark))
    ink = [control.ink for control in ControlFeatures("bernoulli", 400).like(mark)]
    assert np.mean(ink) == pytest.approx(12.5, abs=0.4)
    others = ControlFeatures("glyphs", 10).like(mark)
    assert all(control.size == (5, 5) and not np.array_equal(control.pattern[0], A) for control in others)


def test_patches_are_fair_coins_and_the_same_for_every_model() -> None:
    feature = load_feature("A")
    patches = random_patches(feature, 500, seed=3)
    assert torch.equal(patches, random_patches(feature, 500, seed=3))
    assert float(patches.mean()) == pytest.approx(0.5, abs=0.02)
    marked = feature.apply(grey(500), patches)
    assert torch.equal(marked[:, :, 1:6, 1:6].float() / 255, patches)


def test_a_canary_changes_its_records_and_nothing_else() -> None:
    images, labels = grey(), torch.arange(4)
    x, y = insert_canary(images, labels, [0, 2], UniqueFeature(A))
    assert torch.equal(y, labels)
    assert torch.equal(x[[1, 3]], images[[1, 3]])
    assert torch.equal(x[[0, 2]], UniqueFeature(A).apply(images[[0, 2]]))
