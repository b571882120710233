"""Log-MIA: true positives at zero or very few false positives on a logarithmic scale (Jimenez-Lopez et al. 2025).

With N1 members and N0 non-members, all logarithms natural, higher score = more likely a member,

    strict   ln(1 + max{TP : FP = 0}) / ln(1 + N1)
    regular  ln(1 + max{TP : FP <= c}) / ln(1 + N1),    c = ceil(ln(N1 + N0))          (arXiv:2503.09365)

The scale magnifies by design, and its value by chance is far from zero (0.18 and 0.59 at 15 + 15 records), which the
published measure does not correct. So every value comes with its exact null (:mod:`fastmem.metrics.log_mia_null`): the
chance mean L0, the count that chance reaches in 5% of cases, an exact p-value, and (L - L0) / (1 - L0). No words are
attached to ranges of the value: neither the paper's text nor its code fixes any.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastmem.errors import InputError
from fastmem.metrics.intervals import clopper_pearson
from fastmem.metrics.log_mia_null import Null, accepted_null, null_of
from fastmem.metrics.roc import check_scores

__all__ = ["LogMia", "LogMiaValue", "Sweep", "log_mia", "log_mia_over_targets", "regular_cap"]


@dataclass(frozen=True)
class LogMiaValue:
    """One regime of Log-MIA, with its null.

    Args:
        raw: ln(1 + tp) / ln(1 + n_in).
        tp: Members called members.
        fp: Non-members called members.
        fp_cap: False positives that are allowed; a threshold from held-out scores may exceed it.
        fpr: fp / n_out.
        tpr: tp / n_in.
        low: Lower end of the Clopper-Pearson 95% interval of ``tpr``.
        high: Its upper end.
        threshold: Called members are those with score >= threshold; +inf where nobody is.
        chance_mean: Mean of ``raw`` when membership is independent of the scores, ties as they are.
        chance_sd: Its standard deviation.
        critical: The smallest tp that chance reaches in at most 5% of cases (n_in + 1: none).
        critical_raw: ln(1 + critical) / ln(1 + n_in).
        adjusted: (raw - chance_mean) / (1 - chance_mean): 0 at chance, 1 when all members are found; not cut at 0.
        p_value: Probability of at least ``tp`` by chance.
        n_in: Members.
        n_out: Non-members.
        oracle: Whether the threshold was chosen on these scores themselves, which no attacker can do.
        note: What a reader must know; mostly empty.
    """

    raw: float
    tp: int
    fp: int
    fp_cap: int
    fpr: float
    tpr: float
    low: float
    high: float
    threshold: float
    chance_mean: float
    chance_sd: float
    critical: int
    critical_raw: float
    adjusted: float
    p_value: float
    n_in: int
    n_out: int
    oracle: bool
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; an infinite threshold, which JSON lacks, becomes None."""
        return {**asdict(self), "threshold": self.threshold if math.isfinite(self.threshold) else None}


@dataclass(frozen=True)
class LogMia:
    """Log-MIA of one set of scores.

    Args:
        strict: No false positive (regime A of the paper).
        regular: At most ceil(ln(n_in + n_out)) false positives (regime B).
        custom: At most ``fp_cap``, where that was given.
    """

    strict: LogMiaValue
    regular: LogMiaValue
    custom: LogMiaValue | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        regimes = {"strict": self.strict, "regular": self.regular, "custom": self.custom}
        return {name: value.to_dict() for name, value in regimes.items() if value is not None}


def log_mia(
    scores: Any, members: Any, *, fp_cap: int | None = None, threshold_from: tuple[Any, Any] | None = None
) -> LogMia:
    """Log-MIA in both regimes, each beside its chance level.

    By default the threshold is read off the evaluated scores themselves, as published: an oracle, which no attacker
    has. With ``threshold_from`` it comes from held-out records, and the null is that of as many accepted records.

    Args:
        scores: Numbers [N], higher = more likely a member; tied scores are accepted together or not at all.
        members: bool [N].
        fp_cap: A further cap on the false positives, for ``.custom``.
        threshold_from: ``(scores, members)`` of held-out records; on them the thresholds are chosen at the same cap,
            for ``regular`` at the cap of their own number.

    Returns:
        ``.strict``, ``.regular`` and, with ``fp_cap``, ``.custom``.

    Raises:
        InputError: For NaN scores, a mask that is not boolean or holds one class only, or a negative cap.

    Example:
        >>> import numpy as np
        >>> value = log_mia([5.0, 4.0, 3.0, 2.0], np.array([True, True, False, True])).strict
        >>> value.tp, round(value.raw, 3), round(value.chance_mean, 3), value.p_value
        (2, 0.792, 0.573, 0.5)
    """
    score_array, mask = check_scores(scores, members, axes=("sample",))
    if fp_cap is not None and (isinstance(fp_cap, bool) or fp_cap != int(fp_cap) or fp_cap < 0):
        raise InputError("fp_cap", f"{fp_cap}", "give a whole number, at least 0")
    sweep = Sweep(score_array[None], mask[None])
    caps = {"strict": 0, "regular": regular_cap(len(mask)), "custom": fp_cap}
    held_out_caps = dict(caps)
    held_out = None
    if threshold_from is not None:
        held_scores, held_mask = check_scores(*threshold_from, axes=("sample",))
        held_out = Sweep(held_scores[None], held_mask[None])
        held_out_caps["regular"] = regular_cap(len(held_mask))
    values = {}
    for name, cap in caps.items():
        if cap is None:
            continue
        if held_out is None:
            values[name] = _oracle(sweep, cap)
        else:
            chosen = held_out.at(held_out_caps[name] or 0).threshold[0]
            values[name] = _held_out(score_array, mask, float(chosen), cap)
    return LogMia(**values)


def regular_cap(records: int) -> int:
    """False positives that the regular regime allows among this many records, both kinds: ceil(ln d)."""
    return math.ceil(math.log(records))


@dataclass(frozen=True)
class _Best:
    """The most true positives at a cap, row by row: counts and threshold, each [E]."""

    tp: np.ndarray
    fp: np.ndarray
    threshold: np.ndarray


class Sweep:
    """Every threshold of several independent sets of scores at once.

    Args:
        scores: float64 [E, n], a set a row.
        members: bool [E, n].
    """

    def __init__(self, scores: np.ndarray, members: np.ndarray) -> None:
        order = np.argsort(-scores, axis=1, kind="stable")
        self._scores = np.take_along_axis(scores, order, axis=1)
        sorted_members = np.take_along_axis(members, order, axis=1)
        self._tp = sorted_members.cumsum(axis=1)
        self._fp = (~sorted_members).cumsum(axis=1)
        self._last = np.ones(scores.shape, dtype=bool)  # the last of each tie: where a threshold can be
        self._last[:, :-1] = self._scores[:, 1:] != self._scores[:, :-1]

    @property
    def n_in(self) -> np.ndarray:
        """Members of each set [E]."""
        return self._tp[:, -1]

    @property
    def n_out(self) -> np.ndarray:
        """Non-members of each set [E]."""
        return self._fp[:, -1]

    def at(self, cap: int) -> _Best:
        """The most true positives with at most ``cap`` false ones, and the fewest false ones among those."""
        tp = np.where(self._last & (self._fp <= cap), self._tp, 0)
        place = tp.argmax(axis=1)[:, None]  # the first of equals has the fewest false positives
        best = np.take_along_axis(tp, place, axis=1)
        some = best > 0
        fp = np.where(some, np.take_along_axis(self._fp, place, axis=1), 0)
        threshold = np.where(some, np.take_along_axis(self._scores, place, axis=1), np.inf)
        return _Best(best[:, 0], fp[:, 0], threshold[:, 0])

    def auc(self) -> np.ndarray:
        """The area under each step curve [E], ties count one half."""
        area = np.zeros(len(self._tp))
        for row, (tp, fp, last) in enumerate(zip(self._tp, self._fp, self._last, strict=True)):
            true, false = np.append(0, tp[last]), np.append(0, fp[last])
            area[row] = np.diff(false) @ (true[1:] + true[:-1]) / (2 * true[-1] * false[-1])
        return area

    def nulls(self, cap: int) -> list[Null]:
        """The exact null of each set, its ties as they are."""
        found = []
        for last, n_in, n_out in zip(self._last, self.n_in, self.n_out, strict=True):
            ties = None if last.all() else np.diff(np.flatnonzero(last), prepend=-1)
            found.append(null_of(int(n_in), int(n_out), cap, ties))
        return found


def _oracle(sweep: Sweep, cap: int) -> LogMiaValue:
    best = sweep.at(cap)
    note = ""
    if cap >= sweep.n_out[0]:
        note = f"the cap of {cap} admits every non-member, so every member is found whatever the scores"
    counts = int(best.tp[0]), int(best.fp[0]), int(sweep.n_in[0]), int(sweep.n_out[0])
    return _value(*counts, cap, float(best.threshold[0]), sweep.nulls(cap)[0], True, note)


def _held_out(scores: np.ndarray, members: np.ndarray, threshold: float, cap: int) -> LogMiaValue:
    accepted = scores >= threshold
    tp, fp = int((accepted & members).sum()), int((accepted & ~members).sum())
    n_in, n_out = int(members.sum()), int((~members).sum())
    note = f"the held-out threshold lets {fp} false positives through, more than {cap}" if fp > cap else ""
    return _value(tp, fp, n_in, n_out, cap, threshold, accepted_null(n_in, n_out, tp + fp), False, note)


def _value(
    tp: int, fp: int, n_in: int, n_out: int, cap: int, threshold: float, null: Null, oracle: bool, note: str
) -> LogMiaValue:
    scale = math.log1p(n_in)
    raw = math.log1p(tp) / scale
    low, high = clopper_pearson(tp, n_in)
    return LogMiaValue(
        raw=raw,
        tp=tp,
        fp=fp,
        fp_cap=cap,
        fpr=fp / n_out,
        tpr=tp / n_in,
        low=float(low),
        high=float(high),
        threshold=threshold,
        chance_mean=null.mean,
        chance_sd=null.sd,
        critical=null.critical,
        critical_raw=math.log1p(null.critical) / scale,
        adjusted=adjust(raw, null.mean),
        p_value=null.p_value(tp),
        n_in=n_in,
        n_out=n_out,
        oracle=oracle,
        note=note,
    )


def adjust(raw: float, chance: float) -> float:
    """(L - L0) / (1 - L0); 0 where chance already finds everything."""
    return (raw - chance) / (1 - chance) if chance < 1 else 0.0


def log_mia_over_targets(scores: Any, members: Any) -> dict[str, Any]:
    """Log-MIA of each of several targets, summarised; the oracle threshold of each target is its own.

    Targets share records, so their values are not independent: the mean has no p-value, but the share of targets that
    reach their critical count can be held against 5%.

    Args:
        scores: Numbers [T, N], higher = more likely a member.
        members: bool [T, N].

    Returns:
        For ``strict`` and ``regular``: over targets the means of ``raw``, ``tp``, ``fpr``, ``n_in``, ``n_out``,
        ``chance_mean``, ``critical`` and ``adjusted``, their ``fp_cap``, the median ``p_value``, the share
        ``above_chance`` of targets with p <= 0.05, and the number of ``targets``.

    Raises:
        InputError: As :func:`log_mia`.
    """
    score_array, mask = check_scores(scores, members, axes=("target", "record"))
    sweep = Sweep(score_array, mask)
    summary: dict[str, Any] = {}
    for name, cap in (("strict", 0), ("regular", regular_cap(mask.shape[1]))):
        best, nulls = sweep.at(cap), sweep.nulls(cap)
        raw = np.log1p(best.tp) / np.log1p(sweep.n_in)
        chance = np.array([null.mean for null in nulls])
        p_values = np.array([null.p_value(int(tp)) for null, tp in zip(nulls, best.tp, strict=True)])
        summary[name] = {
            "raw": float(raw.mean()),
            "tp": float(best.tp.mean()),
            "fp_cap": cap,
            "fpr": float((best.fp / sweep.n_out).mean()),
            "n_in": float(sweep.n_in.mean()),
            "n_out": float(sweep.n_out.mean()),
            "chance_mean": float(chance.mean()),
            "critical": float(np.mean([null.critical for null in nulls])),
            "adjusted": float(np.mean([adjust(*pair) for pair in zip(raw, chance, strict=True)])),
            "p_value": float(np.median(p_values)),
            "above_chance": float((p_values <= 0.05).mean()),
            "targets": len(raw),
        }
    return summary
