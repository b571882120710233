"""Normalisation, queries and augmentation against pictures moved one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmem.data.transforms import Augmentation, Query, make_queries, normalise
from fastmem.errors import InputError, UnknownNameError

X = torch.randint(0, 256, (5, 3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def moved(picture: np.ndarray, flip: bool, down: int, right: int, reach: int = 2) -> np.ndarray:
    """One picture [C, H, W], padded by mirroring, mirrored if asked, and cut out elsewhere."""
    _, height, width = picture.shape
    if flip:
        picture = picture[:, :, ::-1]
    padded = np.pad(picture, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    return padded[:, reach - down : reach - down + height, reach - right : reach - right + width]


def test_normalise_is_its_formula() -> None:
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 1.0])
    out = normalise(X, mean, std)
    expected = (X.numpy() / 255 - mean.double().numpy()[:, None, None]) / std.double().numpy()[:, None, None]
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


def test_normalise_features_leaves_them_alone() -> None:
    x = torch.randn(4, 3)
    before = x.clone()
    out = normalise(x, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(
        out, (before.double() - torch.tensor([1.0, 2, 3])) / torch.tensor([1.0, 2, 4]), atol=1e-6
    )
    assert torch.equal(x, before)


@pytest.mark.parametrize(("kind", "count"), [("none", 1), ("flip", 2), ("shift", 9), ("flip+shift", 18)])
def test_queries_begin_with_the_clean_one_and_differ(kind: str, count: int) -> None:
    queries = make_queries(kind)
    assert len(queries) == count
    assert queries[0](X) is X
    assert queries[0].name == "clean"
    assert len({query.name for query in queries}) == count
    assert len({query(X).numpy().tobytes() for query in queries}) == count


def test_queries_move_pictures() -> None:
    for query in make_queries("flip+shift"):
        expected = [moved(picture, query.flip, query.down, query.right) for picture in X.numpy()]
        np.testing.assert_array_equal(query(X), np.stack(expected), err_msg=query.name)


def test_the_comparison_above_tells_directions_apart() -> None:
    shifted = Query(down=1)(X)
    assert np.array_equal(shifted[0], moved(X[0].numpy(), False, 1, 0))
    assert not np.array_equal(shifted[0], moved(X[0].numpy(), False, -1, 0))
    # the first row of a picture moved down is the mirrored second; the rest are the rows above
    assert torch.equal(shifted[0, :, 0], X[0, :, 1])
    assert torch.equal(shifted[0, :, 1:], X[0, :, :-1])


def test_queries_refuse_what_they_cannot_do() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'flip"):
        make_queries("flips")
    with pytest.raises(InputError, match=r"queries: 'shift' for samples of shape \[64\]"):
        make_queries("shift", (64,))
    with pytest.raises(InputError, match="at least 2 x 2"):
        make_queries("flip", (1, 1, 8))
    assert len(make_queries("none", (64,))) == 1


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(["flip", "crop", "flip+crop"]), st.integers(0, 1000))
def test_augmentation_moves_each_picture_by_its_own_choice(kind: str, seed: int) -> None:
    augment = Augmentation(kind, X.shape[1:])
    choices = augment.draw(len(X), torch.Generator().manual_seed(seed))
    assert choices is not None
    out = augment.apply(X, choices)
    expected = [
        moved(picture, bool(flip), int(down), int(right))
        for picture, (down, right, flip) in zip(X.numpy(), choices, strict=True)
    ]
    np.testing.assert_array_equal(out, np.stack(expected))


def test_augmentation_draws_evenly_within_an_eighth() -> None:
    augment = Augmentation("flip+crop", (3, 32, 16))
    choices = augment.draw(20_000, torch.Generator().manual_seed(0))
    assert choices is not None
    for column, values in zip(choices.T, (range(-4, 5), range(-2, 3), range(2)), strict=True):
        found, counts = column.unique(return_counts=True)
        assert found.tolist() == list(values)
        expected = 20_000 / len(values)
        # chi-square with at most 8 degrees of freedom exceeds 26.1 in one of 1,000
        assert float(((counts - expected) ** 2 / expected).sum()) < 26.1


def test_augmentation_that_does_nothing_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    augment = Augmentation("none", (64,))
    assert augment.draw(5, generator) is None
    assert torch.equal(generator.get_state(), before)
    assert augment.apply(X, None) is X


def test_augmentation_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UnknownNameError, match="augment"):
        Augmentation("rotate", (3, 8, 8))
    with pytest.raises(InputError, match=r"augment: 'crop' for samples of shape \[64\]"):
        Augmentation("crop", (64,))
