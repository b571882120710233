"""Do two rankings of a network's weights pick the same ones? Correlations and the overlap of their tops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from fastmem.errors import InputError

__all__ = ["Agreement", "agreement", "entanglement"]


@dataclass(frozen=True)
class Agreement:
    """How alike two scores of the same weights are.

    Attributes:
        count: Weights.
        pearson: Of the scores; NaN where one is constant.
        pearson_log: Of their logarithms, where both are above 0.
        spearman: Of their ranks.
        top: How many weights are in each top.
        overlap: Share of one top that is in the other.
        overlap_chance: Its mean for unrelated scores.
        jaccard: The tops' common weights over all that are in either.
    """

    count: int
    pearson: float
    pearson_log: float
    spearman: float
    top: int
    overlap: float
    overlap_chance: float
    jaccard: float

    def to_dict(self) -> dict[str, Any]:
        """Numbers for JSON."""
        return asdict(self)


def agreement(a: np.ndarray, b: np.ndarray, top: float = 0.01) -> Agreement:
    """Compares two scores.

    Args:
        a: Scores [n], not negative.
        b: Scores of the same weights [n].
        top: Share of the weights that makes a top, above 0 and at most 1.

    Raises:
        InputError: Lengths differ or are 0, a score is negative or not finite, or ``top`` is out of range.
    """
    first, second = (np.asarray(values, np.float64).ravel() for values in (a, b))
    if len(first) != len(second) or not len(first):
        raise InputError("a, b", f"{len(first)} and {len(second)} scores", "give the same number, at least 1")
    if not 0 < top <= 1:
        raise InputError("top", f"{top}", "give a share above 0 and at most 1")
    for name, values in (("a", first), ("b", second)):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise InputError(name, "negative, NaN or infinite scores", "give importance scores, from 0 up")
    size = max(1, int(top * len(first)))
    tops = [np.argsort(-values, kind="stable")[:size] for values in (first, second)]
    common = len(np.intersect1d(*tops, assume_unique=True))
    both = (first > 0) & (second > 0)
    return Agreement(
        len(first),
        _correlation(first, second),
        _correlation(np.log(first[both]), np.log(second[both])),
        _correlation(rankdata(first), rankdata(second)),
        size,
        common / size,
        size / len(first),
        common / (2 * size - common),
    )


def entanglement(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], kinds: Mapping[str, str], top: float = 0.01
) -> dict[str, Agreement]:
    """Compares two scores of a network's weights, by kind of layer.

    Args:
        a: Scores by parameter name.
        b: Scores of the same parameters.
        kinds: Kind of layer of each parameter (:func:`fastmem.defenses.eligible_weights`).
        top: As for :func:`agreement`; each kind has a top of its own.

    Returns:
        ``all``, and each kind that occurs.

    Raises:
        InputError: As :func:`agreement`, or names differ.
    """
    if not set(a) == set(b) == set(kinds):
        odd = sorted((set(a) ^ set(b)) | (set(a) ^ set(kinds)))
        raise InputError("a, b, kinds", f"{odd[0]!r} is not in all", "give the same parameters")
    groups = {
        "all": list(kinds),
        **{kind: [n for n in kinds if kinds[n] == kind] for kind in dict.fromkeys(kinds.values())},
    }
    return {
        group: agreement(*(np.concatenate([np.ravel(scores[name]) for name in names]) for scores in (a, b)), top=top)
        for group, names in groups.items()
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
