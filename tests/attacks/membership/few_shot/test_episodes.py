"""Episodes: what is drawn, that batches and loops agree, that chance is chance, and that an effect is seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastmem.attacks import FewShot, episodes
from fastmem.attacks.membership.few_shot import draw_episodes, make_learner, run_learner, score_records
from fastmem.errors import InputError
from fastmem.metrics import log_mia, membership_metrics
from fastmem.signals import Signals

METHODS = ("simpleshot", "laplacian", "tim", "finetune_head")


def _records(effect: float, n: int = 400, width: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    members = rng.permutation(n) < n // 2
    return np.maximum(rng.normal(size=(n, width)) + effect * members[:, None], 0), members


def test_the_parts_of_an_episode_do_not_overlap() -> None:
    members = np.arange(90) < 40
    draw = draw_episodes(members, 5, 6, 7, 30, seed=3)
    whole = np.concatenate([draw.support, draw.val, draw.query], axis=1)
    assert all(len(np.unique(row)) == 36 for row in whole)
    for part, size in (("support", 5), ("val", 6), ("query", 7)):
        known = getattr(draw, f"{part}_members")
        assert (known.sum(axis=1) == size).all()
        assert (members[getattr(draw, part)] == known).all()
    assert draw.n_labels == 22
    again = draw_episodes(members, 5, 6, 7, 30, seed=3)
    assert (again.query == draw.query).all()
    assert not (draw_episodes(members, 5, 6, 7, 30, seed=4).query == draw.query).all()


def test_shuffled_membership_says_nothing_about_the_mask() -> None:
    members = np.arange(200) < 100
    draw = draw_episodes(members, 5, n_episodes=400, shuffled=True)
    share = members[draw.query][draw.query_members].mean()
    assert share == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shots", [1, 5])
def test_without_an_effect_a_variant_is_at_chance(method: str, shots: int) -> None:
    features, members = _records(0.0, n=2000)
    # Records are drawn anew from the same distribution for each episode as far as 2000 of them go.
    table = episodes(features, members, method=method, shots=shots, n_episodes=60, seed=1)
    for regime in (table.strict, table.regular):
        half = regime["raw"]["high"] - regime["raw"]["mean"]
        assert (
            abs(regime["raw"]["mean"] - regime["chance_mean"]) <= 2 * half + 0.02
        )  # at one shot SimpleShot knows two scores, and often finds nobody
        assert abs(regime["adjusted"]) < 0.2
        assert regime["p_value"] > 1e-4
    assert abs(table.auc["mean"] - 0.5) < 2 * (table.auc["high"] - table.auc["mean"])


@pytest.mark.parametrize("method", METHODS)
def test_an_effect_is_found(method: str) -> None:
    features, members = _records(1.5)
    table = episodes(features, members, method=method, shots=5, n_episodes=20)
    # A head on relu features sees directions only, and no distances.
    assert table.auc["low"] > (0.6 if method == "finetune_head" else 0.9)
    if method == "finetune_head":
        return
    assert table.strict["p_value"] < 1e-9
    assert table.strict["adjusted"] > 0.5
    assert table.strict["tpr"]["low"] > 5 * table.strict["tpr_chance"]


def test_a_loop_over_episodes_gives_the_same_scores() -> None:
    features, members = _records(0.5)
    draw = draw_episodes(members, 5, n_episodes=3)
    for method in METHODS:
        learner = make_learner(method)
        together, looped = (run_learner(learner, torch.from_numpy(features), draw, chunk=chunk) for chunk in (None, 1))
        np.testing.assert_allclose(together.query, looped.query, rtol=1e-9, atol=1e-12)


def test_asked_alone_an_inductive_learner_says_the_same() -> None:
    features, members = _records(0.5)
    draw = draw_episodes(members, 3, n_episodes=4)
    for method, same in (("simpleshot", True), ("laplacian", False), ("tim", False)):
        learner = make_learner(method)
        alone = run_learner(learner, torch.from_numpy(features), draw, alone=True)
        together = run_learner(learner, torch.from_numpy(features), draw)
        if same:
            # k is tuned once for the episode, and again in each copy of it: the same records choose the same.
            np.testing.assert_allclose(alone.query, together.query)
        assert alone.query.shape == together.query.shape
        assert alone.held is None


def test_the_table_is_the_mean_of_single_episodes() -> None:
    rng = np.random.default_rng(0)
    members = np.arange(100) < 50
    scores = rng.integers(0, 12, 100).astype(float)
    draw = draw_episodes(members, 4, n_episodes=25)
    found = score_records(scores, draw).table()
    single = [
        log_mia(scores[query], known, threshold_from=None)
        for query, known in zip(draw.query, draw.query_members, strict=True)
    ]
    for name in ("strict", "regular"):
        values = [getattr(one, name) for one in single]
        regime = getattr(found, name)
        assert regime["raw"]["mean"] == pytest.approx(np.mean([value.raw for value in values]))
        assert regime["chance_mean"] == pytest.approx(np.mean([value.chance_mean for value in values]))
        assert regime["tpr"]["mean"] == pytest.approx(np.mean([value.tpr for value in values]))
    aucs = [membership_metrics(scores[q], m).auc for q, m in zip(draw.query, draw.query_members, strict=True)]
    assert found.auc["mean"] == pytest.approx(np.mean(aucs))
    known = np.concatenate([draw.support, draw.val], axis=1)
    masks = np.concatenate([draw.support_members, draw.val_members], axis=1)
    honest = [
        log_mia(scores[q], m, threshold_from=(scores[v], k)).strict
        for q, m, v, k in zip(draw.query, draw.query_members, known, masks, strict=True)
    ]
    assert found.held_out["strict"]["tpr"]["mean"] == pytest.approx(np.mean([value.tpr for value in honest]))
    assert found.held_out["strict"]["fpr"] == pytest.approx(np.mean([value.fpr for value in honest]))
    assert found.held_out["strict"]["chance_mean"] == pytest.approx(np.mean([value.chance_mean for value in honest]))


def test_on_signals_every_record_gets_a_score_that_finds_members() -> None:
    rng = np.random.default_rng(0)
    keep = np.zeros((2, 200), dtype=bool)
    keep[0, :100], keep[1, 100:] = True, True
    logits = rng.normal(size=(2, 200, 1, 5)) + 2.0 * keep[:, :, None, None]
    signals = Signals(labels=np.arange(200) % 5, keep=keep, logits=logits)
    for method in ("simpleshot", "laplacian", "tim"):
        result = FewShot(method, centre=None if method == "tim" else "support").run(signals, [0, 1])
        assert result.scores.shape == (2, 200)
        assert np.isfinite(result.scores).all()
        assert result.details["n_labels"] == 80
        if method == "laplacian":
            assert membership_metrics(result.scores[1], keep[1]).auc > 0.9
    shuffled = signals.with_keep(keep[:, rng.permutation(200)])
    assert abs(membership_metrics(FewShot()(shuffled, [0])[0], shuffled.keep[0]).auc - 0.5) < 0.15
    given = FewShot(features=logits[:, :, 0])(
        Signals(labels=np.zeros(200, int), keep=keep, stats={"margin": logits[..., 0]})
    )
    np.testing.assert_array_equal(given, FewShot()(signals))


def test_tim_warns_of_an_uneven_query() -> None:
    keep = np.arange(200)[None] < 60
    logits = np.random.default_rng(0).normal(size=(1, 200, 1, 5))
    signals = Signals(labels=np.zeros(200, dtype=np.int64), keep=keep, logits=logits)
    assert "share of 0.5" in FewShot("tim").run(signals).warnings[0]
    assert FewShot("tim", prior=0.3).run(signals).warnings == ()


def test_arrays_in_scores_out() -> None:
    features, members = _records(1.0)
    result = FewShot("laplacian").score(
        features[:40], members[:40], features[80:], val=features[40:80], val_members=members[40:80]
    )
    assert result.scores.shape == (320,)
    assert result.scores.dtype == np.float64
    assert (result.n_labels, result.transductive) == (80, True)
    assert set(result.params) == {"lam", "k"}
    assert membership_metrics(result.scores, members[80:]).auc > 0.8


def _score(**changes: object) -> Callable[[], object]:
    features, members = _records(1.0)
    given = {"support": features[:20], "support_members": members[:20], "query": features[20:]} | changes
    return lambda: FewShot().score(**given)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: episodes(*_records(0.0), shots=190), "at most 170 shots"),
        (lambda: episodes(np.ones((50, 3)), np.arange(50) < 25), "same values"),
        (lambda: episodes(np.full((50, 3), np.inf), np.arange(50) < 25), "infinite"),
        (lambda: episodes(np.eye(50), np.ones(50, dtype=bool)), "no non-members"),
        (lambda: episodes(np.eye(50), np.arange(50) % 2), "not boolean"),
        (lambda: episodes(np.eye(80), np.arange(80) < 40, method="finetune"), "take finetune_head"),
        (lambda: episodes(np.eye(80), np.arange(80) < 40, centre=[1.0]), "a mean of shape"),
        (lambda: draw_episodes(np.arange(50) < 25, 0), "shots: 0"),
        (_score(support_members=np.ones(20, dtype=bool)), "no non-members"),
        (_score(support_members=np.ones(19, dtype=bool)), "give \\[20\\]"),
        (_score(query=np.ones((4, 3))), "give the same features of all"),
        (_score(query=np.full((4, 12), np.nan)), "NaN"),
        (lambda: FewShot("simpelshot"), "did you mean 'simpleshot'"),
        (lambda: FewShot(shots=0), "at least 1 shot"),
        (lambda: FewShot("tim", prior=1.0), "between 0 and 1"),
        (lambda: FewShot("finetune"), "give the target as model="),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
