"""Batches: every record once an epoch, near-equal sizes, order and views decided by the seed."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmem.training import batches as module
from fastmem.training.batches import Batches
from fastmem.training.job import Job, batch_bounds, stream_seed
from fastmem.training.recipe import Recipe


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 5000), st.integers(1, 300))
def test_bounds_split_evenly_and_never_above_the_size(records: int, size: int) -> None:
    bounds = batch_bounds(records, size)
    sizes = [end - start for start, end in itertools.pairwise(bounds)]
    assert bounds[0] == 0
    assert bounds[-1] == records
    assert len(sizes) == -(-records // size)
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    if size >= 3 and records >= 2:
        assert min(sizes) >= 2, "batch normalisation needs two records"


def job(recipe: Recipe, seeds: tuple[int, ...] = (7,)) -> Job:
    x = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 4, 4).contiguous()
    x[:, :, 0, 0] = 200  # a corner, so that views differ
    return Job(
        build=lambda seed: torch.nn.Identity(),
        x=x,
        y=torch.arange(40) % 4,
        records=[torch.arange(0, 40, 2)] * len(seeds),
        recipe=recipe,
        seeds=seeds,
        normalisation=(torch.zeros(1), torch.full((1,), 1 / 255)),
        device=torch.device("cpu"),
        on_epoch=lambda *event: None,
    )


def values(batches: Batches) -> list[list[int]]:
    """Each batch as the value of a pixel of each record, which is the record's number."""
    return [x[:, 0, 2, 2].round().int().tolist() for x, _ in batches.epoch()]


def test_an_epoch_takes_each_of_the_models_records_once_in_a_new_order() -> None:
    batches = Batches(job(Recipe(batch_size=6)), 0)
    first, second = values(batches), values(batches)
    assert [len(batch) for batch in first] == [5, 5, 5, 5]
    for epoch in (first, second):
        assert sorted(itertools.chain(*epoch)) == list(range(0, 40, 2))
    assert first != second


def test_labels_stay_with_their_records() -> None:
    for x, y in Batches(job(Recipe(batch_size=6)), 0).epoch():
        assert (x[:, 0, 2, 2].round().long() % 4).tolist() == y.tolist()


def test_the_seed_decides_the_order() -> None:
    both = job(Recipe(batch_size=6), seeds=(7, 8))
    alone = job(Recipe(batch_size=6), seeds=(8,))
    assert values(Batches(both, 1)) == values(Batches(alone, 0))
    assert values(Batches(both, 0)) != values(Batches(both, 1))


def test_augmentation_does_not_disturb_the_order() -> None:
    plain, moved = Batches(job(Recipe()), 0), Batches(job(Recipe(augment="flip")), 0)
    assert values(plain) == values(moved)
    assert not torch.equal(next(plain.epoch())[0], next(moved.epoch())[0])


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_how_many_batches_share_a_gather_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(batch_size=3, augment="flip+crop")
    expected = list(Batches(job(recipe), 0).epoch())
    monkeypatch.setattr(module, "BLOCK_VALUES", block)
    found = list(Batches(job(recipe), 0).epoch())
    assert all(torch.equal(a, b) for pair in zip(expected, found, strict=True) for a, b in zip(*pair, strict=True))


def test_streams_of_a_seed_are_distinct() -> None:
    seeds = {stream_seed(seed, stream) for seed in range(50) for stream in ("order", "augment", "dropout")}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)
