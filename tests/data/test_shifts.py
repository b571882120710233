"""Shifted records against loops written out, and images of another source against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmem.data.shifts import (
    gaussian_noise,
    network_inputs,
    permute_pixels,
    photographs,
    shifted_inputs,
)
from fastmem.errors import UnknownNameError

MEAN, STD = torch.tensor([0.2, 0.5, 0.1]), torch.tensor([0.3, 0.25, 0.5])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_two_preprocessing_errors(images: torch.Tensor) -> None:
    pixel = images[1, 2, 3, 4].item() / 255
    right = (pixel - 0.1) / 0.5
    inputs = {
        view: network_inputs(images, view, MEAN, STD)[1, 2, 3, 4].item() for view in ("normalised", "scaled", "raw")
    }
    assert inputs == pytest.approx({"normalised": right, "scaled": 255 * right, "raw": pixel}, rel=1e-5)
    with pytest.raises(UnknownNameError, match="did you mean 'scaled'"):
        network_inputs(images, "scale", MEAN, STD)


def test_each_image_has_a_permutation_of_its_own_that_channels_share(images: torch.Tensor) -> None:
    same = images[:1].expand(5, -1, -1, -1).clone()
    permuted = permute_pixels(same, 3)
    for image in permuted:
        pixels = {tuple(column) for column in image.flatten(1).T.tolist()}
        assert pixels == {tuple(column) for column in same[0].flatten(1).T.tolist()}
    assert len({image.numpy().tobytes() for image in permuted}) == 5
    assert torch.equal(permuted, permute_pixels(same, 3))
    assert not torch.equal(permuted, permute_pixels(same, 4))


def test_features_are_permuted_too() -> None:
    features = torch.arange(20.0).reshape(2, 10)
    permuted = permute_pixels(features, 0)
    assert torch.equal(permuted.sort(dim=1).values, features)
    assert not torch.equal(permuted, features)


def test_shifts_by_the_names_of_the_paper(images: torch.Tensor) -> None:
    expected = network_inputs(permute_pixels(images, 7), "normalised", MEAN, STD)
    assert torch.equal(shifted_inputs(images, "permute", MEAN, STD, seed=7), expected)
    assert torch.equal(shifted_inputs(images, "scale", MEAN, STD), network_inputs(images, "scaled", MEAN, STD))
    with pytest.raises(UnknownNameError, match="kind"):
        shifted_inputs(images, "blur", MEAN, STD)


def test_noise_has_the_moments_of_the_data() -> None:
    like = torch.zeros(1, 2, 16, 16, dtype=torch.uint8)
    noise = gaussian_noise(200, like, torch.tensor([0.5, 0.4]), torch.tensor([0.1, 0.05]), 0)
    assert noise.shape == (200, 2, 16, 16)
    assert noise.float().mean(dim=(0, 2, 3)) / 255 == pytest.approx(torch.tensor([0.5, 0.4]), abs=0.003)
    assert noise.float().std(dim=(0, 2, 3)) / 255 == pytest.approx(torch.tensor([0.1, 0.05]), abs=0.003)


def test_photographs_are_pictures_not_noise() -> None:
    crops = photographs(20, (3, 16, 16), 0).float()
    assert crops.shape == (20, 3, 16, 16)
    neighbours = (crops[..., 1:] - crops[..., :-1]).abs().mean()
    shuffled = crops.flatten()[torch.randperm(crops.numel(), generator=torch.Generator().manual_seed(0))]
    assert neighbours < (shuffled[1:] - shuffled[:-1]).abs().mean() / 2
    assert np.array_equal(photographs(3, (1, 8, 8), 1), photographs(3, (1, 8, 8), 1))
