"""Made-up answers of models, with and without an effect of training on a record."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastmem.signals import Signals

Tables = tuple[Signals, Signals]


def exact_half(num_models: int, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    return rng.random((num_models, num_samples)).argsort(axis=0) < num_models // 2


def answers(
    keep: np.ndarray, effect: float, rng: np.random.Generator, queries: int = 1, classes: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits: records differ in hardness, models in how sure they are, and members gain ``effect``."""
    num_models, num_samples = keep.shape
    labels = rng.integers(0, classes, num_samples)
    logits = rng.normal(size=(num_models, num_samples, queries, classes))
    true = 2.0 + rng.normal(0, 2.0, num_samples) + rng.normal(0, 0.5, (num_models, 1)) + effect * keep
    logits += np.eye(classes)[labels][None, :, None, :] * true[:, :, None, None]
    return labels, logits


@pytest.fixture(scope="session")
def make_tables() -> Callable[..., Tables]:
    """Signals of a pool in an exact half, and of a population that nobody trained on."""

    def make(
        num_models: int,
        num_samples: int,
        *,
        effect: float = 0.0,
        population: int = 200,
        queries: int = 1,
        seed: int = 0,
        keep: np.ndarray | None = None,
    ) -> Tables:
        rng = np.random.default_rng(seed)
        keep = exact_half(num_models, num_samples, rng) if keep is None else keep
        nobody = np.zeros((num_models, population), dtype=bool)
        pool, outside = (
            Signals(labels, mask, logits=logits)
            for mask in (keep, nobody)
            for labels, logits in [answers(mask, effect, rng, queries)]
        )
        return pool, outside

    return make
