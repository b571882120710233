"""Attack-P by counting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastmem.attacks import Population
from fastmem.signals import Signals

Tables = tuple[Signals, Signals]


def test_share_of_the_population_with_a_larger_loss(make_tables: Callable[..., Tables]) -> None:
    pool, population = make_tables(3, 25, population=17, queries=2, keep=np.random.default_rng(0).random((3, 25)) < 0.5)
    x, z = pool.stat("loss"), population.stat("loss")
    expected = (z[:, None] > x[:, :, None]).mean(axis=2).mean(axis=2)
    np.testing.assert_allclose(Population()(pool, None, population), expected, rtol=0, atol=1e-15)


def test_ties_are_no_wins() -> None:
    keep = np.array([[True, False, True]])
    pool = Signals([0, 0, 0], keep, stats={"margin": np.array([[[0.0], [1.0], [2.0]]])})
    population = Signals([0, 0], np.zeros((1, 2), dtype=bool), stats={"margin": np.array([[[0.0], [1.0]]])})
    assert Population()(pool, None, population).tolist() == [[0.0, 0.5, 1.0]]
