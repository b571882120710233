"""False members drawn until there are enough: the count, the end of the stream, and the interval's coverage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastmem.attacks import draw_false_members
from fastmem.errors import InputError


def generate(count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, 1, 1, 1), dtype=np.uint8))


def below(limit: int) -> Callable[[torch.Tensor], np.ndarray]:
    return lambda images: images.flatten().numpy() < limit


def test_it_stops_with_the_last_false_member() -> None:
    found = draw_false_members(generate, below(64), 500, seed=3)
    drawn = np.concatenate([generate(512, 3 + batch).flatten().numpy() for batch in range(6)])
    assert found.found == 500
    assert found.drawn == np.flatnonzero(drawn < 64)[499] + 1
    assert found.rate == pytest.approx(0.25, abs=0.03)
    assert found.low < 0.25 < found.high
    assert found.images.shape == (24, 1, 1, 1)
    assert (found.images < 64).all()


def test_a_rate_of_zero_ends_at_the_limit() -> None:
    found = draw_false_members(generate, below(0), 10, limit=1000)
    assert (found.found, found.drawn, found.low) == (0, 1000, 0.0)
    assert 0 < found.high < 0.01
    assert len(found.images) == 0


def test_all_accused() -> None:
    found = draw_false_members(generate, below(256), 100)
    assert (found.drawn, found.rate, found.high) == (100, 1.0, 1.0)
    assert found.low > 0.95


def test_the_interval_covers_the_rate_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(300):
        one = draw_false_members(generate, below(77), 20, seed=10_000 * seed)
        hits += one.low <= 77 / 256 <= one.high
    assert 0.93 <= hits / 300 <= 1.0


def test_doors() -> None:
    with pytest.raises(InputError, match="false_members: 0"):
        draw_false_members(generate, below(3), 0)
