"""Calibration errors against a loop over bins and against cases solved on paper."""

from __future__ import annotations

import numpy as np
import pytest

from fastmem.errors import InputError
from fastmem.metrics import expected_calibration_error, overconfidence_error, reliability


def by_loop(p: np.ndarray, y: np.ndarray, bins: int) -> tuple[float, float]:
    ece = oe = 0.0
    for place in range(bins):
        low, high = place / bins, (place + 1) / bins
        inside = [n for n in range(len(p)) if low < p[n].max() <= high]
        if inside:
            accuracy = np.mean([p[n].argmax() == y[n] for n in inside])
            confidence = np.mean([p[n].max() for n in inside])
            ece += len(inside) / len(p) * abs(accuracy - confidence)
            oe += len(inside) / len(p) * confidence * max(confidence - accuracy, 0)
    return ece, oe


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_against_a_loop(bins: int) -> None:
    rng = np.random.default_rng(bins)
    p = rng.dirichlet(np.full(5, 0.3), size=400)
    y = rng.integers(0, 5, 400)
    assert (expected_calibration_error(p, y, bins), overconfidence_error(p, y, bins)) == pytest.approx(
        by_loop(p, y, bins), rel=1e-12
    )


def test_on_paper() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    y = np.array([0, 1, 1, 1])
    assert expected_calibration_error(p, y, 10) == pytest.approx((0.4 + 0.4) / 2)
    assert overconfidence_error(p, y, 10) == pytest.approx(0.9 * 0.4 / 2)


def test_the_upper_edge_belongs_to_a_bin() -> None:
    p = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert reliability(p, [0, 0], 2).count.tolist() == [1, 1]


def test_a_calibrated_model_has_no_error() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 200_000)
    y = (rng.uniform(size=len(sure)) > sure).astype(int)
    p = np.stack([sure, 1 - sure], axis=1)
    assert expected_calibration_error(p, y) < 0.005
    assert expected_calibration_error(np.stack([np.full(100, 1.0), np.zeros(100)], 1), np.ones(100, int)) == 1.0


@pytest.mark.parametrize(
    ("p", "y", "problem"),
    [
        (np.zeros((0, 2)), [], "shape"),
        ([[0.5, np.nan]], [0], "NaN"),
        ([[2.0, 3.0]], [0], "from_logits=True"),
        ([[0.5, 0.5]], [2], "labels"),
        ([[0.5, 0.5]], [0, 1], "labels"),
    ],
)
def test_doors(p: object, y: object, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        expected_calibration_error(p, y)
