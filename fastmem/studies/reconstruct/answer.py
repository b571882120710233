"""The answer in one sentence, and what a reader must be warned of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastmem.report.tables import count, fixed

__all__ = ["answer_sentence", "reconstruct_warnings"]

_FITTED_LOSS = 1e-3


def answer_sentence(total: Mapping[str, Any] | None, n: int, victims: int, candidates: int, runs: int) -> str:
    """What the study found.

    Args:
        total: The ``total`` of the summary; None where the training images are not known.
        n: Training images of a victim.
        victims: How many.
        candidates: Of a run.
        runs: Settings tried on each victim.
    """
    if total is None:
        return (
            f"{count(candidates)} candidates were reconstructed from the weights in {runs} "
            f"run{'s' if runs > 1 else ''}; how many are training images nobody can say without the training set."
        )
    attack, rows, null = total["attack"], total["controls"].get("first_layer"), total["held_out"]
    of = f"of {count(n)} training images" + (f" (mean over {victims} victims)" if victims > 1 else "")
    parts = [
        f"{_number(attack['above']['0.8']['value'])} {of} were read out of the weights with a correlation above 0.8 "
        f"(mean {fixed(attack['mean']['value'])})"
    ]
    if rows:
        every = total["controls"]["first_layer_all"]
        parts.append(
            f"as many first-layer rows, without any attack, give {_number(rows['above']['0.8']['value'])} "
            f"({fixed(rows['mean']['value'])}), all rows {_number(every['above']['0.8']['value'])} "
            f"({fixed(every['mean']['value'])})"
        )
    parts.append(
        f"images never trained on give {_number(null['above']['0.8']['value'])} ({fixed(null['mean']['value'])})"
    )
    return "; ".join(parts) + "."


def reconstruct_warnings(victims: Sequence[Mapping[str, Any]], runs: int, rank: str, schedule: str) -> list[str]:
    """Sentences on victims that do not fit, attacks that diverged, and choices that an attacker could not make.

    Args:
        victims: The ``victims`` of the summary.
        runs: Settings tried on each.
        rank: How one of them was chosen.
        schedule: Of the victims' training.
    """
    warnings = []
    for victim in victims:
        training = victim.get("training")
        if training and (training["fitted"] < 1 or training["loss"] > _FITTED_LOSS):
            warnings.append(
                f"{victim['name']} is not trained to the margin (loss {training['loss']:.2g}, "
                f"{training['fitted']:.0%} fitted): its weights need not be a sum of gradients"
            )
        if training and training["epochs"] >= 1_000_000 and schedule == "published":
            warnings.append(f"{victim['name']}: the published schedule ended by its number of steps, as it always does")
        if victim["diverged"]:
            warnings.append(f"{victim['name']}: {victim['diverged']} of {runs} runs diverged; they are left out")
    if rank == "oracle" and runs > 1:
        warnings.append("the run shown was chosen by the training set (an oracle): an attacker could not")
    return warnings


def _number(value: float) -> str:
    return count(value) if float(value).is_integer() else fixed(value, 1)
