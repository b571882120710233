"""Images to score on: of the model's shape, drawn once, in distribution and out of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmem.data import Dataset, evaluation_images, fit_images
from fastmem.errors import InputError


def dataset(depth: int = 1) -> Dataset:
    x = torch.randint(0, 256, (30, depth, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return Dataset("some", x, torch.arange(30) % 3, 3)


def test_held_out_records_are_drawn_without_repetition() -> None:
    found = evaluation_images("held-out", dataset(), 20, seed=1)
    assert len(set(found.index.tolist())) == 20
    assert torch.equal(found.x, dataset().x[found.index])
    assert len(evaluation_images("held-out", dataset(), 100).x) == 30


def test_permuted_pixels_keep_the_histogram_and_the_colours_together() -> None:
    found = evaluation_images("permuted", dataset(3), 10)
    original = dataset(3).x[found.index]
    assert not torch.equal(found.x, original)
    for shuffled, plain in zip(found.x.flatten(2), original.flatten(2), strict=True):
        ours, theirs = (sorted(map(tuple, each.T.tolist())) for each in (shuffled, plain))
        assert ours == theirs


def test_noise_is_uniform_and_seeded() -> None:
    found = evaluation_images("noise", dataset(), 300, seed=2)
    assert torch.equal(found.x, evaluation_images("noise", dataset(), 300, seed=2).x)
    assert float(found.x.float().mean()) == pytest.approx(127.5, abs=2)


def test_another_data_set_is_made_grey_and_resized(tmp_path) -> None:
    colour = np.zeros((4, 3, 16, 16), dtype=np.uint8)
    colour[:, 0] = 200  # red
    np.savez(tmp_path / "red.npz", x=colour, y=np.arange(4) % 2)
    found = evaluation_images(str(tmp_path / "red.npz"), dataset(), 4)
    assert found.x.shape == (4, 1, 8, 8)
    assert (found.x == 60).all()  # 0.299 of 200
    assert fit_images(dataset().x, (3, 8, 8)).shape == (30, 3, 8, 8)


def test_halving_averages() -> None:
    board = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    board[..., ::2] = 200
    small = fit_images(board, (1, 4, 4))
    assert small[..., 1:-1].float().mean() == pytest.approx(100, abs=15)


@pytest.mark.parametrize(("source", "count", "message"), [("nosuch", 5, "unknown name"), ("noise", 1, "at least 2")])
def test_refuses(source: str, count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluation_images(source, dataset(), count)
