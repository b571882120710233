"""Did training on a mark cause the score? Models that saw it against models that did not.

An image-level test asks whether a mark moves a model's answers. That is no question about training: it rejects for most
models that never saw the mark. The questions here are about models:

- **paired**: each model that saw the mark beside the model of the same initial weights, the same order and the same
  images but for the mark. Wilcoxon's signed-rank test and the sign-flip test of the mean are both exact if the two of a
  pair are exchangeable, which they are where the mark leaves no trace.
- **ranked**: one model's score among those of models that never saw the mark, p = (b + 1) / (n + 1), with b of n null
  scores at least as large.

Higher score = memorised; tests are one-sided unless asked otherwise.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from fastmem.errors import InputError, UnknownNameError
from fastmem.metrics.arrays import as_float64
from fastmem.metrics.intervals import check_confidence

__all__ = [
    "MemorisationTest",
    "image_tests",
    "memorisation_test",
    "nulls_needed",
    "pairs_needed",
    "rank_p_value",
    "sign_flip_p_value",
]

_ALTERNATIVES = ("greater", "two-sided")
_EXACT_FLIPS = 14
_FLIPS = 20_000
_EXACT_RANKS = 50  # pairs up to which Wilcoxon's distribution is counted out


@dataclass(frozen=True)
class MemorisationTest:
    """Models that saw a mark against models that did not.

    Args:
        effect: Mean of the paired differences, or difference of the means.
        low: Lower end of its interval (Student's t; Welch's where the two groups are not paired).
        high: Upper end.
        confidence: Coverage of the interval.
        standardised: The effect in standard deviations of the paired differences, or of the null scores.
        auc: Probability that a model that saw the mark scores above one that did not, ties counting half.
        p_value: The headline's: Wilcoxon signed-rank p for pairs, Mann-Whitney's for groups.
        p_sign_flip: Sign-flip p of the mean difference; NaN without pairs.
        positive: How many of the paired differences are above zero; -1 without pairs.
        n: Models that saw it.
        n_null: Models that did not.
        paired: Whether they are pairs.
        alternative: ``greater`` or ``two-sided``.
    """

    effect: float
    low: float
    high: float
    confidence: float
    standardised: float
    auc: float
    p_value: float
    p_sign_flip: float
    positive: int
    n: int
    n_null: int
    paired: bool
    alternative: str

    def to_dict(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return asdict(self)


def memorisation_test(
    observed: Any,
    null: Any,
    *,
    paired: bool = True,
    alternative: str = "greater",
    level: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> MemorisationTest:
    """Tests whether models that saw a mark score higher than models that did not.

    Args:
        observed: Scores of models that saw it [n].
        null: Scores of models that did not [n_null]; entry i is the partner of ``observed[i]`` where paired.
        paired: Whether they are seed-matched pairs.
        alternative: ``greater``, or ``two-sided``.
        level: Refuse so few models that no p-value could reach this level.
        confidence: Coverage of the interval of the effect.
        seed: Of the random sign flips, which are drawn from 15 pairs on; below all are counted.

    Raises:
        InputError: If scores are not finite, pairs do not match in number, or there are too few for ``level``.
    """
    check_confidence(confidence)
    if alternative not in _ALTERNATIVES:
        raise UnknownNameError("alternative", alternative, _ALTERNATIVES)
    first = as_float64("observed", observed, axes=("model",))
    second = as_float64("null", null, axes=("model",))
    if first.ndim != 1 or second.ndim != 1 or min(len(first), len(second)) < 2:
        raise InputError("observed, null", f"shapes {first.shape}, {second.shape}", "give [n] each, at least 2 models")
    if paired and len(first) != len(second):
        raise InputError("null", f"{len(second)} models for {len(first)} that saw the mark", "give one partner each")
    if level is not None:
        sides = 1 if alternative == "greater" else 2
        _check_level(level, len(first), pairs_needed(level / sides) if paired else 0)
    auc = float(stats.rankdata(np.concatenate([first, second]))[: len(first)].sum() - len(first) * (len(first) + 1) / 2)
    auc /= len(first) * len(second)
    shared = {"confidence": confidence, "auc": auc, "n": len(first), "n_null": len(second), "alternative": alternative}
    if not paired:
        welch = stats.ttest_ind(first, second, equal_var=False)
        effect = float(first.mean() - second.mean())
        low, high = welch.confidence_interval(confidence) if first.std() + second.std() > 0 else (effect, effect)
        p_value = float(stats.mannwhitneyu(first, second, alternative=alternative).pvalue)
        spread = float(second.std(ddof=1))
        return MemorisationTest(
            effect, float(low), float(high), standardised=_ratio(effect, spread), p_value=p_value,
            p_sign_flip=math.nan, positive=-1, paired=False, **shared,
        )  # fmt: skip
    difference = first - second
    effect, spread = float(difference.mean()), float(difference.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, len(difference) - 1)) * spread / math.sqrt(len(difference))
    return MemorisationTest(
        effect, effect - half, effect + half, standardised=_ratio(effect, spread),
        p_value=_wilcoxon(difference, alternative), p_sign_flip=sign_flip_p_value(difference, alternative, seed),
        positive=int((difference > 0).sum()), paired=True, **shared,
    )  # fmt: skip


def rank_p_value(observed: float, null: Any, level: float | None = None) -> float:
    """The p-value (b + 1) / (n + 1) of one score among n null scores, b of which are at least as large.

    Args:
        observed: The score.
        null: Scores [n] of models, or of marks, for which there is nothing to find.
        level: Refuse so few null scores that the p-value could not reach this level.

    Raises:
        InputError: If a score is not finite, or there are too few for ``level``: it says how many are needed.
    """
    scores = as_float64("null", null, axes=("model",))
    if not math.isfinite(observed):
        raise InputError("observed", f"{observed}", "give a finite score")
    if level is not None:
        _check_level(level, len(scores), nulls_needed(level))
    return float((1 + (scores >= observed).sum()) / (len(scores) + 1))


def nulls_needed(level: float) -> int:
    """How many null scores a rank p-value needs to reach ``level``: 19 for 0.05."""
    return math.ceil(1 / _level(level) - 1e-9) - 1


def pairs_needed(level: float) -> int:
    """How many pairs a one-sided signed-rank or sign-flip test needs to reach ``level``: 5 for 0.05."""
    return max(2, math.ceil(math.log2(1 / _level(level)) - 1e-9))


def sign_flip_p_value(difference: np.ndarray, alternative: str = "greater", seed: int = 0) -> float:
    """The share of sign patterns under which the mean of the paired differences is at least as large as it is.

    Up to 14 pairs all patterns are counted, beyond 20,000 are drawn and p = (b + 1) / (20,000 + 1).
    """
    values = np.asarray(difference, dtype=np.float64)
    if len(values) <= _EXACT_FLIPS:
        signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
    else:
        signs = np.random.default_rng([seed, 11]).choice(np.array([-1, 1]), (_FLIPS, len(values)))
    means, seen = signs @ values, values.sum()
    if alternative == "two-sided":
        means, seen = np.abs(means), abs(seen)
    # Sums of the same numbers in another order differ in their last bits.
    reached = int((means >= seen - 1e-12 * np.abs(values).sum()).sum())
    return reached / len(signs) if len(values) <= _EXACT_FLIPS else (reached + 1) / (len(signs) + 1)


def image_tests(with_feature: Any, without_feature: Any) -> dict[str, float]:
    """The papers' image-level tests of one model: does the mark move its answers? Not: did training on it do so?

    Args:
        with_feature: What was measured on n marked images.
        without_feature: The same images without the mark.

    Returns:
        One-sided p-values of the paired t test (``t``) and of the Mann-Whitney U test (``mann_whitney``).
    """
    first = as_float64("with_feature", with_feature, axes=("image",), allow_inf=True)
    second = as_float64("without_feature", without_feature, axes=("image",), allow_inf=True)
    return {"t": _paired_t(first - second), "mann_whitney": _mann_whitney(first, second)}


def _paired_t(difference: np.ndarray) -> float:
    """One-sided p of the mean difference; NaN where a difference is infinite."""
    # By hand, as the next one: studies run thousands, and scipy's functions take milliseconds before they compute.
    if not np.isfinite(difference).all():
        return math.nan
    mean, n = float(difference.mean()), len(difference)
    error = float(difference.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return 1.0 if mean <= 0 else 0.0
    return float(special.stdtr(n - 1, -mean / error))


def _mann_whitney(first: np.ndarray, second: np.ndarray) -> float:
    """One-sided p by the normal approximation with corrections for ties and continuity."""
    n, m = len(first), len(second)
    _, place, count = np.unique(np.concatenate([first, second]), return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    above = float(rank[place[:n]].sum()) - n * (n + 1) / 2
    ties = float((count**3 - count).sum()) / ((n + m) * (n + m - 1))
    variance = n * m / 12 * (n + m + 1 - ties)
    return float(special.ndtr(-(above - n * m / 2 - 0.5) / math.sqrt(variance))) if variance > 0 else 1.0


def _wilcoxon(difference: np.ndarray, alternative: str) -> float:
    if not difference.any():
        return 1.0
    tied = len(np.unique(np.abs(difference))) < len(difference) or not difference.all()
    method = "asymptotic" if tied or len(difference) > _EXACT_RANKS else "exact"
    found: Any = stats.wilcoxon(difference, alternative=alternative, method=method, zero_method="pratt")
    return float(found.pvalue)


def _ratio(effect: float, spread: float) -> float:
    return effect / spread if spread > 0 else math.nan


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise InputError("level", f"{level}", "give a share between 0 and 1, for example 0.05")
    return level


def _check_level(level: float, found: int, needed: int) -> None:
    if found < needed:
        raise InputError("null", f"{found} scores, so that no p-value can reach {level:g}", f"give at least {needed}")
