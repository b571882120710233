"""The answer in one sentence, and what a reader must be warned of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmem.report.tables import count, fixed, percent
from fastmem.studies.trust.config import TrustConfig

__all__ = ["answer_sentence", "trust_warnings"]

# 95% intervals miss in 1 of 20 cases by luck: a control is called off chance only where that is as unlikely as one in a
# thousand.
_OFF_CHANCE = 3.29 / 1.96
_MANY_TIES = 0.1


def answer_sentence(calibrations: Mapping[str, Any], sets: Mapping[str, Any], stream: Mapping[str, Any] | None) -> str:
    """What the study found, by the published maximum-probability attack on the uncalibrated model.

    Args:
        calibrations: The ``calibrations`` of the summary.
        sets: Its ``sets``.
        stream: Its ``stream``, if fakes were drawn.
    """
    attack = calibrations["none"]["attacks"]["max_prob"]
    test = attack["sets"]["test"]
    others = {name: entry["fpr"]["mean"] for name, entry in attack["sets"].items() if name != "test"}
    parts = [
        f"The maximum-probability attack calls {percent(attack['recall']['mean'])} of the members members, and "
        f"{percent(test['fpr']['mean'])} of test records that it never saw (AUC {fixed(test['auc']['mean'])}, chance 0.5)"
    ]
    if others:
        worst = max(others, key=lambda name: others[name])
        parts.append(f"of the set '{sets[worst]['title'].lower()}' it accuses {percent(others[worst])}")
    if stream and stream["found"]:
        parts.append(
            f"{count(stream['drawn'])} generated images gave {count(stream['found'])} false members, "
            f"{percent(stream['rate'])} of those drawn"
        )
    return "; ".join(parts) + "."


def trust_warnings(calibrations: Mapping[str, Any], untrained: Mapping[str, Any], config: TrustConfig) -> list[str]:
    """Sentences on controls off chance, ties, thresholds that call nobody, and too little data."""
    warnings = []
    for calibration in calibrations.values():
        where = calibration["title"]
        for attack in calibration["attacks"].values():
            for name, areas in attack["controls"].items():
                off = [area for area in areas if _off_chance(area)]
                if off:
                    warnings.append(
                        f"{where}, {attack['title']}: the control '{name.replace('_', ' ')}' has AUC "
                        f"{fixed(off[0]['auc'])} where there is nothing to find, in {len(off)} of {len(areas)} targets"
                    )
            if attack["recall"]["mean"] == 0:
                warnings.append(
                    f"{where}, {attack['title']}: the rule calls no member a member; with scores that equal the "
                    f"threshold it calls {percent(attack['recall_with_ties']['mean'])}"
                )
        tied = calibration["attacks"]["max_prob"]["sets"]["test"]["tied"]
        if tied > _MANY_TIES:
            warnings.append(
                f"{where}: {percent(tied)} of the largest probabilities are tied (most of them exactly 1 in float32), so "
                "whether ties count as members decides the rates"
            )
    for key, sets in untrained["sets"].items():
        if _off_chance(sets["test"]):
            warnings.append(f"untrained target: {key} has AUC {fixed(sets['test']['auc'])} on test records")
    for name, area in untrained["alike"].items():
        if _off_chance(area):
            warnings.append(
                f"untrained target: members and test records, both {name}, are told apart with AUC {fixed(area['auc'])}"
            )
    if config.num_models == 2:
        warnings.append("one pair of models: nothing here shows how much a figure varies from model to model")
    return warnings


def _off_chance(area: Mapping[str, float]) -> bool:
    half = (area["auc_high"] - area["auc_low"]) / 2
    return abs(area["auc"] - 0.5) > _OFF_CHANCE * half
