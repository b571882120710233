"""The answer of a few-shot study in one sentence, and what its reader must be warned of.

The method and the number of shots that the sentence names are fixed before any result: the first of a fixed order, at the
middle number of shots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastmem.report.tables import percent

__all__ = ["HEADLINE_RULE", "answer_sentence", "few_shot_warnings", "headline"]

HEADLINE_RULE = (
    "the first method asked for of LaplacianShot, SimpleShot, TIM, fine-tuning, at the middle number of shots"
)
_ORDER = ("laplacian", "simpleshot", "tim", "finetune", "finetune_head")
# A mean is called above chance at one in a thousand: a study shows dozens of them.
_SIGNIFICANT = 0.001
_OFF_CHANCE = 3.29

Variants = Mapping[str, Mapping[str, Any]]


def headline(variants: Variants) -> tuple[str, str]:
    """Method and number of shots that the answer speaks of."""
    method = next(key for key in _ORDER if key in variants)
    shots = sorted(variants[method]["shots"], key=int)
    return method, shots[len(shots) // 2]


def answer_sentence(variants: Variants) -> str:
    """What the study found."""
    method, shots = headline(variants)
    entry = variants[method]
    table = entry["shots"][shots]
    strict, tpr = table["strict"], table["strict"]["tpr"]
    found = (
        f"an attacker who knows {table['n_labels']} records ({shots} of each kind to learn from, the rest to tune on) finds "
        f"{percent(tpr['mean'])} of the members asked about without a false alarm by {entry['title']} "
        f"({percent(tpr['low'], unit=False)}-{percent(tpr['high'])} over {table['episodes']} episodes; "
        f"guessing {percent(strict['tpr_chance'])}"
    )
    blind = entry["controls"].get("blind", {}).get(shots)
    if blind is not None:
        found += f"; a model that never saw them {percent(blind['strict']['tpr']['mean'])}"
    found += ")"
    if strict["p_value"] > _SIGNIFICANT or strict["adjusted"] <= 0:
        return f"No leak was found: {found}. Another attack, or one with shadow models, may still find some."
    return f"This model leaks to few examples: {found}; chance-adjusted Log-MIA {strict['adjusted']:.3f}."


def few_shot_warnings(variants: Variants, members: int, others: int) -> list[str]:
    """A sentence for each control that is off chance by more than luck explains."""
    warnings = []
    # Members and non-members differ a little by the luck of the one draw that all episodes share.
    split = math.sqrt((1 / members + 1 / others) / 12)
    for entry in variants.values():
        for name, by_shots in entry["controls"].items():
            for shots, table in by_shots.items():
                auc = table["auc"]
                error = (auc["high"] - auc["low"]) / 2 / 1.96
                if name == "blind":
                    error = math.hypot(error, split)
                if abs(auc["mean"] - 0.5) > _OFF_CHANCE * error:
                    warnings.append(
                        f"{entry['title']} with {shots} shots: the control '{name}' has AUC {auc['mean']:.3f} where there is "
                        "nothing to find"
                        + (
                            "; members and non-members differ by themselves, whatever the model"
                            if name == "blind"
                            else ""
                        )
                    )
    if min(members, others) < 100:
        warnings.append(
            f"{members} members and {others} non-members: episodes draw the same records again and again, and say little "
            "about others"
        )
    return warnings
