"""M scores against the formulas written out, loop by loop, and against cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fastmem.errors import InputError
from fastmem.metrics import VARIANTS, Answers, m_score, score_features
from fastmem.ops import use_backend


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(softmax(4 * rng.normal(size=(30, 5))) for _ in range(3))


def clip(p: np.ndarray) -> np.ndarray:
    return np.clip(p, 1e-7, 1)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(clip(p), clip(q), strict=True)))


def by_hand(variant: str, c: np.ndarray, u: np.ndarray, r: np.ndarray, y: int) -> float:
    n = len(c)
    ratio = lambda i, label: np.log(clip(u[i])[label]) - np.log(clip(r[i])[label])  # noqa: E731
    if variant == "kl_contrast":
        return float(np.mean([kl(c[i], u[i]) - kl(c[i], r[i]) for i in range(n)]))
    if variant == "log_ratio":
        return float(np.mean([ratio(i, y) for i in range(n)]))
    if variant == "prob_diff":
        return float(np.mean([u[i][y] - c[i][y] for i in range(n)]))
    if variant == "prob_diff_max":
        return max(float(np.mean([u[i][k] - c[i][k] for i in range(n)])) for k in range(c.shape[1]))
    guesses = {
        "log_ratio_guess_u": [int(np.argmax(clip(u[i]))) for i in range(n)],
        "log_ratio_guess_u_c": [int(np.argmax(clip(u[i]) - clip(c[i]))) for i in range(n)],
        "log_ratio_guess_u_r": [int(np.argmax(clip(u[i]) - clip(r[i]))) for i in range(n)],
        "log_ratio_guess_mean_u_c": [int(np.argmax((clip(u) - clip(c)).mean(axis=0)))] * n,
        "log_ratio_guess_mean_u_r": [int(np.argmax((clip(u) - clip(r)).mean(axis=0)))] * n,
    }[variant]
    return float(np.mean([ratio(i, guesses[i]) for i in range(n)]))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_every_variant_is_its_formula(variant: str, backend: str, answers) -> None:
    c, u, r = answers
    with use_backend(backend):
        assert m_score(c, u, r, variant=variant, label=2).value == pytest.approx(by_hand(variant, c, u, r, 2), rel=1e-9)


def test_the_published_clip_caps_a_one_hot_term() -> None:
    c, u = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    # 1 ln(1 / 1e-7) + 1e-7 ln(1e-7 / 1) = 16.12 nats
    assert m_score(c, u, c).value == pytest.approx(kl(c[0], u[0]), rel=1e-12)
    assert m_score(c, u, c).value == pytest.approx(16.118, abs=1e-3)
    assert np.isinf(m_score(c, u, c, clip=0.0).value)


def test_logits_are_not_clipped() -> None:
    c, u = np.array([[0.0, -60.0]]), np.array([[-60.0, 0.0]])
    assert m_score(c, u, c, from_logits=True).value == pytest.approx(60, rel=1e-9)
    assert m_score(c, u, c, from_logits=True, variant="log_ratio", label=1).value == pytest.approx(60, rel=1e-9)


def test_logits_and_their_probabilities_agree() -> None:
    rng = np.random.default_rng(1)
    logits = [rng.normal(size=(20, 4)) for _ in range(3)]
    for variant in VARIANTS:
        ours = m_score(*logits, variant=variant, label=1, from_logits=True).value
        assert ours == pytest.approx(m_score(*map(softmax, logits), variant=variant, label=1).value, rel=1e-9)


def test_several_marks_at_once_are_each_alone(answers) -> None:
    c, u, r = answers
    both = Answers.of(c, [u, r, c], r, from_logits=False)
    for variant in VARIANTS:
        together = score_features(both, variant, 3).value
        alone = [m_score(c, each, r, variant=variant, label=3).value for each in (u, r, c)]
        assert together == pytest.approx(alone, rel=1e-12, abs=1e-15)


def test_a_model_that_does_not_react_scores_zero(answers) -> None:
    c = answers[0]
    for variant in ("kl_contrast", "log_ratio", "prob_diff"):
        assert m_score(c, c, c, variant=variant, label=0).value == 0
    zeros = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert m_score(zeros, zeros, zeros, clip=0.0, variant="log_ratio", label=1).value == 0


def test_labels_restrict_known_variants_to_their_own_images(answers) -> None:
    c, u, r = answers
    labels = np.arange(30) % 5
    score = m_score(c, u, r, variant="prob_diff", label=2, labels=labels)
    assert score.value == pytest.approx(float((u - c)[labels == 2, 2].mean()))
    largest = m_score(c, u, r, variant="prob_diff_max", labels=labels)
    by_label = [float((u - c)[labels == k, k].mean()) for k in range(5)]
    assert largest.value == pytest.approx(max(by_label))
    assert largest.predicted_label == int(np.argmax(by_label))


def test_per_image_values_explain_the_score(answers) -> None:
    score = m_score(*answers, variant="log_ratio", label=1)
    assert score.per_image.mean() == pytest.approx(score.value)
    assert score.per_image == pytest.approx(score.with_feature - score.without_feature)
    assert m_score(*answers).predicted_label is None


BAD = {
    "unequal images": (lambda c, u, r: m_score(c, u[:-1], r), "feature: shape"),
    "unequal classes": (lambda c, u, r: m_score(c, u, r[:, :-1] / r[:, :-1].sum(1, keepdims=True)), "contrast: shape"),
    "NaN": (lambda c, u, r: m_score(np.where(c > 0.9, np.nan, c), u, r), "clean: .* NaN"),
    "not summing to one": (lambda c, u, r: m_score(c, 1.01 * u, r), r"feature: 30 rows do not sum to 1.* to 1\.01; give"),
    "negative": (lambda c, u, r: m_score(c, np.log(u), r), "feature: a probability of -"),
    "no label": (lambda c, u, r: m_score(c, u, r, variant="log_ratio"), "label: none, but log_ratio needs it"),
    "label out of range": (lambda c, u, r: m_score(c, u, r, variant="log_ratio", label=5), "classes 0 to 4"),
    "no image of the label": (
        lambda c, u, r: m_score(c, u, r, variant="log_ratio", label=1, labels=np.zeros(30, int)),
        "no image has label 1",
    ),
    "no images": (lambda c, u, r: m_score(c[:0], u[:0], r[:0]), "no images"),
    "unknown": (lambda c, u, r: m_score(c, u, r, variant="kl"), "unknown name 'kl'"),
    "clip": (lambda c, u, r: m_score(c, u, r, clip=2.0), "clip"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_refuses(call, message: str, answers) -> None:
    with pytest.raises(InputError, match=message):
        call(*answers)
