"""RMIA and BASE as other systems computed them, from the same logits and masks.

PM = ML Privacy Meter, PG = PrivacyGuard, LP = LeakPro, PMR = the RMIA authors' scripts. The target t stands outside the
32 shadow models, of which 16 trained on each record; z are 600 records that no model trained on.

Only LP averages references for x and z alike, as fastmem does. PM and PG take for z the K *largest* of all references
and for x all OUT ones, which lifts non-members from .50 to .63 on average and puts 2 to 3% of them at exactly 1; PMR
takes the target's own non-members for z, and trims means. There the sources' means, computed here, go through
fastmem's count, which must give their scores exactly; and the attacks must differ in the direction said.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import trim_mean

from fastmem.attacks import BASE, RMIA, Loss
from fastmem.attacks.membership.base import Attack
from fastmem.attacks.membership.rmia import vote
from fastmem.errors import InputError
from fastmem.ops.rmia import rmia
from fastmem.signals import Signals

SHADOW, Z = 32, 600
A_GRID = (0.0, 0.3, 0.6, 1.0)


@pytest.fixture(scope="module")
def inputs(shared_reference: Path) -> dict[str, np.ndarray]:
    with np.load(shared_reference / "mia_inputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def expected(shared_reference: Path) -> dict[str, np.ndarray]:
    with np.load(shared_reference / "mia_rmia_base_pop_ref.npz") as file:
        return dict(file)


def margins_only(labels: np.ndarray, keep: np.ndarray, logits: np.ndarray) -> Signals:
    whole = Signals(labels, keep, logits=logits)
    return Signals(labels, keep, stats={name: whole.stat(name) for name in ("margin", "margin@2")})


@pytest.fixture(scope="module")
def pool(inputs: dict[str, np.ndarray]) -> Signals:
    """Query 0 of the pool."""
    return margins_only(inputs["labels"], inputs["keep"], inputs["logits"][:, :, :1])


@pytest.fixture(scope="module")
def population(inputs: dict[str, np.ndarray]) -> Signals:
    keep = np.zeros((len(inputs["keep"]), Z), dtype=bool)
    return margins_only(inputs["z_labels"], keep, inputs["z_logits"])


def on_outside_targets(
    attack: Attack, pool: Signals, population: Signals, count: int, references: int = SHADOW
) -> np.ndarray:
    """Scores [count, N]: each target against the first shadow models alone."""
    rows = []
    for target in range(count):
        models = [*range(references), SHADOW + target]
        rows.append(attack(pool.select_models(models), [references], population.select_models(models)))
    return np.concatenate(rows)


def assert_equal_but_for_ties(found: np.ndarray, expected: np.ndarray, flips: int = 2) -> None:
    """Multiples of 1/Z that are equal, but for pairs so close that the order of additions decides."""
    difference = np.abs(found - expected) * Z
    assert (difference > 1e-6).sum() <= flips
    assert difference.max() < 1.0 + 1e-6


# --- the same definition ------------------------------------------------------------------------------------------------


def test_online(pool: Signals, population: Signals, expected: dict[str, np.ndarray]) -> None:
    """PG with all references: with 16 of each kind their mean is the mean of the two means."""
    assert_equal_but_for_ties(on_outside_targets(RMIA(), pool, population, 8), expected["pg_rmia_online_all"])


@pytest.mark.parametrize(("temperature", "gamma"), [(1.0, 1.0), (2.0, 2.0)])
@pytest.mark.parametrize("variant", ["online", "offline"])
def test_leakpro(
    pool: Signals,
    population: Signals,
    expected: dict[str, np.ndarray],
    variant: str,
    temperature: float,
    gamma: float,
) -> None:
    """LP adds 1e-6 to its denominators, which decides a near-tie or two."""
    attack = RMIA(variant, a=0.33, temperature=temperature, gamma=gamma)
    source = expected[f"lp_rmia_{variant}_T{temperature:.0f}_g{gamma:.0f}"]
    assert_equal_but_for_ties(on_outside_targets(attack, pool, population, 3), source)


@pytest.mark.parametrize("temperature", [1, 2])
@pytest.mark.parametrize("variant", ["online", "offline"])
def test_base(
    pool: Signals, population: Signals, expected: dict[str, np.ndarray], variant: str, temperature: int
) -> None:
    found = on_outside_targets(BASE(variant, temperature=temperature), pool, population, 3)
    np.testing.assert_allclose(found, expected[f"lp_base_{variant}_T{temperature}"], rtol=0, atol=1e-12)


def test_privacy_meter_turns_the_loss_around(pool: Signals, expected: dict[str, np.ndarray]) -> None:
    """PM's run_loss gives minus the probability of the true class: low for members."""
    found = Loss()(pool, range(SHADOW, SHADOW + 8))
    np.testing.assert_allclose(np.exp(found), -expected["pm_attacks_loss"], rtol=0, atol=1e-12)


# --- z by the K largest references --------------------------------------------------------------------------------------


def probabilities(signals: Signals, temperature: float = 1.0) -> np.ndarray:
    """p of the true class, [M, N]."""
    return expit(signals.stat(f"margin@{temperature}")[:, :, 0])


def k_largest(p: np.ndarray, k: int) -> np.ndarray:
    return np.sort(p, axis=0)[-k:].mean(axis=0)


def mean_out(p: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return np.where(keep, 0.0, p).sum(axis=0) / (~keep).sum(axis=0)


def blend(p_out: np.ndarray, a: float) -> np.ndarray:
    return ((1 + a) * p_out + (1 - a)) / 2


def count(p_x: np.ndarray, pbar_x: np.ndarray, p_z: np.ndarray, pbar_z: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """fastmem's count on the ratios of [T, N] and [T, Z]."""
    ratios = [torch.from_numpy(np.log(p) - np.log(pbar)) for p, pbar in ((p_x, pbar_x), (p_z, pbar_z))]
    return rmia(*ratios, math.log(gamma)).numpy()


@pytest.mark.parametrize("i", range(4), ids=lambda i: f"a={A_GRID[i]}")
def test_privacy_meter_offline(pool: Signals, population: Signals, expected: dict[str, np.ndarray], i: int) -> None:
    a = A_GRID[i]
    x, z, keep = probabilities(pool), probabilities(population), pool.keep[:SHADOW]
    source = expected["pm_rmia_offline"][:, i]
    pbar = blend(mean_out(x[:SHADOW], keep), a)
    assert_equal_but_for_ties(count(x[SHADOW:], pbar, z[SHADOW:], blend(k_largest(z[:SHADOW], 16), a)), source)
    if a == 0.3:
        assert np.array_equal(source, expected["pg_rmia_offline_a03"])

    # With the same references for x and z, the scores of non-members are centred, and few sit at the end.
    found = on_outside_targets(RMIA("offline", a=a), pool, population, 8)
    others = ~pool.keep[SHADOW:]
    assert abs(found[others].mean() - 0.5) < 0.03
    assert source[others].mean() > 0.56
    assert (found[others] == 1).mean() < 0.005 < 0.01 < (source[others] == 1).mean()


def test_online_by_the_largest_half(pool: Signals, population: Signals, expected: dict[str, np.ndarray]) -> None:
    x, z = probabilities(pool), probabilities(population)
    halves = k_largest(x[:SHADOW], 16), k_largest(z[:SHADOW], 16)
    assert_equal_but_for_ties(count(x[SHADOW:], halves[0], z[SHADOW:], halves[1]), expected["pg_rmia_online_half"])


@pytest.mark.parametrize("k", [2, 4])
def test_privacy_meter_few_references(
    pool: Signals, population: Signals, expected: dict[str, np.ndarray], k: int
) -> None:
    x, z, keep = probabilities(pool), probabilities(population), pool.keep[: 2 * k]
    source = expected[f"pm_rmia_offline_K{k}"]
    pbar = blend(mean_out(x[: 2 * k], keep), 0.3)
    assert_equal_but_for_ties(count(x[SHADOW:], pbar, z[SHADOW:], blend(k_largest(z[: 2 * k], k), 0.3)), source)

    found = on_outside_targets(RMIA("offline"), pool, population, 8, references=2 * k)
    others = ~pool.keep[SHADOW:]
    assert abs(found[others].mean() - 0.5) < abs(source[others].mean() - 0.5)


def test_one_reference(pool: Signals, population: Signals, expected: dict[str, np.ndarray]) -> None:
    """PM extrapolates p_out for records that its only reference trained on, below 0 at times; fastmem refuses."""
    x, z, trained = probabilities(pool), probabilities(population), pool.keep[0]
    a = A_GRID[1]
    p_out = np.where(trained, (x[0] + a - 1) / a, x[0])
    assert (p_out < 0).any()
    found = count(x[SHADOW:, ~trained], blend(x[0], a)[~trained], z[SHADOW:], blend(z[0], a))
    assert_equal_but_for_ties(found, expected["pm_rmia_offline_K1"][:, 1][:, ~trained])
    with pytest.raises(InputError, match="0 OUT reference models"):
        on_outside_targets(RMIA("offline"), pool, population, 1, references=1)
    # Of records that it did not train on, one reference is enough, and then x and z agree with PM.
    unseen = on_outside_targets(RMIA("offline"), pool.rows(~trained), population, 8, references=1)
    assert_equal_but_for_ties(unseen, expected["pm_rmia_offline_K1"][:, 1][:, ~trained])


@pytest.mark.parametrize("target", [0, 1])
def test_privacy_meter_leave_one_out_pads_with_zeros(
    pool: Signals, population: Signals, expected: dict[str, np.ndarray], target: int
) -> None:
    """Members have 16 OUT models, others 15; PM takes the 15 largest of the OUT outputs, with zeros for IN models."""
    others = [model for model in range(SHADOW) if model != target]
    x, z, keep = probabilities(pool), probabilities(population), pool.keep
    p_out = k_largest(np.where(keep[others], 0.0, x[others]), 15)
    found = count(x[[target]], blend(p_out, 0.3), z[[target]], blend(k_largest(z[others], 15), 0.3))[0]
    source = expected[f"pm_rmia_loo{target}_offline_a03"]
    assert_equal_but_for_ties(found, source)
    # So members lose their smallest reference and others none, which tells membership downwards: fastmem's way does not.
    rest = pool.select_models(range(SHADOW)), [target], population.select_models(range(SHADOW))
    assert RMIA("offline")(*rest)[0].mean() < source.mean() - 0.05


@pytest.mark.parametrize("k", [4, 15])
def test_privacy_meter_without_the_partner(
    pool: Signals, population: Signals, expected: dict[str, np.ndarray], k: int
) -> None:
    x, z, keep = probabilities(pool), probabilities(population), pool.keep
    source = expected[f"pm_attacks_rmia_K{k}_a03"]
    for target in range(4):
        others = [model for model in range(SHADOW) if model not in (target, target ^ 1)][: 2 * k]
        pbar = blend(mean_out(x[others], keep[others]), 0.3)
        found = count(x[[target]], pbar, z[[target]], blend(k_largest(z[others], k), 0.3))[0]
        assert_equal_but_for_ties(found, source[target])


def test_fastmem_leaves_the_partner_out_too(
    pool: Signals, population: Signals, expected: dict[str, np.ndarray]
) -> None:
    """The same 15 OUT references for x as PM; for one target z changes only the scale, so the ranking is PM's."""
    shadow = pool.select_models(range(SHADOW)), range(4), population.select_models(range(SHADOW))
    found = RMIA("offline")(*shadow)
    for ours, theirs in zip(found, expected["pm_attacks_rmia_K15_a03"], strict=True):
        order = np.argsort(ours, kind="stable")
        assert (np.diff(theirs[order][np.diff(ours[order], prepend=-1) > 0]) >= -2 / Z).all()


def test_tuned_a(pool: Signals, population: Signals, expected: dict[str, np.ndarray]) -> None:
    """PM tunes on the target's complement, fastmem on another model; both find that these OUT models say little."""
    shadow = pool.select_models(range(SHADOW)), range(4), population.select_models(range(SHADOW))
    tuned = RMIA("offline", a="tune").run(*shadow).details["a"]
    np.testing.assert_allclose(tuned, expected["pm_attacks_tuned_a"], rtol=0, atol=0.21)


# --- the authors' scripts: z is the target's own non-members, means are trimmed, low = member ----------------------------


def trimmed_pbar(p: np.ndarray, keep: np.ndarray, variant: str) -> np.ndarray:
    """pbar [N, ...] with 20% of the references trimmed at each end."""
    if variant == "online":
        return trim_mean(p[:SHADOW], 0.2, axis=0)
    out = [trim_mean(p[:SHADOW][~keep[:SHADOW, n], n], 0.2, axis=0) for n in range(p.shape[1])]
    return blend(np.stack(out), 0.3)


def without_itself(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What the source does to the scores of non-members, which are among their own z."""
    n = int(others.sum())
    return np.where(others, (scores * n + 1) / (n - 1), scores)


@pytest.mark.parametrize(
    ("variant", "source"), [("online", "online_softmax_T2_g2"), ("offline", "offline_softmax_T2_g2_a03")]
)
def test_authors_softmax(pool: Signals, expected: dict[str, np.ndarray], variant: str, source: str) -> None:
    p = probabilities(pool, 2)
    pbar = trimmed_pbar(p, pool.keep, variant)
    for target in range(3):
        others = ~pool.keep[SHADOW + target]
        ratio = p[[SHADOW + target]]
        found = count(ratio, pbar, ratio[:, others], pbar[others], gamma=2.0)[0]
        np.testing.assert_allclose(
            without_itself(found, others), -expected[f"pmr_rmia_{source}_A1"][target], rtol=0, atol=5e-8
        )


def soft_margin_taylor(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The authors' stand-in for softmax at T = 2, m = .6: a cubic for exp; of the true class, [M, N, A]."""
    cubic: Callable[[np.ndarray], np.ndarray] = np.polynomial.Polynomial([1, 1, 1 / 2, 1 / 6])
    scaled = inputs["logits"].astype(np.float64) / 2
    is_true = np.eye(10, dtype=bool)[inputs["labels"]][None, :, None, :]
    true = cubic(np.where(is_true, scaled, 0).sum(axis=-1) - 0.6)
    return true / (true + np.where(is_true, 0, cubic(scaled)).sum(axis=-1))


@pytest.mark.parametrize(
    ("variant", "source"), [("online", "online_smtaylor_T2_g2"), ("offline", "offline_smtaylor_T2_g2_a03")]
)
def test_authors_vote_of_two_queries(
    inputs: dict[str, np.ndarray], pool: Signals, expected: dict[str, np.ndarray], variant: str, source: str
) -> None:
    """The soft-margin Taylor softmax is no statistic of fastmem (it can be negative); the vote over queries is.

    A z with a negative ratio in some query has no logarithm and is left to the source: it may move a score by its 1/Z.
    """
    p = soft_margin_taylor(inputs)
    ratio = p[SHADOW:] / trimmed_pbar(p, pool.keep, variant)
    positive = (ratio > 0).all(axis=-1)
    log_ratio = torch.from_numpy(np.log(np.where(ratio > 0, ratio, np.nan)))
    for target in range(3):
        others = ~pool.keep[SHADOW + target]
        x = log_ratio[target]
        found = vote(x[None], x[None, torch.from_numpy(others)], math.log(2.0))[0].numpy()
        difference = without_itself(found, others) + expected[f"pmr_rmia_{source}_A2"][target]
        undefined = (others & ~positive[target]).sum() / (others.sum() - 1)
        assert undefined < 0.005
        assert np.abs(difference[positive[target]]).max() < undefined + 5e-8
