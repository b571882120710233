"""M scores: how far a mark in the image moves a classifier's answer, beside what a random patch, or nothing, does.

Sources: Hartley and Tsaftaris 2022, arXiv:2202.08099 and 2205.10079 (the divergence and log-ratio forms), and their 2023
follow-up on one-sample memorisation (the probability differences). Positive = the answer to the mark looks learned.

With c, u and r the answers to the clean image, the marked one and the one with a random patch, y the canary's label:

================================ ============================================================== =================
variant                          mean over images of                                            label
================================ ============================================================== =================
``kl_contrast``                  KL(c || u) - KL(c || r)                                        not needed
``log_ratio``                    ln u[y] - ln r[y]                                              known
``log_ratio_guess_u``            the same with y = argmax u, image by image                     guessed
``log_ratio_guess_u_c``          the same with y = argmax (u - c), image by image               guessed
``log_ratio_guess_u_r``          the same with y = argmax (u - r), image by image               guessed
``log_ratio_guess_mean_u_c``     the same with y = argmax mean (u - c), once                    guessed
``log_ratio_guess_mean_u_r``     the same with y = argmax mean (u - r), once                    guessed
``prob_diff``                    u[y] - c[y]                                                    known
``prob_diff_max``                u[y] - c[y] for the y with the largest mean                    guessed
================================ ============================================================== =================

What a value means can only be told from models that never saw the mark (:mod:`fastmem.metrics.memorisation`): every
variant is far from zero for some of them. Units: nats, and for the probability differences probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from fastmem.errors import InputError, UnknownNameError
from fastmem.metrics.arrays import as_float64, as_labels, as_numpy

__all__ = ["LABEL_VARIANTS", "VARIANTS", "Answers", "FeatureScores", "MScore", "m_score", "score_features"]

#: Every variant and its title in reports.
VARIANTS: dict[str, str] = {
    "log_ratio": "log-ratio, label known",
    "kl_contrast": "KL contrast, no label",
    "log_ratio_guess_u": "log-ratio, label guessed from u",
    "log_ratio_guess_u_c": "log-ratio, label guessed from u - c",
    "log_ratio_guess_u_r": "log-ratio, label guessed from u - r",
    "log_ratio_guess_mean_u_c": "log-ratio, one label guessed from mean u - c",
    "log_ratio_guess_mean_u_r": "log-ratio, one label guessed from mean u - r",
    "prob_diff": "probability difference, label known",
    "prob_diff_max": "probability difference, largest over labels",
}
#: Those that need the canary's label.
LABEL_VARIANTS = ("log_ratio", "prob_diff")

PUBLISHED_CLIP = 1e-7
_SUM_TOLERANCE = 1e-4


@dataclass(frozen=True)
class MScore:
    """One score.

    Args:
        value: Mean over the images.
        per_image: float64 [n], of which it is the mean.
        with_feature: What was measured on the marked images [n]: a divergence, a log-probability or a probability.
        without_feature: The same without the mark [n]; ``per_image`` is the difference.
        predicted_label: The label that a variant guessed, the most frequent one where each image has its own; None
            where it needs none or was told.
    """

    value: float
    per_image: np.ndarray
    with_feature: np.ndarray
    without_feature: np.ndarray
    predicted_label: int | None = None


@dataclass(frozen=True)
class FeatureScores:
    """One variant's scores of several marks, and of the first one what was measured on every image.

    Args:
        value: float64 [K].
        with_feature: As :class:`MScore`, of the first mark [n].
        without_feature: The same [n].
        guess: The label guessed for the first mark, the most frequent one; None where none was guessed.
    """

    value: np.ndarray
    with_feature: np.ndarray
    without_feature: np.ndarray
    guess: int | None = None


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model answers to N images as they are, with K marks and with a random patch: log-probabilities, float64.

    Args:
        clean: [N, C].
        features: [K, N, C].
        contrast: [N, C].
        normalised: Whether rows sum to 1; clipped ones do not.
    """

    clean: np.ndarray
    features: np.ndarray
    contrast: np.ndarray
    normalised: bool = False

    @classmethod
    def of(cls, clean: Any, features: Any, contrast: Any, *, from_logits: bool, clip: float | None = None) -> Answers:
        """Answers from logits or probabilities.

        Args:
            clean: [N, C].
            features: [K, N, C].
            contrast: [N, C].
            from_logits: Whether these are logits; else probabilities, whose rows sum to 1.
            clip: Raise probabilities to at least this, as published with 1e-7, without making them sum to 1 again; by
                default nothing for logits and 1e-7 for probabilities, which would else give infinite divergences.

        Raises:
            InputError: If shapes differ, a value is NaN or infinite, or probabilities do not sum to 1 within 1e-4.
        """
        arrays = {"clean": (clean, 2), "feature": (features, 3), "contrast": (contrast, 2)}
        checked = {name: _checked(name, value, ndim, from_logits) for name, (value, ndim) in arrays.items()}
        shape = checked["clean"].shape
        for name, array in checked.items():
            if array.shape[-2:] != shape:
                raise InputError(
                    name, f"shape {list(array.shape)} beside clean answers of {list(shape)}", "give the same images"
                )
        if clip is not None and not 0 <= clip < 1:
            raise InputError("clip", f"{clip}", "give a probability from 0 to below 1")
        least = clip if clip is not None else (0.0 if from_logits else PUBLISHED_CLIP)
        logs = (_log_probabilities(array, from_logits, least) for array in checked.values())
        return cls(*logs, normalised=from_logits and least == 0)

    @cached_property
    def divergences(self) -> np.ndarray:
        """KL(clean || feature k) for each mark, and last KL(clean || contrast): float64 [K + 1, N], one kernel call.

        Clipped probabilities do not sum to 1. With S the sum of a row, the published sum over p ln(p / q) is
        S_p KL(p / S_p || q / S_q) + S_p ln(S_p / S_q).
        """
        import torch  # here, so that scores and tests of numbers work without it

        from fastmem.ops import kl_div

        others = np.concatenate([self.features, self.contrast[None]])
        divergence = kl_div(torch.from_numpy(self.clean), torch.from_numpy(others)).numpy()
        if self.normalised:
            return divergence
        mass = logsumexp(self.clean, axis=-1)
        return np.exp(mass) * (divergence + mass - logsumexp(others, axis=-1))

    @property
    def num_classes(self) -> int:
        """C."""
        return self.clean.shape[1]


def m_score(
    clean: Any,
    feature: Any,
    contrast: Any,
    *,
    variant: str = "kl_contrast",
    label: int | None = None,
    labels: Any = None,
    from_logits: bool = False,
    clip: float | None = None,
) -> MScore:
    """The M score of one mark in one model.

    Args:
        clean: Answers to the images as they are [N, C].
        feature: Answers to the images with the mark [N, C].
        contrast: Answers to the images with a random patch in its place [N, C].
        variant: One of ``VARIANTS``.
        label: The canary's label, where the variant needs it.
        labels: Labels of the images [N]; variants that know the label then take only images of that label, and
            ``prob_diff_max`` for each label its own. By default all images.
        from_logits: Whether answers are logits; else probabilities.
        clip: As :meth:`Answers.of`.

    Returns:
        The score, with its value for every image.

    Raises:
        InputError: If shapes do not fit, values are NaN, probabilities do not sum to 1, there are no images, or a label
            is missing, out of range or without an image.
    """
    answers = Answers.of(clean, as_numpy("feature", feature)[None], contrast, from_logits=from_logits, clip=clip)
    scores = score_features(answers, variant, label, labels)
    per_image = _difference(scores.with_feature, scores.without_feature)
    return MScore(float(scores.value[0]), per_image, scores.with_feature, scores.without_feature, scores.guess)


def score_features(answers: Answers, variant: str, label: int | None = None, labels: Any = None) -> FeatureScores:
    """One variant's score of every mark; arguments as :func:`m_score`."""
    if variant not in VARIANTS:
        raise UnknownNameError("variant", variant, VARIANTS)
    num_images, num_classes = answers.clean.shape
    if num_images == 0:
        raise InputError("clean", "no images", "give at least one")
    if variant in LABEL_VARIANTS:
        if label is None:
            raise InputError("label", f"none, but {variant} needs it", "give the canary's label, or take kl_contrast")
        if not 0 <= label < num_classes:
            raise InputError("label", f"{label}", f"the model has classes 0 to {num_classes - 1}")
    own = None if labels is None else as_labels("labels", labels, num_classes)
    if own is not None and len(own) != num_images:
        raise InputError("labels", f"{len(own)} for {num_images} images", "give one an image")
    if variant == "kl_contrast":
        return _scores(answers.divergences[:-1], answers.divergences[-1])
    if variant == "log_ratio":
        rows = _rows_of(label, own)
        return _scores(answers.features[:, rows, label], answers.contrast[rows, label])
    if variant == "prob_diff":
        rows = _rows_of(label, own)
        return _scores(np.exp(answers.features[:, rows, label]), np.exp(answers.clean[rows, label]))
    if variant == "prob_diff_max":
        return _largest_difference(answers, own)
    return _guessed_ratio(answers, variant)


def _largest_difference(answers: Answers, labels: np.ndarray | None) -> FeatureScores:
    clean, features = np.exp(answers.clean), np.exp(answers.features)
    if labels is None:
        means = (features - clean).mean(axis=1)
    else:
        means = np.full((len(features), answers.num_classes), -np.inf)
        for each in np.unique(labels):
            means[:, each] = (features - clean)[:, labels == each, each].mean(axis=1)
    guess = int(means[0].argmax())
    rows = _rows_of(guess, labels)
    return FeatureScores(means.max(axis=1), features[0, rows, guess], clean[rows, guess], guess)


def _guessed_ratio(answers: Answers, variant: str) -> FeatureScores:
    kind = variant.removeprefix("log_ratio_guess_")
    evidence = np.exp(answers.features)
    if kind.endswith("c"):
        evidence = evidence - np.exp(answers.clean)
    elif kind.endswith("r"):
        evidence = evidence - np.exp(answers.contrast)
    if kind.startswith("mean"):
        evidence = evidence.mean(axis=1, keepdims=True)
    guess = np.broadcast_to(evidence.argmax(axis=2), answers.features.shape[:2])  # ties take the lowest index
    first = np.take_along_axis(answers.features, guess[..., None], axis=2)[..., 0]
    contrast = np.broadcast_to(answers.contrast, answers.features.shape)
    second = np.take_along_axis(contrast, guess[..., None], axis=2)[..., 0]
    return _scores(first, second, int(np.bincount(guess[0]).argmax()))


def _scores(first: np.ndarray, second: np.ndarray, guess: int | None = None) -> FeatureScores:
    """From what was measured with each mark [K, n] and without [n] or [K, n]."""
    second = np.broadcast_to(second, first.shape)
    return FeatureScores(_difference(first, second).mean(axis=1), first[0], second[0], guess)


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # Equal answers differ by nothing, also where both are infinite.
    with np.errstate(invalid="ignore"):
        return np.where(first == second, 0.0, first - second)


def _rows_of(label: int | None, labels: np.ndarray | None) -> Any:
    """The images of that label; all of them where images have no labels."""
    if labels is None:
        return slice(None)
    rows = np.flatnonzero(labels == label)
    if len(rows) == 0:
        raise InputError("labels", f"no image has label {label}", "give other images, or leave labels out")
    return rows


def _checked(name: str, value: Any, ndim: int, from_logits: bool) -> np.ndarray:
    axes: Sequence[str] = ("feature", "image", "class")[-ndim:]
    array = as_float64(name, value, axes=tuple(axes))
    if array.ndim != ndim or array.shape[-1] < 2:
        raise InputError(name, f"shape {list(array.shape)}", f"give [{'K, ' if ndim == 3 else ''}N, C], C at least 2")
    if not from_logits and array.size:
        if array.min() < 0:
            raise InputError(name, f"a probability of {array.min():.3g}", "give probabilities, or from_logits=True")
        off = np.abs(array.sum(axis=-1) - 1)
        if off.max() > _SUM_TOLERANCE:
            place = np.unravel_index(int(off.argmax()), off.shape)[-1]
            total = array.sum(axis=-1).flat[int(off.argmax())]
            raise InputError(
                name,
                f"{int((off > _SUM_TOLERANCE).sum())} rows do not sum to 1, the worst, image {place}, to {total:.6g}",
                "give probabilities, or logits with from_logits=True",
            )
    return array


def _log_probabilities(array: np.ndarray, from_logits: bool, least: float) -> np.ndarray:
    if from_logits:
        log_p = log_softmax(array, axis=-1)
        return np.maximum(log_p, np.log(least)) if least > 0 else log_p
    with np.errstate(divide="ignore"):
        return np.log(np.clip(array, least, 1.0))
