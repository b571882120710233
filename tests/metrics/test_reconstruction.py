"""Matching of reconstructed and training images, on cases solved on paper."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fastmem.errors import InputError
from fastmem.metrics.reconstruction import (
    correlations,
    greedy_matching,
    image_ssim,
    membership_permutation,
    ncc,
    paired_sign_flips,
)


def test_correlations_are_numpy_s() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3, 5, 5)), rng.normal(size=(6, 3, 5, 5))
    expected = np.corrcoef(a.reshape(4, -1), b.reshape(6, -1))[:4, 4:]
    np.testing.assert_allclose(correlations(a, b), expected, atol=1e-12)
    by_channel = [np.corrcoef(a[:, c].reshape(4, -1), b[:, c].reshape(6, -1))[:4, 4:] for c in range(3)]
    np.testing.assert_allclose(ncc(a, b), np.mean(by_channel, axis=0), atol=1e-12)


def test_brightness_and_contrast_do_not_matter_and_a_constant_resembles_nothing() -> None:
    x = torch.rand(2, 1, 4, 4)
    assert np.diag(correlations(x, 3 * x + 7)) == pytest.approx([1, 1])
    assert correlations(x, torch.full((1, 1, 4, 4), 0.3)).tolist() == [[0.0], [0.0]]
    assert correlations(x, -x)[0, 0] == pytest.approx(-1)


def test_a_candidate_that_resembles_two_images_counts_once() -> None:
    similarity = np.array([[0.9, 0.1, 0.2], [0.95, 0.85, 0.3], [0.7, 0.6, 0.5]])
    found = greedy_matching(similarity)
    # (1, 0) at 0.95 first; of the rest (2, 1) at 0.6 goes before (0, 2) at 0.2
    assert found.candidate.tolist() == [2, 0, 1]
    assert found.similarity.tolist() == [0.2, 0.95, 0.6]
    assert found.count(0.5) == 2
    assert found.mean == pytest.approx((0.2 + 0.95 + 0.6) / 3)


def test_images_without_a_candidate() -> None:
    found = greedy_matching(np.array([[0.3], [0.8]]))
    assert found.candidate.tolist() == [-1, 0]
    assert math.isnan(found.similarity[0])
    assert found.count(-1) == 1


def test_ssim_of_an_image_with_itself_and_of_stretched_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 8, 8, generator=generator)
    assert image_ssim(x, x) == pytest.approx([1, 1, 1], abs=1e-6)
    # One pixel far beyond the range: clamping forgives it, stretching darkens all the rest.
    spoilt = x.clone()
    spoilt[:, :, 0, 0] = 9.0
    assert image_ssim(x, spoilt).mean() > 0.85
    assert image_ssim(x, spoilt, "minmax").mean() < 0.4
    with pytest.raises(InputError, match="clamp or minmax"):
        image_ssim(x, x, "best")


def test_ssim_by_hand() -> None:
    # A window in the middle of constant images has no variance: SSIM is the luminance term alone.
    a, b = torch.full((1, 1, 9, 9), 0.5), torch.full((1, 1, 9, 9), 0.25)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert image_ssim(a, b)[0] == pytest.approx(expected, rel=1e-5)


def test_exchange_of_training_and_held_out_images() -> None:
    train, held_out = np.array([0.9, 0.8]), np.array([0.1, 0.2, 0.3])
    # 1 of the 10 pairs is as extreme as the one observed.
    assert membership_permutation(train, held_out, 20_000, 0) == pytest.approx(0.1, abs=0.01)
    rng = np.random.default_rng(0)
    null = [membership_permutation(rng.normal(size=5), rng.normal(size=20), 199, seed) for seed in range(300)]
    assert np.mean(np.array(null) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_sign_flips_are_all_of_them_where_there_are_few() -> None:
    attack, control = np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.2, 0.65])
    difference = attack - control
    flips = [np.dot(signs, difference) for signs in itertools.product((-1, 1), repeat=3)]
    expected = np.mean([flip >= difference.sum() - 1e-9 for flip in flips])
    assert paired_sign_flips(attack, control, 9999, 0) == pytest.approx(expected)
    assert paired_sign_flips(control, attack, 9999, 0) == pytest.approx(1.0)
