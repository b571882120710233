"""The answer in one sentence: what an attacker finds, beside chance and beside the control, and what that means.

Which attack the sentence names is decided by a fixed order, not by the results: picking the best of many after the
fact would overstate what an attacker who must choose beforehand can do. Where another attack found more, it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmem.report.tables import percent

__all__ = ["HEADLINE_RULE", "answer_sentence", "control_warnings", "headline_key", "strongest_key"]

HEADLINE_RULE = (
    "the first attack that was run of: LiRA online (with a fixed variance below 64 models), RMIA online, BASE online, "
    "the offline forms, calibrated loss, reference, population, loss"
)
_ORDER = (
    "rmia_online",
    "base_online",
    "lira_offline_cdf_fixed",
    "lira_offline_cdf",
    "rmia_offline",
    "calibrated",
    "reference",
    "population",
    "loss",
)
_MANY_MODELS = 64
_LEVEL = "0.01"
# A TPR of three times chance is more than a leak that only statistics can see.
_MEMORISES = 3.0
# 95% intervals miss in 1 of 20 cases by luck, and an audit shows dozens: a control is called off chance only where
# it is as unlikely as one in a thousand.
_OFF_CHANCE = 3.29 / 1.96

Attacks = Mapping[str, Mapping[str, Any]]


def headline_key(attacks: Attacks, num_models: int) -> str:
    """The attack that the answer speaks of, by a rule that does not look at results."""
    lira = ("lira_online", "lira_online_fixed")
    order = (*(lira if num_models >= _MANY_MODELS else lira[::-1]), *_ORDER)
    return next((key for key in order if key in attacks), next(iter(attacks)))


def strongest_key(attacks: Attacks) -> str:
    """The attack with the highest pooled TPR at 1% FPR where that can be resolved, then the highest AUC."""

    def strength(key: str) -> tuple[float, float]:
        level = attacks[key]["tpr_at_fpr"][_LEVEL]
        return (level["tpr"] if level["resolvable"] else -1.0, attacks[key]["auc"])

    return max(attacks, key=strength)


def answer_sentence(attacks: Attacks, num_models: int, needs_references: Mapping[str, bool]) -> str:
    """What the audit found.

    Args:
        attacks: The ``attacks`` entry of the summary.
        num_models: M, the target included.
        needs_references: For each attack, whether it compares with other models.
    """
    key = headline_key(attacks, num_models)
    entry = attacks[key]
    helpers = f"with {num_models - 1} shadow models" if needs_references[key] else "without shadow models"
    level = entry["tpr_at_fpr"][_LEVEL]
    if not level["resolvable"]:
        reason = level.get("unresolved") or "there are too few records"
        return _answer_by_auc(entry, helpers, f"1% false positives cannot be resolved: {reason}")
    found = (
        f"{percent(level['tpr'])} of the training records ({_span(level)}) at {percent(level['realised_fpr'])} false "
        f"positives"
    )
    if level["low"] <= level["realised_fpr"]:
        return _answer_by_auc(entry, helpers, f"it names {found}, which may be chance")
    verdict = (
        "this model memorises" if level["tpr"] >= _MEMORISES * level["realised_fpr"] else "this model leaks a little"
    )
    beside = _beside(attacks, key, level)
    return f"An attacker {helpers} names {found} by {entry['title']} ({beside}): {verdict}."


def control_warnings(attacks: Attacks) -> list[str]:
    """A sentence for each control that is off chance by more than luck explains."""
    warnings = []
    for entry in attacks.values():
        for name, control in entry["controls"].items():
            half = (control["auc_high"] - control["auc_low"]) / 2
            if abs(control["auc"] - 0.5) > _OFF_CHANCE * half:
                warnings.append(
                    f"{entry['title']}: the control '{name.replace('_', ' ')}' has AUC {control['auc']:.3f} "
                    f"({control['auc_low']:.3f}-{control['auc_high']:.3f}) where there is nothing to find; do not trust "
                    "this attack here"
                )
    return warnings


def _beside(attacks: Attacks, key: str, level: Mapping[str, Any]) -> str:
    parts = [f"chance {percent(level['realised_fpr'])}"]
    for name, words in (("shuffled", "shuffled membership"), ("never_saw", "models that never saw them")):
        control = attacks[key]["controls"].get(name)
        if control is not None:
            parts.append(f"{words} {percent(control['tpr_at_fpr'][_LEVEL]['tpr'])}")
    best = strongest_key(attacks)
    if best != key:
        parts.append(
            f"strongest of {len(attacks)} attacks {percent(attacks[best]['tpr_at_fpr'][_LEVEL]['tpr'])}, "
            f"{attacks[best]['title']}"
        )
    return "; ".join(parts)


def _answer_by_auc(entry: Mapping[str, Any], helpers: str, caveat: str) -> str:
    """What can be said where few false positives say nothing: how well the attack ranks."""
    found = (
        f"an attacker {helpers} ranks a training record above another record with probability {entry['auc']:.3f} "
        f"({entry['auc_low']:.3f}-{entry['auc_high']:.3f}) by {entry['title']}, chance 0.5"
    )
    if entry["auc_low"] <= 0.5:
        return f"No memorisation was found: {found}; {caveat}. A stronger attack or more models may still find some."
    return f"{found[0].upper()}{found[1:]}: this model leaks; {caveat}."


def _span(level: Mapping[str, Any]) -> str:
    return f"{percent(level['low'], unit=False)}-{percent(level['high'])}"
