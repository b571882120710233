"""Membership designs have the margins they promise, and splits do not overlap."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmem.data import Dataset, load_dataset, make_design, split_records
from fastmem.data.designs import DESIGNS, bernoulli_design, paired_design, rank_design
from fastmem.errors import InputError, UnknownNameError

HALVES = st.integers(1, 12)
SAMPLES = st.integers(2, 60)
SEEDS = st.integers(0, 2**40)


def columns_exact(keep: np.ndarray) -> bool:
    return bool((keep.sum(axis=0) == len(keep) // 2).all())


def rows_exact(keep: np.ndarray) -> bool:
    return bool((np.abs(2 * keep.sum(axis=1) - keep.shape[1]) <= keep.shape[1] % 2).all())


@settings(deadline=None, derandomize=True)
@given(HALVES, SAMPLES, SEEDS)
def test_rank_has_each_record_in_half_of_the_models(half: int, samples: int, seed: int) -> None:
    keep = rank_design(2 * half, samples, seed)
    assert keep.shape == (2 * half, samples)
    assert keep.dtype == bool
    assert columns_exact(keep)


@settings(deadline=None, derandomize=True)
@given(HALVES, SAMPLES, SEEDS)
def test_paired_has_both_margins_exact_and_complements(half: int, samples: int, seed: int) -> None:
    keep = paired_design(2 * half, samples, seed)
    assert columns_exact(keep)
    assert rows_exact(keep)
    assert (keep[0::2] ^ keep[1::2]).all()


def test_the_checks_above_catch_an_independent_design() -> None:
    keep = bernoulli_design(16, 51, 0)
    assert not columns_exact(keep)
    assert not rows_exact(keep)
    assert not rows_exact(rank_design(16, 51, 0))


def test_rank_takes_every_half_equally_often() -> None:
    keep = rank_design(4, 6000, 7)
    counts = Counter(map(bytes, keep.T))
    assert len(counts) == 6
    # chi-square with 5 degrees of freedom exceeds 20.5 in one of 1,000
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5


def test_rank_rows_vary_like_fair_coins() -> None:
    sizes = rank_design(200, 1000, 3).sum(axis=1)
    assert abs(sizes.mean() - 500) < 1e-9
    # variance 1000 / 4; its estimate from 200 rows scatters by a tenth
    assert 0.6 < sizes.var() / 250 < 1.5


def test_bernoulli_is_independent_and_fair() -> None:
    keep = bernoulli_design(400, 500, 5)
    assert abs(keep.mean() - 0.5) < 4 * 0.5 / np.sqrt(keep.size)
    assert 0.8 < keep.sum(axis=0).var() / 100 < 1.25
    assert bernoulli_design(3, 5, 0).shape == (3, 5)


@pytest.mark.parametrize("kind", DESIGNS)
def test_the_seed_decides(kind: str) -> None:
    first, again, other = (make_design(kind, 8, 33, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", ["rank", "paired"])
@pytest.mark.parametrize(
    ("models", "samples", "seed", "message"),
    [
        (7, 10, 0, "num_models: 7; give an even number"),
        (0, 10, 0, "num_models: 0"),
        (4, 1, 0, "num_samples: 1"),
        (4, 10, -1, "seed: -1"),
    ],
)
def test_refuses(kind: str, models: int, samples: int, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_design(kind, models, samples, seed)


def test_an_unknown_design() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'paired'"):
        make_design("pair", 4, 10, 0)


def numbered(train: int, test: int = 0) -> Dataset:
    """Record i has the feature i."""

    def part(first: int, count: int, held_out: Dataset | None = None) -> Dataset:
        x = torch.arange(first, first + count, dtype=torch.float32)[:, None]
        return Dataset("numbered", x, torch.arange(count) % 2, 2, held_out)

    return part(0, train, part(train, test) if test else None)


def test_digits_split_as_documented() -> None:
    split = split_records(load_dataset("digits"))
    assert split.population is not None
    assert split.bystanders is not None
    assert (len(split.pool), len(split.bystanders), len(split.population)) == (1000, 500, 297)


@settings(deadline=None, derandomize=True)
@given(st.data(), st.integers(8, 300), st.integers(0, 100), SEEDS)
def test_parts_are_disjoint_and_are_what_the_indices_say(data: st.DataObject, train: int, test: int, seed: int) -> None:
    pool = data.draw(st.integers(2, train))
    population = data.draw(st.integers(0, train + test - pool))
    bystanders = data.draw(st.integers(0, train + test - pool - population))
    split = split_records(numbered(train, test), pool, population, bystanders, seed)
    indices = [split.pool_index, split.population_index, split.bystander_index]
    together = np.concatenate(indices)
    assert [len(index) for index in indices] == [pool, population, bystanders]
    assert len(set(together.tolist())) == len(together)
    assert split.pool_index.max() < train
    for part, index in zip([split.pool, split.population, split.bystanders], indices, strict=True):
        if part is None:
            assert len(index) == 0
        else:
            # the training split's records come first; numbered() makes a record's value its index
            assert sorted(part.x[:, 0].int().tolist()) == sorted(index.tolist())


@settings(deadline=None, derandomize=True)
@given(st.integers(8, 20_000), st.integers(0, 3_000))
def test_sizes_left_out_always_fit(train: int, test: int) -> None:
    split = split_records(numbered(train, test))
    assert split.population is not None
    assert split.bystanders is not None
    assert len(split.pool) >= 2
    assert len(split.population) <= len(split.pool)
    assert len(split.bystanders) <= len(split.pool) // 2


def test_a_record_keeps_its_place_in_the_index() -> None:
    split = split_records(numbered(10, 10), 6, 5, 6, seed=3)
    for part, index in ((split.pool, split.pool_index), (split.bystanders, split.bystander_index)):
        assert part is not None
        assert part.x[:, 0].int().tolist() == index.tolist()


def test_the_test_split_serves_only_when_the_training_split_is_used_up() -> None:
    roomy = split_records(numbered(30, 30), 10, 10, 10)
    assert max(roomy.population_index.max(), roomy.bystander_index.max()) < 30
    tight = split_records(numbered(30, 30), 28, 10, 10)
    assert tight.population_index.min() >= 30


def test_the_split_seed_decides() -> None:
    first, again, other = (split_records(numbered(50), 20, 5, 5, seed).pool_index for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"pool": 31}, "pool: 31 records; numbered has 30 training records"),
        ({"pool": 1}, "pool: 1; give at least 2"),
        ({"population": -1}, "population: -1"),
        (
            {"pool": 20, "population": 8, "bystanders": 8},
            r"8 \+ 8 records beside a pool of 20; numbered has 35 records",
        ),
        ({"population": 40}, "pool"),
        ({"seed": -1}, "seed"),
    ],
)
def test_refuses_sizes_that_do_not_fit(sizes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_records(numbered(30, 5), **sizes)
