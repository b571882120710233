"""The classifier on the largest probabilities: what it learns from, and what it must not see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastmem.attacks import TopK
from fastmem.errors import InputError
from fastmem.metrics import roc
from fastmem.signals import Signals

Tables = tuple[Signals, Signals]


@pytest.fixture(scope="module")
def pool(make_tables: Callable[..., Tables]) -> Signals:
    table = make_tables(6, 200, effect=4.0, queries=2)[0]
    return Signals(table.labels, table.keep, stats={"top3": table.stat("top3")})


def test_it_learns_from_one_other_model(pool: Signals) -> None:
    result = TopK().run(pool)
    assert result.details["shadows"] == [1, 0, 0, 0, 0, 0]
    assert ((result.scores > 0) & (result.scores < 1)).all()
    for scores, members in zip(result.scores, pool.keep, strict=True):
        assert roc(scores, members).auc > 0.6


def test_it_never_looks_at_the_targets_membership(pool: Signals) -> None:
    keep = pool.keep.copy()
    keep[[2, 3]] = ~keep[[3, 2]]
    assert np.array_equal(TopK()(pool.with_keep(keep), [2, 3]), TopK()(pool, [2, 3]))


def test_it_never_learns_from_the_complement(pool: Signals) -> None:
    keep = pool.keep.copy()
    keep[1::2] = ~keep[::2]
    assert TopK().run(pool.with_keep(keep)).details["shadows"] == [2, 2, 0, 0, 0, 0]
    with pytest.raises(InputError, match="2 models: none is left to learn from beside target 0 and its complement"):
        TopK()(pool.with_keep(keep).select_models([0, 1]))


def test_records_that_are_learnt_by_heart_do_not_count() -> None:
    """Every record has an answer of its own, the same in every model: by heart the shadow's mask would come back."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.4, 1.0, size=200)
    top3 = np.stack([p, (1 - p) * 0.7, (1 - p) * 0.3], axis=-1)[None, :, None].repeat(3, axis=0)
    keep = rng.random((3, 200)) < 0.5
    signals = Signals(np.zeros(200, dtype=int), keep, stats={"top3": top3})
    assert abs(roc(TopK()(signals, [2])[0], keep[0]).auc - 0.5) < 0.15


def test_a_seed_gives_the_same_bits(pool: Signals) -> None:
    assert np.array_equal(TopK()(pool, [4]), TopK()(pool, [4]))
    assert not np.array_equal(TopK(seed=1)(pool, [4]), TopK()(pool, [4]))


def test_fewer_probabilities(pool: Signals) -> None:
    assert TopK(1).key == "top1"
    without_rest = pool.stat("top3").copy()
    without_rest[..., 1:] = 0.0
    reduced = Signals(pool.labels, pool.keep, stats={"top3": without_rest})
    assert np.array_equal(TopK(1)(pool, [4]), TopK(1)(reduced, [4]))


def test_doors(pool: Signals) -> None:
    with pytest.raises(InputError, match="k: got 4; accepted: 1, 2, 3"):
        TopK(4)
    keep = pool.keep.copy()
    keep[0] = True
    with pytest.raises(InputError, match="shadow model 0 has 100 members among the 100 records of a half"):
        TopK()(pool.with_keep(keep), [1])
