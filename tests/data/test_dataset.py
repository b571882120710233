"""Checks at the door, the fingerprint and the normalisation statistics of a data set."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmem.data import Dataset, load_dataset
from fastmem.errors import InputError


def images(count: int = 6, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 2, 4, 3), dtype=torch.uint8, generator=generator)


def labels(count: int = 6) -> torch.Tensor:
    return torch.arange(count) % 3


def test_knows_its_shape_and_kind() -> None:
    pictures = Dataset("p", images(), labels(), 3)
    assert (len(pictures), pictures.input_shape, pictures.is_image) == (6, (2, 4, 3), True)
    features = Dataset("f", torch.zeros(4, 7), labels(4), 3)
    assert (len(features), features.input_shape, features.is_image) == (4, (7,), False)


X, Y = images(), labels()
BAD = {
    "float images": ((X.float(), Y, 3), "float32"),
    "three dimensions": ((X[:, 0], Y, 3), r"\[6, 4, 3\]"),
    "double features": ((torch.zeros(6, 2, dtype=torch.float64), Y, 3), "float64"),
    "no records": ((X[:0], Y[:0], 3), "no values"),
    "no pixels": ((X[:, :, :0], Y, 3), "no values"),
    "not a tensor": ((X.numpy(), Y, 3), "ndarray"),
    "too few labels": ((X, Y[:5], 3), "5 labels for 6"),
    "float labels": ((X, Y.float(), 3), "float32"),
    "labels of two dimensions": ((X, Y[:, None], 3), r"\[6, 1\]"),
    "label above the range": ((X, Y, 2), "2 labels of d out of range, first 2 at record 2"),
    "negative label": ((X, Y - 1, 3), "first -1 at record 0"),
    "one class": ((X, Y * 0, 1), "at least 2 classes"),
    "class names": ((X, Y, 3, None, ("a", "b")), "2 names for 3"),
    "test split of another shape": ((X, Y, 3, Dataset("t", X[:, :1], Y, 3)), "test split"),
    "test split of other classes": ((X, Y, 3, Dataset("t", X, Y, 4)), "test split"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset("d", *arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_counts_and_places_values_that_are_not_finite(value: float) -> None:
    x = torch.zeros(6, 2)
    x[3, 1] = x[5, 0] = value
    with pytest.raises(InputError, match=r"2 of 6 records .* first record 3"):
        Dataset("d", x, labels(), 3)


def test_fingerprint_is_that_of_its_definition() -> None:
    expected = hashlib.sha256(
        b"fastmem.Dataset/1classes 3"
        + b"||u1 (6, 2, 4, 3)|"
        + X.numpy().tobytes()
        + b"|<i8 (6,)|"
        + Y.numpy().astype("<i8").tobytes()
    )
    assert Dataset("d", X, Y, 3).fingerprint() == expected.hexdigest()


def test_fingerprint_changes_with_all_that_decides_a_result() -> None:
    pixel, label = X.clone(), Y.clone()
    pixel[5, 1, 3, 2] ^= 1
    label[0] = 2
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    sets = [
        Dataset("d", X, Y, 3),
        Dataset("d", pixel, Y, 3),
        Dataset("d", X, label, 3),
        Dataset("d", X[order], Y[order], 3),
        Dataset("d", X[:5], Y[:5], 3),
        Dataset("d", X.reshape(6, 1, 4, 6), Y, 3),
        Dataset("d", X, Y, 4),
        Dataset("d", X.flatten(1).float(), Y, 3),
    ]
    assert len({data.fingerprint() for data in sets}) == len(sets)


def test_fingerprint_ignores_the_name_the_test_split_and_the_memory_layout() -> None:
    plain = Dataset("d", X, Y, 3).fingerprint()
    assert Dataset("other", X, Y, 3, test=Dataset("t", X, Y, 3)).fingerprint() == plain
    strided = X.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not strided.is_contiguous()
    assert Dataset("d", strided, Y, 3).fingerprint() == plain


def test_channel_stats_are_those_of_the_pixels() -> None:
    mean, std = Dataset("d", X, Y, 3).channel_stats()
    pixels = X.numpy().astype(np.float64) / 255
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), rtol=1e-6)


def test_channel_stats_of_features_standardise_each_and_survive_a_large_mean() -> None:
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0, 0.1]) + 1000
    mean, std = Dataset("d", x, labels(500), 3).channel_stats()
    np.testing.assert_allclose(mean, x.numpy().astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, x.numpy().astype(np.float64).std(axis=0), rtol=1e-5)


def test_what_is_constant_is_divided_by_one() -> None:
    x = X.clone()
    x[:, 0] = 77
    assert Dataset("d", x, Y, 3).channel_stats()[1][0] == 1
    features = torch.full((6, 2), 0.1)
    features[:, 1] = torch.arange(6)
    assert Dataset("d", features, Y, 3).channel_stats()[1][0] == 1


def test_channel_stats_are_the_published_ones(shared_data: Path) -> None:
    mean, std = load_dataset("fashion-mnist", str(shared_data)).channel_stats()
    assert round(float(mean), 4) == 0.2860
    assert round(float(std), 4) == 0.3530


def test_subset_takes_records_in_the_order_asked_for() -> None:
    data = Dataset("d", X, Y, 3, class_names=("a", "b", "c"))
    part = data.subset([4, 0])
    assert torch.equal(part.x, X[[4, 0]])
    assert torch.equal(part.y, Y[[4, 0]])
    assert part.class_names == data.class_names
    assert torch.equal(data.subset(np.array([4, 0])).x, part.x)


@pytest.mark.parametrize("indices", [[], [6], [-1], [[0, 1]]])
def test_subset_refuses_records_that_do_not_exist(indices: list) -> None:
    with pytest.raises(InputError, match="indices"):
        Dataset("d", X, Y, 3).subset(indices)
