"""Where there is nothing to find, every attack stays at chance, also with few models; and a leak would be seen.

Leaving the target out of an exact half leaves its members one IN model fewer than others. Here every model is a target
on answers that have nothing to do with membership, often enough that an AUC off by .02 is far outside the interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from fastmem.attacks import ATTACKS, Attack, make_attack
from fastmem.metrics import roc
from fastmem.signals import Signals

from .conftest import Tables, exact_half

#: Repetitions by number of models: the interval of the mean AUC is about +-.007.
REPETITIONS = {8: 10, 16: 5, 32: 3}
RECORDS = 2000
WITH_COUNTS = [key for key in ATTACKS if "counts" in make_attack(key).options]


def reduced(signals: Signals, attack_keys: list[str]) -> Signals:
    """The same with the statistics of all attacks worked out once."""
    names = {name for key in attack_keys for name in make_attack(key).required_stats}
    return Signals(signals.labels, signals.keep, stats={name: signals.stat(name) for name in sorted(names)})


def aucs(attack: Attack, tables: Tables) -> list[float]:
    pool, population = tables
    return [roc(scores, members).auc for scores, members in zip(attack(pool, None, population), pool.keep, strict=True)]


def interval(values: list[float]) -> tuple[float, float]:
    """Five standard errors around the mean, as if targets were independent; narrow enough to see .02."""
    error = 5 * np.std(values, ddof=1) / np.sqrt(len(values))
    assert error < 0.013
    return float(np.mean(values) - error), float(np.mean(values) + error)


@pytest.fixture(scope="module", params=list(REPETITIONS))
def null_tables(request: pytest.FixtureRequest, make_tables: Callable[..., Tables]) -> list[Tables]:
    repeated = []
    for seed in range(REPETITIONS[request.param]):
        pool, population = make_tables(request.param, RECORDS, seed=seed)
        repeated.append((reduced(pool, list(ATTACKS)), reduced(population, list(ATTACKS))))
    return repeated


@pytest.mark.parametrize("key", [key for key in ATTACKS if key != "top3"])
def test_chance_by_default(null_tables: list[Tables], key: str) -> None:
    low, high = interval([auc for tables in null_tables for auc in aucs(make_attack(key), tables)])
    assert low <= 0.5 <= high


@pytest.mark.parametrize("key", ["lira_online", "lira_online_fixed", "lira_offline_pdf", "reference"])
def test_all_models_as_references_fail_the_same_test(make_tables: Callable[..., Tables], key: str) -> None:
    attack = dataclasses.replace(make_attack(key), counts="all")
    values = [auc for seed in range(REPETITIONS[8]) for auc in aucs(attack, make_tables(8, RECORDS, seed=seed))]
    error = 5 * np.std(values, ddof=1) / np.sqrt(len(values))
    assert np.mean(values) + error < 0.5
    if key == "lira_online":
        assert np.mean(values) == pytest.approx(0.42, abs=0.02)


def test_the_classifier_stays_at_chance(make_tables: Callable[..., Tables]) -> None:
    values = []
    for seed in range(5):
        pool, population = make_tables(16, 800, seed=seed)
        values += aucs(make_attack("top3"), (reduced(pool, ["top3"]), population))
    low, high = interval(values)
    assert low <= 0.5 <= high


@pytest.fixture(scope="module", params=["paired", "coins", "part of an exact half"])
def other_designs(request: pytest.FixtureRequest, make_tables: Callable[..., Tables]) -> list[Tables]:
    repeated = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        if request.param == "part of an exact half":
            keep = exact_half(14, RECORDS, rng)[:11]
        else:
            keep = rng.random((12, RECORDS)) < 0.5
        if request.param == "paired":
            keep[1::2] = ~keep[::2]
        inside = keep.sum(axis=0)
        keep = keep[:, (inside > 3) & (inside < len(keep) - 3)]  # attacks refuse records with too few references
        pool, population = make_tables(*keep.shape, keep=keep, seed=seed)
        repeated.append((reduced(pool, WITH_COUNTS), reduced(population, WITH_COUNTS)))
    return repeated


@pytest.mark.parametrize("key", WITH_COUNTS)
def test_chance_in_other_designs(other_designs: list[Tables], key: str) -> None:
    low, high = interval([auc for tables in other_designs for auc in aucs(make_attack(key), tables)])
    assert low <= 0.5 <= high


@pytest.fixture(scope="module")
def strangers(make_tables: Callable[..., Tables]) -> list[tuple[Signals, int, Signals]]:
    """A target that never saw the pool, among models that did: (pool, target, population)."""
    mixed = []
    for seed in range(4):
        pool, population = make_tables(8, RECORDS, effect=3.0, seed=seed)
        never, _ = make_tables(8, RECORDS, effect=0.0, seed=seed)  # of the same seed: the same records and models
        for target in range(8):
            margin = pool.stat("margin").copy()
            margin[target] = never.stat("margin")[target]
            stats = {"margin": margin}
            mixed.append((Signals(pool.labels, pool.keep, stats=stats), target, reduced(population, WITH_COUNTS)))
    return mixed


@pytest.mark.parametrize("key", WITH_COUNTS)
def test_what_references_learnt_does_not_reveal_the_mask_of_a_stranger(
    strangers: list[tuple[Signals, int, Signals]], key: str
) -> None:
    values = []
    for pool, target, population in strangers:
        scores = make_attack(key)(pool, [target], population)[0]
        values.append(roc(scores, pool.keep[target]).auc)
    low, high = interval(values)
    assert low <= 0.5 <= high
