"""Generators of the user's own: what they may return, and one line for everything else."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from fastmem.data.generators import check_generated, load_generator
from fastmem.errors import InputError

SHAPE = (1, 8, 8)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("own_generator")
    monkeypatch.setitem(sys.modules, "own_generator", module)
    return module


def test_a_function_gets_count_and_seed(own: ModuleType) -> None:
    own.draw = lambda count, seed: torch.full((count, *SHAPE), seed / 10)  # type: ignore[attr-defined]
    images = load_generator("own_generator:draw", SHAPE)(3, 5)
    assert images.dtype == torch.uint8
    assert images.unique().tolist() == [128]


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (torch.full((4, *SHAPE), float("nan")), "NaN or infinities in 4 of 4 images, first in image 0"),
        (torch.zeros(4, 3, 8, 8), r"returned shape \[4, 3, 8, 8\] for data \[1, 8, 8\]"),
        (torch.zeros(3, *SHAPE), "gave 3 images of 4"),
        (torch.full((4, *SHAPE), 2.0), "values from 2 to 2"),
        (torch.zeros(4, *SHAPE, dtype=torch.int64), "returned int64"),
        ("pictures", "returned"),
    ],
)
def test_what_a_generator_must_not_return(images: object, problem: str) -> None:
    with pytest.raises(InputError, match=f"^generator: .*{problem}"):
        check_generated("mine", images, 4, SHAPE)


def test_one_broken_image_among_good_ones_is_found() -> None:
    images = torch.rand(4, *SHAPE)
    images[2, 0, 3, 3] = float("inf")
    with pytest.raises(InputError, match="in 1 of 4 images, first in image 2"):
        check_generated("mine", images, 4, SHAPE)


def test_a_function_that_fails_is_one_line(own: ModuleType) -> None:
    def broken(count: int, seed: int) -> None:
        raise RuntimeError("out\nof ideas")

    own.broken, own.number = broken, 3  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"failed \(RuntimeError: out of ideas\)"):
        load_generator("own_generator:broken", SHAPE)(2, 0)
    with pytest.raises(InputError, match="is a int"):
        load_generator("own_generator:number", SHAPE)
    with pytest.raises(InputError, match="no folder 'nowhere'"):
        load_generator("nowhere", SHAPE)


def test_a_folder_is_dealt_out_in_order_and_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for place, name in enumerate(("a.png", "deep/b.png")):
        Image.fromarray(np.full((16, 16, 3), 100 * place, np.uint8)).save(tmp_path / name)
    deal = load_generator(str(tmp_path), SHAPE)
    assert deal(2, 0).flatten(1).float().mean(dim=1).tolist() == [0, 100]
    with pytest.raises(InputError, match="gave 2 images of 3"):
        deal(3, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        load_generator(str(tmp_path / "empty"), SHAPE)
