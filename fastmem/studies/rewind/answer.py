"""The answer in one sentence, whether the published ordering holds, and what a reader must be warned of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmem.report.tables import fixed, percent, signed
from fastmem.studies.answer import control_warnings
from fastmem.studies.rewind.config import RewindConfig
from fastmem.studies.rewind.evaluate import ArmOutcome, difference

__all__ = ["HEADLINE", "answer_sentence", "headline_attack", "ordering", "rewind_warnings"]

#: The order in which an attack becomes the one that the answer speaks of.
HEADLINE = ("lira_online_fixed", "lira_online", "rmia_online", "lira_offline_cdf_fixed", "rmia_offline", "loss")
# Right answers beyond chance on its own records, as a share of all there could be.
_LITTLE = 0.2


def headline_attack(attacks: Mapping[str, Any]) -> str:
    """The attack that the answer speaks of, by a rule that does not look at results."""
    return next((key for key in HEADLINE if key in attacks), next(iter(attacks)))


def ordering(outcomes: Mapping[str, ArmOutcome], config: RewindConfig) -> list[dict[str, Any]]:
    """The claims of the paper that can be asked of these arms, each with its difference over models.

    Returns:
        For each: the claim, both arms, the figure (AUC of the headline attack, or accuracy), the difference with its
        interval, and ``holds``: true, false, or null where the interval holds 0.
    """
    cwrf = f"cwrf_{config.control_fraction:g}"
    if cwrf not in outcomes:
        cwrf = next((key for key in outcomes if key.startswith("cwrf_")), cwrf)
    fraction = f"{outcomes[cwrf].entry['fraction']:g}" if cwrf in outcomes else ""
    base = "tune_only" if "tune_only" in outcomes else "tune"
    claims = [
        ("Fine-tuning with the defence alone lowers what is found", base, "none", "auc", -1),
        ("RelaxLoss from scratch lowers what is found", "relaxloss", "none", "auc", -1),
        ("CWRF finds less than no defence", cwrf, "none", "auc", -1),
        ("CWRF finds less than RelaxLoss from scratch", cwrf, "relaxloss", "auc", -1),
        ("CWRF finds less than the same tuning without rewinding", cwrf, base, "auc", -1),
        ("CWRF finds less than rewinding random weights", cwrf, f"random_{fraction}", "auc", -1),
        ("CWRF finds less than ranking by learnability", cwrf, f"tfo_{fraction}", "auc", -1),
        ("CWRF finds less than a ranking that saw no member", cwrf, f"kl_only_{fraction}", "auc", -1),
        ("CWRF is more accurate than tuning the rewound weights alone (A2)", cwrf, f"rewind_tune_{fraction}", "acc", 1),
        ("CWRF is more accurate than zeroing (A1)", cwrf, f"zero_tune_{fraction}", "acc", 1),
        ("CWRF is as accurate as the same tuning without rewinding, or more", cwrf, base, "acc", 1),
    ]
    found = []
    for claim, a, b, figure, sign in claims:
        if a not in outcomes or b not in outcomes:
            continue
        attack = headline_attack(outcomes[a].auc)
        values = [outcomes[key].auc[attack] if figure == "auc" else outcomes[key].accuracy for key in (a, b)]
        gap = difference(*values)
        sure = np.isfinite(gap["low"]) and (gap["low"] > 0 or gap["high"] < 0)
        holds = bool(np.sign(gap["mean"]) == sign) if sure else None
        found.append({"claim": claim, "a": a, "b": b, "figure": figure, **gap, "holds": holds})
    return found


def answer_sentence(outcomes: Mapping[str, ArmOutcome], claims: list[dict[str, Any]]) -> str:
    """What was found, by the headline attack."""
    attack = headline_attack(outcomes["none"].auc)
    title = outcomes["none"].entry["attacks"][attack]["title"]
    parts = [f"{title} has AUC {_area(outcomes['none'], attack)} on the undefended models (chance 0.5)"]
    rewound = next(
        (
            claim
            for claim in claims
            if claim["b"] in ("tune_only", "tune") and claim["figure"] == "auc" and claim["a"].startswith("cwrf")
        ),
        None,
    )
    key = rewound["a"] if rewound else next((key for key in outcomes if key.startswith("cwrf_")), None)
    if key is not None:
        accuracy = [percent(float(outcomes[name].accuracy.mean())) for name in ("none", key)]
        parts.append(
            f"after rewinding and freezing {100 * outcomes[key].entry['fraction']:g}% of the weights and tuning the rest it has "
            f"{_area(outcomes[key], attack)}, and test accuracy goes from {accuracy[0]} to {accuracy[1]}"
        )
    if rewound is not None:
        gap = f"{signed(rewound['mean'])} ({signed(rewound['low'])} to {signed(rewound['high'])})"
        alone = f"the same tuning without rewinding (accuracy {percent(float(outcomes[rewound['b']].accuracy.mean()))})"
        verdict = {
            True: f"beyond {alone} the AUC changes by {gap}: rewinding itself lowers what is found",
            False: f"but {alone} leaves less to find (difference {gap})",
            None: f"but {alone} leaves as much to find (difference {gap})",
        }
        unknown = f"beyond {alone} the AUC changes by {signed(rewound['mean'])}"
        parts.append(verdict[rewound["holds"]] if np.isfinite(rewound["low"]) else unknown)
    return "; ".join(parts) + "."


def rewind_warnings(
    outcomes: Mapping[str, ArmOutcome], config: RewindConfig, source: str | None, num_classes: int
) -> list[str]:
    """Sentences on controls off chance, what the scale cannot show, and what is not what it seems."""
    warnings = []
    for outcome in outcomes.values():
        title = outcome.entry["title"]
        warnings += [f"{title}: {sentence}" for sentence in control_warnings(outcome.entry["attacks"])]
    attack = headline_attack(outcomes["none"].auc)
    level = outcomes["none"].entry["attacks"][attack]["tpr_at_fpr"]["0.001"]
    if not level["resolvable"]:
        warnings.append(
            "0.1% false positives cannot be resolved with these records: TPR there is no evidence of anything"
        )
    learned = outcomes["none"].entry["train_accuracy"]["mean"]
    if config.checkpoint is not None and learned - 1 / num_classes < _LITTLE * (1 - 1 / num_classes):
        warnings.append(
            f"the checkpoint is right on {learned:.1%} of its members, hardly more than by chance: its inputs were normalised "
            "otherwise (--input-mean, --input-std), or --members names other records; do not trust this run"
        )
    if config.num_models and config.num_models < 16:
        warnings.append(
            f"{config.num_models} models: attacks with so few references miss much, so defences look better"
        )
    if config.checkpoint is not None and not config.num_models:
        warnings.append(
            "no shadow models (--num-models 0): only attacks without references were run, which miss most of what leaks"
        )
    if source is not None and source != "file":
        warnings.append(
            f"the initial weights were made again from {source}: if the model was not built from it, they are another network's"
        )
    if any(outcome.entry["method"] == "dp_sgd" for outcome in outcomes.values()):
        warnings.append("DP-SGD's epsilon speaks of its own training; no other arm has one")
    return warnings


def _area(outcome: ArmOutcome, attack: str) -> str:
    entry = outcome.entry["attacks"][attack]
    return f"{fixed(entry['auc'])} ({fixed(entry['auc_low'])}-{fixed(entry['auc_high'])})"
