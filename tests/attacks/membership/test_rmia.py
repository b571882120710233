"""RMIA against the comparison of every record with every population record, and its traps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit

from fastmem.attacks import BASE, RMIA
from fastmem.errors import InputError
from fastmem.metrics import roc
from fastmem.ops.leave_one_out import CUT_NOTHING, leave_one_out, reference_masks
from fastmem.signals import Signals

Tables = tuple[Signals, Signals]


@pytest.fixture(scope="module")
def tables(make_tables: Callable[..., Tables]) -> Tables:
    return make_tables(8, 40, effect=1.0, population=30, queries=3)


def by_the_paper(attack: RMIA, tables: Tables) -> np.ndarray:
    """Scores by loops over targets, records, queries and population."""
    pool, population = tables
    name = f"margin@{attack.temperature}"
    p_x, p_z = expit(pool.stat(name)), expit(population.stat(name))
    keep, nobody = torch.from_numpy(pool.keep), torch.from_numpy(population.keep)
    scores = np.empty(pool.keep.shape)
    plan = leave_one_out(keep, None, attack.counts)
    for target, partner, rule in zip(*(part.tolist() for part in plan), strict=True):
        r_x = ratios(attack, p_x, target, *reference_masks(keep, target, partner, rule))
        r_z = ratios(attack, p_z, target, *reference_masks(nobody, target, partner, CUT_NOTHING))
        for n in range(len(r_x)):
            if attack.queries == "vote":
                wins = [2 * (r_x[n] > attack.gamma * z).sum() > len(z) for z in r_z]
            else:
                geometric = np.exp(np.log(r_x[n]).mean())
                wins = [geometric > attack.gamma * np.exp(np.log(z).mean()) for z in r_z]
            scores[target, n] = np.mean(wins)
    return scores


def ratios(attack: RMIA, p: np.ndarray, target: int, into: torch.Tensor, out: torch.Tensor) -> np.ndarray:
    """p / pbar, [records, queries]."""
    rows = []
    for n in range(p.shape[1]):
        mean_out = p[out[:, n].numpy(), n].mean(axis=0)
        if attack.variant == "offline":
            pbar = ((1 + attack.a) * mean_out + (1 - attack.a)) / 2  # type: ignore[operator]
        elif into[:, n].any():
            pbar = (p[into[:, n].numpy(), n].mean(axis=0) + mean_out) / 2
        else:
            pbar = mean_out
        rows.append(p[target, n] / pbar)
    return np.array(rows)


@pytest.mark.parametrize(
    "attack",
    [
        RMIA(),
        RMIA(counts="all"),
        RMIA(gamma=2.0, temperature=2.0),
        RMIA("offline"),
        RMIA("offline", a=0.0),
        RMIA("offline", a=1.0, gamma=0.7),
        RMIA("offline", queries="vote"),
        RMIA(queries="vote", gamma=1.5),
    ],
    ids=repr,
)
def test_against_the_definition(tables: Tables, attack: RMIA) -> None:
    assert np.array_equal(attack(tables[0], None, tables[1]), by_the_paper(attack, tables))


def test_vote_in_chunks(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastmem.attacks.membership.rmia as module

    attack = RMIA(queries="vote")
    whole = attack(tables[0], None, tables[1])
    monkeypatch.setattr(module, "_VOTE_ELEMENTS", 1)
    assert np.array_equal(attack(tables[0], None, tables[1]), whole)


def test_the_mean_and_the_vote_agree_on_one_query(make_tables: Callable[..., Tables]) -> None:
    pool, population = make_tables(8, 40, effect=1.0)
    assert np.array_equal(RMIA()(pool, None, population), RMIA(queries="vote")(pool, None, population))


# --- ties ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [RMIA("offline"), RMIA("offline", a=1.0), RMIA("offline", queries="vote")])
def test_a_population_record_that_copies_a_record_is_no_win(attack: RMIA) -> None:
    """References that saw nothing: then x and its copy in z have the same references, and tie to the last bit.

    For members the target is left out of another group than for z, so a mean that depends on how a set came about
    would break the tie.
    """
    rng = np.random.default_rng(0)
    margin = rng.normal(3, 3, size=(40, 500, 2))
    keep = np.zeros((40, 500), dtype=bool)
    keep[39, ::2] = True
    pool = Signals(np.zeros(500, dtype=int), keep, stats={"margin": margin})
    copies = Signals(np.zeros(500, dtype=int), np.zeros_like(keep), stats={"margin": margin})
    scores = attack(pool, [39], copies)[0]
    if attack.queries == "mean":
        assert sorted(scores * 500) == pytest.approx(np.arange(500))  # the k-th beats k, never itself
    own = scores.copy()
    for n in range(0, 500, 50):
        alone = attack(pool.rows([n, (n + 1) % 500]), [39], copies.rows([n]))[0]
        assert alone[0] == 0.0
    assert np.array_equal(own, scores)


def test_records_that_beat_all_are_reported(tables: Tables) -> None:
    pool, population = tables
    result = RMIA(gamma=1e-6).run(pool, None, population)
    assert result.details["share_at_one"] == 1.0
    assert result.details["distinct_scores"] == 1
    assert result.warnings[0].startswith("100.0% of the scores are exactly 1")
    result = RMIA().run(pool, None, population)
    assert result.details["population"] == 30
    assert result.details["share_at_one"] == (result.scores == 1).mean()
    assert result.details["share_at_zero"] == (result.scores == 0).mean()
    assert result.details["distinct_scores"] == len(np.unique(result.scores))


def test_for_one_target_the_population_changes_only_ties(tables: Tables) -> None:
    """The score is a monotone function of the ratio, which is BASE."""
    pool, population = tables
    for scores, ratio in zip(RMIA()(pool, None, population), BASE()(pool), strict=True):
        assert (np.diff(scores[np.argsort(ratio)]) >= 0).all()


def test_hopeless_answers_do_not_break_it() -> None:
    """Margins where p of all models is 0, or 1, in floating point."""
    rng = np.random.default_rng(0)
    keep = rng.random((8, 30)).argsort(axis=0) < 4
    margin = rng.normal(size=(8, 30, 1)) * 1e3
    pool = Signals(np.zeros(30, dtype=int), keep, stats={"margin": margin})
    population = Signals(np.zeros(30, dtype=int), np.zeros_like(keep), stats={"margin": margin[:, ::-1]})
    for attack in (RMIA(), RMIA("offline"), BASE(), BASE("offline")):
        assert np.isfinite(attack(pool, None, population)).all()


# --- a ------------------------------------------------------------------------------------------------------------------


def test_a_is_tuned_on_another_model(tables: Tables) -> None:
    pool, population = tables
    result = RMIA("offline", a="tune").run(pool, [0, 5], population)
    assert len(result.details["a"]) == 2
    for row, (target, a) in enumerate(zip((0, 5), result.details["a"], strict=True)):
        assert a in [i / 10 for i in range(11)]
        assert np.array_equal(result.scores[row], RMIA("offline", a=a)(pool, [target], population)[0])


def test_the_tuned_a_is_the_best_for_that_model(make_tables: Callable[..., Tables]) -> None:
    pool, population = make_tables(12, 300, effect=3.0)
    chosen = RMIA("offline", a="tune", counts="all").run(pool, [11], population).details["a"][0]
    # Without target 11 the first model plays the target.
    rest = pool.select_models(range(11))
    masks = reference_masks(torch.from_numpy(rest.keep), 0, -1, CUT_NOTHING)
    aucs = {}
    for i in range(11):
        r = ratios(RMIA("offline", a=i / 10), expit(rest.stat("margin")), 0, *masks)
        aucs[i / 10] = roc(r[:, 0], rest.keep[0]).auc
    assert aucs[chosen] == pytest.approx(max(aucs.values()), abs=1e-12)
    assert max(aucs.values()) > min(aucs.values()) + 0.005


def test_tuning_never_looks_at_the_target(tables: Tables) -> None:
    pool, population = tables
    attack = RMIA("offline", a="tune", counts="all")
    keep, margin = pool.keep.copy(), pool.stat("margin").copy()
    keep[3], margin[3] = ~keep[3], -5 * margin[3]
    other = Signals(pool.labels, keep, stats={"margin": margin})
    tuned = [attack.run(signals, [3], population).details["a"] for signals in (pool, other)]
    assert tuned[0] == tuned[1]


def test_too_few_models_to_tune(make_tables: Callable[..., Tables]) -> None:
    pool, population = make_tables(4, 40)
    with pytest.raises(InputError, match="a: to tune it for target 0 some records have no OUT reference left; give a"):
        RMIA("offline", a="tune")(pool, None, population)


# --- doors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "on"}, "variant: unknown name 'on'"),
        ({"a": 1.5}, "a: got 1.5; give a number from 0 to 1, or 'tune'"),
        ({"a": "auto"}, "a: got 'auto'"),
        ({"gamma": 0}, "gamma: got 0; give a finite number above 0"),
        ({"temperature": float("inf")}, "temperature: got inf"),
        ({"queries": "max"}, "queries: unknown name 'max'"),
        ({"counts": "most"}, "counts: unknown name 'most'; accepted: all, equal"),
    ],
)
def test_refused_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RMIA(**options)  # type: ignore[arg-type]


def test_the_statistic_follows_the_temperature(tables: Tables) -> None:
    assert RMIA().required_stats == ("margin",)
    assert RMIA(temperature=2.0).required_stats == ("margin@2",)
    pool = Signals(tables[0].labels, tables[0].keep, stats={"margin": tables[0].stat("margin")})
    with pytest.raises(InputError, match="margin@2"):
        RMIA(temperature=2.0)(pool, None, tables[1])


def test_least_numbers_of_models(make_tables: Callable[..., Tables]) -> None:
    for attack in (RMIA(), RMIA("offline"), BASE(), BASE("offline")):
        pool, population = make_tables(4, 20)
        assert np.isfinite(attack(pool, None, population)).all()
        pool, population = make_tables(2, 20)
        with pytest.raises(InputError, match="reference models"):
            attack(pool, None, population)
