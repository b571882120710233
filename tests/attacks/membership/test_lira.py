"""LiRA against the formulas of the paper, one target, record and query at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr
from scipy.stats import norm

import fastmem.attacks.membership.panel as panel_module
from fastmem.attacks import LiRA
from fastmem.errors import InputError, UnknownNameError
from fastmem.ops.leave_one_out import leave_one_out, reference_masks
from fastmem.signals import Signals

Tables = tuple[Signals, Signals]


def by_the_paper(attack: LiRA, signals: Signals) -> np.ndarray:
    """Scores of every target, record and query by loops; no floor."""
    margin, keep = signals.stat("margin"), torch.from_numpy(signals.keep)
    plan = leave_one_out(keep, None, attack.counts)
    average = np.median if attack.average == "median" else np.mean
    scores = np.empty(signals.keep.shape)
    for target, partner, rule in zip(*(part.tolist() for part in plan), strict=True):
        sides = [mask.numpy() for mask in reference_masks(keep, target, partner, rule)]
        groups = [
            [[margin[side[:, n], n, a] for a in range(margin.shape[2])] for n in range(margin.shape[1])]
            for side in sides
        ]
        residuals = [np.concatenate([v - average(v) for row in group for v in row]) for group in groups]
        raw = [np.concatenate([v for row in group for v in row]) for group in groups]
        fixed = {
            "residual": [r.std(ddof=attack.ddof) for r in residuals],
            "raw": [r.std(ddof=attack.ddof) for r in raw],
            "raw_in": [raw[0].std(ddof=attack.ddof)] * 2,
        }
        name = "residual" if attack.fixed_variance is True else attack.fixed_variance
        for n in range(margin.shape[1]):
            values = []
            for a in range(margin.shape[2]):
                mu = [average(group[n][a]) for group in groups]
                sigma = fixed[name] if name else [group[n][a].std(ddof=attack.ddof) for group in groups]
                s = margin[target, n, a]
                log_in, log_out = (norm.logpdf(s, m, d) for m, d in zip(mu, sigma, strict=True))
                values.append(
                    {
                        "online": log_in - log_out,
                        "offline_cdf": log_ndtr((s - mu[1]) / sigma[1]),
                        "offline_pdf": -log_out,
                    }[attack.variant]
                )
            scores[target, n] = np.mean(values)
    return scores


@pytest.fixture(scope="module")
def signals(make_tables: Callable[..., Tables]) -> Signals:
    return make_tables(8, 30, effect=1.0, queries=2)[0]


@pytest.mark.parametrize("counts", ["equal", "all"])
@pytest.mark.parametrize("average", ["median", "mean"])
@pytest.mark.parametrize("fixed", [False, True, "raw"])
@pytest.mark.parametrize("variant", ["online", "offline_cdf", "offline_pdf"])
def test_variants(signals: Signals, variant: str, fixed: bool | str, average: str, counts: str) -> None:
    attack = LiRA(variant, fixed, average, counts)
    np.testing.assert_allclose(attack(signals), by_the_paper(attack, signals), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fixed", [False, "residual", "raw_in"])
def test_ddof(signals: Signals, fixed: bool | str) -> None:
    attack = LiRA(fixed_variance=fixed, ddof=1)
    np.testing.assert_allclose(attack(signals), by_the_paper(attack, signals), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("design", ["paired", "coins"])
def test_designs(signals: Signals, design: str) -> None:
    keep = np.random.default_rng(1).random((12, 40)) < 0.5
    if design == "paired":
        keep[1::2] = ~keep[::2]
    keep = keep[:, (keep.sum(axis=0) > 3) & (keep.sum(axis=0) < 9)]
    margin = np.random.default_rng(2).normal(size=(*keep.shape, 1))
    other = Signals(np.zeros(keep.shape[1], dtype=int), keep, stats={"margin": margin})
    np.testing.assert_allclose(LiRA()(other), by_the_paper(LiRA(), other), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attack", [LiRA(), LiRA("offline_cdf", fixed_variance=True)])
def test_blocks_of_records(signals: Signals, attack: LiRA, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attack(signals)
    monkeypatch.setattr(panel_module, "_BLOCK_ELEMENTS", 8 * 2 * 7)
    np.testing.assert_allclose(attack(signals), whole, rtol=1e-12)


def test_an_outside_target_against_all_shadow_models(signals: Signals) -> None:
    """Eight shadow models in an exact half and one more: the target uses all 4 + 4, so counts make no difference."""
    outside = np.random.default_rng(3).random((1, 30)) < 0.5
    keep = np.concatenate([signals.keep, outside])
    margin = np.concatenate([signals.stat("margin"), signals.stat("margin")[:1] + outside[:, :, None]])
    nine = Signals(signals.labels, keep, stats={"margin": margin})
    assert np.array_equal(LiRA()(nine, [8]), LiRA(counts="all")(nine, [8]))


def test_the_far_tail_keeps_its_order() -> None:
    """Phi is 1 beyond 8.3 sigma; its logarithm tells 10 from 20 sigma."""
    margin = np.zeros((5, 2, 1))
    margin[:4] = np.array([-1.0, 1.0, -1.0, 1.0])[:, None, None]
    margin[4, :, 0] = [10.0, 20.0]
    signals = Signals([0, 0], np.array([[False, False]] * 4 + [[True, False]]), stats={"margin": margin})
    scores = LiRA("offline_cdf")(signals, [4])[0]
    assert scores[0] < scores[1] < 0


# --- spreads ------------------------------------------------------------------------------------------------------------


def test_references_that_agree_are_floored_and_counted(signals: Signals) -> None:
    margin = signals.stat("margin").copy()
    margin[:, 5] = 1.25  # every model, both queries
    result = LiRA().run(Signals(signals.labels, signals.keep, stats={"margin": margin}))
    assert np.isfinite(result.scores).all()
    assert result.details["floored"] == 8 * 2 * 2
    assert result.details["spreads"] == 8 * 30 * 2 * 2
    assert result.warnings == (
        "32 of 960 spreads were below 1e-06 of the pooled one and raised to it: references that agree make scores "
        "depend on the floor",
    )
    assert LiRA().run(signals).details["floored"] == 0
    assert LiRA().run(signals).warnings == ()


def test_the_floor_is_a_share_of_the_pooled_residual_spread(signals: Signals) -> None:
    margin = signals.stat("margin").copy()
    margin[:, 5] = 1.25
    margin[3, 5] = 1.5  # the target
    flat = Signals(signals.labels, signals.keep, stats={"margin": margin})
    sigma = np.array(LiRA("offline_pdf", fixed_variance=True).run(flat, [3]).details["sigma_out"])
    score = LiRA("offline_pdf", floor=0.01)(flat, [3])[0, 5]
    assert score == pytest.approx(-norm.logpdf(1.5, 1.25, 0.01 * sigma[0]), rel=1e-12)


def test_models_without_any_spread_are_refused() -> None:
    keep = np.random.default_rng(0).random((8, 10)).argsort(axis=0) < 4
    copies = Signals(np.zeros(10, dtype=int), keep, stats={"margin": np.ones((8, 10, 1))})
    for attack in (LiRA(), LiRA(fixed_variance=True), LiRA(fixed_variance="raw")):
        with pytest.raises(InputError, match="signals: the references of target 0 do not spread"):
            attack(copies)


def test_normality_is_reported() -> None:
    rng = np.random.default_rng(0)
    keep = rng.random((64, 400)).argsort(axis=0) < 32
    for draw, low, high in ((rng.normal, 0.0, 0.15), (rng.standard_exponential, 0.9, 1.0)):
        signals = Signals(np.zeros(400, dtype=int), keep, stats={"margin": draw(size=(64, 400, 1))})
        assert low <= LiRA().run(signals, [0]).details["non_normal_out_share"] <= high


# --- too few models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_models", "attack", "enough"),
    [
        (2, LiRA("offline_cdf", fixed_variance="raw"), False),  # a member's only reference is gone
        (4, LiRA("offline_cdf", fixed_variance="raw"), True),  # 1 of each kind
        (4, LiRA(fixed_variance="raw"), True),
        (4, LiRA(fixed_variance=True), False),  # single models have no residuals
        (4, LiRA(), False),
        (4, LiRA("offline_cdf"), False),
        (6, LiRA(), True),  # 2 of each kind
        (6, LiRA(fixed_variance=True), True),
    ],
)
def test_least_numbers_of_models(
    make_tables: Callable[..., Tables], num_models: int, attack: LiRA, enough: bool
) -> None:
    signals = make_tables(num_models, 20)[0]
    if enough:
        assert np.isfinite(attack(signals)).all()
    else:
        with pytest.raises(InputError, match="models"):
            attack(signals)


def test_a_record_with_too_few_models_is_named(signals: Signals) -> None:
    keep = np.random.default_rng(0).random((8, 30)) < 0.5
    keep[:, 11] = False
    keep[6, 11] = True
    with pytest.raises(InputError) as caught:
        LiRA()(signals.with_keep(keep), [0])
    assert "for target 0, record" in str(caught.value)
    keep[:] = signals.keep
    keep[:, 11] = [0, 0, 0, 0, 0, 0, 1, 0]
    with pytest.raises(InputError) as caught:
        LiRA()(signals.with_keep(keep), [0])
    assert str(caught.value) == (
        "keep: for target 0, record 11 (1 such) has 1 IN and 1 OUT reference models (counts='equal'), and lira_online "
        "needs 2 IN and 2 OUT; train more models with every record in half of them, or leave such records out, or where "
        "members were drawn independently take counts='all'"
    )
    # An attack that needs no IN models works with all OUT ones.
    assert np.isfinite(LiRA("offline_pdf", counts="all")(signals.with_keep(keep), [0])).all()


def test_references_that_saw_nothing_serve_offline_attacks() -> None:
    keep = np.zeros((6, 20), dtype=bool)
    keep[5, ::2] = True
    margin = np.random.default_rng(0).normal(size=(6, 20, 1))
    signals = Signals(np.zeros(20, dtype=int), keep, stats={"margin": margin})
    expected = -norm.logpdf(margin[5, :, 0], np.median(margin[:5, :, 0], axis=0), margin[:5, :, 0].std(axis=0))
    np.testing.assert_allclose(LiRA("offline_pdf")(signals, [5])[0], expected, rtol=1e-12)


# --- options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "onlin"}, "variant: unknown name 'onlin'; did you mean 'online'"),
        ({"variant": "offline"}, "variant: unknown name 'offline'; did you mean 'offline_"),
        ({"average": "mode"}, "average: unknown name 'mode'"),
        ({"counts": "some"}, "counts: unknown name 'some'"),
        ({"fixed_variance": "global"}, "fixed_variance: unknown name 'global'"),
    ],
)
def test_unknown_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        LiRA(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ddof": 2}, "ddof: got 2; accepted: 0, 1"),
        ({"floor": 0.0}, "floor: got 0.0"),
        ({"variant": "offline_pdf", "fixed_variance": "raw_in"}, "fixed_variance: 'raw_in' for variant 'offline_pdf'"),
    ],
)
def test_refused_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LiRA(**options)  # type: ignore[arg-type]


def test_keys_and_titles() -> None:
    assert LiRA("offline_cdf", fixed_variance=True).key == "lira_offline_cdf_fixed"
    assert LiRA("offline_cdf", fixed_variance=True).title == "LiRA offline, one-sided, fixed variance"
    assert LiRA().options["floor"] == 1e-6


_PEAK = """
import re, sys
import numpy as np
from pathlib import Path
from fastmem.attacks import LiRA
from fastmem.signals import Signals

def signals(models, records):
    rng = np.random.default_rng(0)
    keep = rng.permuted(np.arange(models)[:, None] % 2 == np.zeros(records), axis=0)
    stats = {"margin": rng.normal(size=(models, records, 2))}
    return Signals(labels=np.zeros(records, dtype=np.int64), keep=keep, stats=stats)

def kilobytes(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

LiRA(variant="online")(signals(8, 50))  # what is loaded and started once
ready = signals(128, 30_000)
Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
before = kilobytes("VmRSS")
LiRA(variant="online")(ready)
print((kilobytes("VmHWM") - before) * 1024 / (ready.stat("margin").nbytes + ready.keep.nbytes))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the peak of memory")
def test_all_targets_at_once_take_little_more_memory_than_their_signals() -> None:
    # [T, M, N] copies would take 128 times as much.
    share = float(subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True).stdout)
    assert 0 < share < 2
