"""One attack evaluated: per-record numbers by brute force, controls where they belong, curves thinned but not bent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from fastmem.attacks import RMIA, Attack, AttackResult, LiRA, Loss
from fastmem.metrics import membership_metrics
from fastmem.signals import Signals
from fastmem.studies.membership import Tables, evaluate


def _signals(rng: np.random.Generator, effect: float, models: int = 16, records: int = 300) -> Signals:
    keep = rng.random((models, records)).argsort(axis=0) < models // 2
    margin = rng.normal(size=(models, records, 1)) + effect * keep[:, :, None]
    return Signals(labels=np.zeros(records, dtype=int), keep=keep, stats={"margin": margin})


@pytest.fixture
def tables() -> Tables:
    rng = np.random.default_rng(0)
    return Tables(pool=_signals(rng, effect=2.0), null=_signals(rng, effect=0.0))


def test_numbers_of_each_record_are_those_of_loops(tables: Tables) -> None:
    targets = range(5)
    outcome = evaluate(Loss(), tables, targets, seed=0)
    scores = Loss()(tables.pool, targets)
    keep = tables.pool.keep[:5]
    pooled = membership_metrics(scores.ravel(), keep.ravel())
    threshold = pooled.tpr_at_fpr[0.01].threshold
    for n in range(tables.pool.num_samples):
        inside, outside = scores[keep[:, n], n], scores[~keep[:, n], n]
        if inside.size == 0:
            assert np.isnan(outcome.mean_in[n])
            continue
        assert outcome.mean_in[n] == pytest.approx(inside.mean())
        assert outcome.found[n] == pytest.approx((inside >= threshold).mean())
        places = [(scores[t] < scores[t, n]).sum() for t in range(5) if keep[t, n]]
        assert outcome.rank_std[n] == pytest.approx(np.std(places))
        if outside.size:
            assert outcome.mean_out[n] == pytest.approx(outside.mean())
    assert outcome.entry["auc"] == pytest.approx(pooled.auc)


def test_an_effect_shows_in_the_attack_and_not_in_its_controls(tables: Tables) -> None:
    entry = evaluate(LiRA(), tables, range(16), seed=0).entry
    assert entry["auc_low"] > 0.7
    for control in entry["controls"].values():
        assert control["auc_low"] - 0.01 < 0.5 < control["auc_high"] + 0.01


@dataclass(frozen=True)
class _CountsMembers(Attack):
    """A broken attack: it reads membership off the design, by how many other models trained on a record."""

    title = "Counts"
    key: ClassVar[str] = "counts"
    required_stats: ClassVar[tuple[str, ...]] = ("margin",)

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        others = signals.keep.sum(axis=0) - signals.keep[targets]
        return AttackResult(-others.astype(np.float64))


def test_the_controls_show_an_attack_that_reads_the_design(tables: Tables) -> None:
    controls = evaluate(_CountsMembers(), tables, range(16), seed=0).entry["controls"]
    assert controls["never_saw"]["auc"] == 1.0
    assert controls["shuffled"]["auc"] == 1.0


def test_without_null_models_there_is_one_control(tables: Tables) -> None:
    assert set(evaluate(Loss(), Tables(tables.pool), range(4), seed=0).entry["controls"]) == {"shuffled"}


def test_a_thinned_curve_stays_on_the_curve(tables: Tables) -> None:
    outcome = evaluate(LiRA(), tables, range(16), seed=0)
    fpr, tpr = outcome.arrays["roc_lira_online_fpr"], outcome.arrays["roc_lira_online_tpr"]
    scores, members = LiRA()(tables.pool).ravel(), tables.pool.keep.ravel()
    whole = membership_metrics(scores, members).roc
    assert len(fpr) <= 401
    assert set(zip(fpr, tpr, strict=True)) <= set(zip(whole.fpr, whole.tpr, strict=True))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    # Few false positives are where the eye looks: there the thinned curve misses nothing.
    for level in (1e-3, 1e-2, 1e-1):
        full = whole.tpr[whole.fpr <= level].max()
        assert tpr[fpr <= level].max() == pytest.approx(full, abs=0.02)


def test_histograms_hold_every_score(tables: Tables) -> None:
    arrays = evaluate(LiRA(), tables, range(16), seed=0).arrays
    keep = tables.pool.keep
    assert arrays["hist_lira_online_in"].sum() == keep.sum()
    assert arrays["hist_lira_online_out"].sum() == (~keep).sum()
    assert (np.diff(arrays["hist_lira_online_edges"]) > 0).all()


@dataclass(frozen=True)
class _Saturates(Attack):
    """An attack whose highest score is shared by a twentieth of the records, whoever they are."""

    title = "Saturates"
    key: ClassVar[str] = "saturates"
    required_stats: ClassVar[tuple[str, ...]] = ("margin",)

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        margin = signals.stat("margin")[targets, :, 0]
        return AttackResult(np.minimum(margin, np.quantile(margin, 0.95)))


def test_levels_below_the_highest_tie_are_marked_and_named(tables: Tables) -> None:
    null = Tables(pool=tables.null)
    entry = evaluate(_Saturates(), null, range(16), seed=0).entry
    levels = entry["tpr_at_fpr"]
    assert (levels["0.01"]["tpr"], levels["0.01"]["resolvable"]) == (0.0, False)
    assert "share the highest score" in levels["0.01"]["unresolved"]
    assert levels["0.1"]["resolvable"]
    (warning,) = entry["warnings"]
    assert "asked for: 0.001, 0.01)" in warning
    # The same without the ties: nothing to say, whatever the levels.
    assert evaluate(Loss(), null, range(16), seed=0).entry["warnings"] == []
    assert evaluate(Loss(), null, range(16), seed=0).entry["tpr_at_fpr"]["0.01"]["resolvable"]


def test_a_small_population_says_what_it_resolves(tables: Tables) -> None:
    rng = np.random.default_rng(1)

    def warnings(size: int) -> list[str]:
        unseen = np.zeros((16, size), dtype=bool)
        population = Signals(np.zeros(size, int), unseen, stats={"margin": rng.normal(size=(16, size, 1))})
        entry = evaluate(RMIA(), Tables(tables.pool, population), range(2), seed=0).entry
        return [text for text in entry["warnings"] if "shares of a population" in text]

    (warning,) = warnings(200)
    assert "200 records" in warning
    assert "from about 0.05 up" in warning
    assert "0.1% needs 10000 records" in warning
    assert warnings(10_000) == []
