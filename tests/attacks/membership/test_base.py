"""What all attacks have in common: targets, populations, names, purity."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

import fastmem
from fastmem.attacks import ATTACKS, Attack, AttackResult, Loss, Population, make_attack
from fastmem.errors import InputError, UnknownNameError
from fastmem.signals import Signals

Tables = tuple[Signals, Signals]


@pytest.fixture(scope="module")
def tables(make_tables: Callable[..., Tables]) -> Tables:
    return make_tables(10, 60, effect=2.0, population=40, queries=2)


@pytest.mark.parametrize("key", ATTACKS)
def test_scores_of_all_models_by_default(tables: Tables, key: str) -> None:
    pool, population = tables
    attack = make_attack(key)
    result = attack.run(pool, None, population)
    assert isinstance(result, AttackResult)
    assert result.scores.shape == (10, 60)
    assert result.scores.dtype == np.float64
    assert np.isfinite(result.scores).all()
    assert np.array_equal(attack(pool, population=population), result.scores)
    # Members of a model that overfits score higher.
    assert result.scores[pool.keep].mean() > result.scores[~pool.keep].mean()


@pytest.mark.parametrize("key", ATTACKS)
def test_a_target_does_not_depend_on_the_others(tables: Tables, key: str) -> None:
    pool, population = tables
    attack = make_attack(key)
    every, some = attack(pool, None, population), attack(pool, [7, 2], population)
    if "_fixed" in key:  # sums over all records, in another order
        np.testing.assert_allclose(some, every[[7, 2]], rtol=1e-12)
    else:
        assert np.array_equal(some, every[[7, 2]])


@pytest.mark.parametrize("key", ATTACKS)
def test_attacks_describe_themselves_for_a_report(tables: Tables, key: str) -> None:
    pool, population = tables
    attack = make_attack(key)
    assert attack.key == key
    assert attack.title
    assert all(pool.has(name) for name in attack.required_stats)
    result = attack.run(pool, [0], population)
    json.dumps({"options": attack.options, "details": result.details, "warnings": result.warnings}, allow_nan=False)


@pytest.mark.parametrize("key", ATTACKS)
def test_attacks_read_only_the_statistics_they_name(tables: Tables, key: str) -> None:
    pool, population = tables
    attack = make_attack(key)
    bare = [
        Signals(table.labels, table.keep, stats={name: table.stat(name) for name in attack.required_stats})
        for table in (pool, population)
    ]
    assert np.array_equal(attack(bare[0], [3], bare[1]), attack(pool, [3], population))


@pytest.mark.parametrize("key", ATTACKS)
def test_attacks_change_nothing(tables: Tables, key: str) -> None:
    pool, population = tables
    before = {name: pool.stat(name).copy() for name in ("margin", "loss", "top3")}
    make_attack(key)(pool, None, population)
    assert all(np.array_equal(pool.stat(name), values) for name, values in before.items())


@pytest.mark.parametrize("key", ATTACKS)
def test_needs(tables: Tables, key: str) -> None:
    pool, _ = tables
    attack = make_attack(key)
    if attack.needs_population:
        with pytest.raises(InputError, match=r"population: .* needs records that no model trained on, and got none"):
            attack(pool)
    alone = pool.select_models([0])
    if attack.needs_references:
        with pytest.raises(InputError, match="models"):
            attack(alone, None, tables[1].select_models([0]))
    elif not attack.needs_population:
        assert attack(alone).shape == (1, 60)


@pytest.mark.parametrize("targets", [[10], [-1], [], [1, 1], ["a"], [0.5], "all", [[0], [1]], 3, [True]])
def test_refused_targets(tables: Tables, targets: object) -> None:
    with pytest.raises(InputError, match=r"^targets: "):
        Loss()(tables[0], targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", [range(2), (0, 1), np.array([0, 1]), [np.int64(0), 1]])
def test_accepted_targets(tables: Tables, targets: object) -> None:
    assert Loss()(tables[0], targets).shape == (2, 60)  # type: ignore[arg-type]


def test_refused_populations(tables: Tables) -> None:
    pool, population = tables
    attack: Attack = Population()
    with pytest.raises(InputError, match="population: 9 models and 2 queries for signals of 10 models and 2 queries"):
        attack(pool, None, population.select_models(range(9)))
    one = Signals(population.labels, population.keep, stats={"margin": population.stat("margin")[:, :, :1]})
    with pytest.raises(InputError, match="population: 10 models and 1 queries"):
        attack(pool, None, one)
    seen = population.keep.copy()
    seen[2, 3] = True
    with pytest.raises(InputError, match="population: record 3 is in the training set of model 2; give records that"):
        attack(pool, None, population.with_keep(seen))


def test_names() -> None:
    with pytest.raises(UnknownNameError, match="attack: unknown name 'lira_onlin'; did you mean 'lira_online'"):
        make_attack("lira_onlin")
    assert fastmem.attacks.LiRA().key == "lira_online"
    assert set(ATTACKS) == {
        *("loss", "max_prob", "entropy", "modified_entropy", "top3", "global", "population", "reference", "calibrated"),
        *(f"lira_{variant}{fixed}" for variant in ("online", "offline_cdf", "offline_pdf") for fixed in ("", "_fixed")),
        *("rmia_online", "rmia_offline", "base_online", "base_offline"),
    }
