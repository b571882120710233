"""Attack-R against interpolation between sorted losses, record by record."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import fastmem.attacks.membership.panel as panel_module
from fastmem.attacks import AttackR
from fastmem.errors import InputError
from fastmem.ops.leave_one_out import leave_one_out, reference_masks
from fastmem.signals import Signals

Tables = tuple[Signals, Signals]


def by_interpolation(attack: AttackR, pool: Signals) -> np.ndarray:
    loss, keep = np.minimum(pool.stat("loss"), attack.ceiling), torch.from_numpy(pool.keep)
    scores = np.empty(pool.keep.shape)
    for target, partner, rule in zip(
        *(part.tolist() for part in leave_one_out(keep, None, attack.counts)), strict=True
    ):
        out = reference_masks(keep, target, partner, rule)[1].numpy()
        for n in range(pool.num_samples):
            quantiles = []
            for a in range(pool.num_queries):
                points = np.concatenate([[0.0], np.sort(loss[out[:, n], n, a]), [attack.ceiling]])
                quantiles.append(np.interp(loss[target, n, a], points, np.linspace(0, 1, len(points))))
            scores[target, n] = 1 - np.mean(quantiles)
    return scores


def masks(design: str) -> np.ndarray:
    uniform = np.random.default_rng(0).random((9, 30))
    keep = uniform < 0.5
    if design == "exact":
        keep = uniform.argsort(axis=0) < 4
    if design == "paired":
        keep = np.concatenate([keep[:5], ~keep[:5]])
    if design == "outside target":
        keep[:8] = uniform[:8].argsort(axis=0) < 4
    inside = keep.sum(axis=0)
    return keep[:, (inside > 2) & (inside < len(keep) - 2)]


@pytest.mark.parametrize("attack", [AttackR(), AttackR(counts="all"), AttackR(ceiling=2.0)])
@pytest.mark.parametrize("digits", [0, 12])
@pytest.mark.parametrize("design", ["exact", "paired", "coins", "outside target"])
def test_interpolated_rank(make_tables: Callable[..., Tables], design: str, digits: int, attack: AttackR) -> None:
    keep = masks(design)
    pool, _ = make_tables(*keep.shape, queries=2, keep=keep)
    if not digits:  # losses that tie
        pool = Signals(pool.labels, keep, stats={"loss": np.round(pool.stat("loss"))})
    np.testing.assert_allclose(attack(pool), by_interpolation(attack, pool), rtol=0, atol=1e-13)


def test_blocks_of_records(make_tables: Callable[..., Tables], monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make_tables(8, 30, queries=2)
    whole = AttackR()(pool)
    monkeypatch.setattr(panel_module, "_BLOCK_ELEMENTS", 8 * 2 * 7)
    assert np.array_equal(AttackR()(pool), whole)


@pytest.mark.parametrize(
    ("loss", "score"), [(0.0, 1.0), (0.5, 5 / 6), (1.0, 2 / 3), (3.0, 1 / 3), (6.5, 1 / 6), (10.0, 0.0), (99.0, 0.0)]
)
def test_solved_by_hand(loss: float, score: float) -> None:
    """OUT losses 1 and 3, ceiling 10: quantiles 0, 1/3, 2/3 and 1 at 0, 1, 3 and 10."""
    keep = np.array([[False], [False], [True]])
    pool = Signals([0], keep, stats={"loss": np.array([[[1.0]], [[3.0]], [[loss]]])})
    assert AttackR(ceiling=10.0)(pool, [2])[0, 0] == pytest.approx(score)


def test_losses_beyond_the_ceiling_are_all_the_same() -> None:
    keep = np.array([[False], [False], [True]])
    pool = Signals([0], keep, stats={"loss": np.array([[[1.0]], [[50.0]], [[60.0]]])})
    assert AttackR(ceiling=10.0)(pool, [2])[0, 0] == 0.0
    assert 0.0 < AttackR()(pool, [2])[0, 0] < 1 / 3


def test_doors(make_tables: Callable[..., Tables]) -> None:
    with pytest.raises(InputError, match="ceiling: got 0"):
        AttackR(ceiling=0)
    with pytest.raises(InputError, match="reference needs 1 OUT; train more models"):
        AttackR()(make_tables(2, 20)[0])
