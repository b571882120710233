"""What is compared, arm by arm: where it starts, which weights it touches, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastmem.studies.rewind.config import METHODS, RewindConfig

__all__ = ["SCORED_IN_REPORT", "Arm", "make_arms"]

#: Scores that are compared with the privacy score in the entanglement report.
SCORED_IN_REPORT = ("pve", "tfo", "kl_only", "grad", "past", "weight", "moved", "random")

_SCORE_OF = {"random": "random", "tfo": "tfo", "weight": "weight", "past": "past", "kl_only": "kl_only"}
_VARIANT_OF = {"zero_tune": "zero_tune", "rewind_tune": "rewind_tune", "rewind_only": "rewind_only"}


@dataclass(frozen=True)
class Arm:
    """One way of treating every model.

    Args:
        key: Its group in the store.
        method: Its key in :data:`fastmem.studies.rewind.config.METHODS`.
        title: For human readers.
        start: ``trained``, ``initial`` (from scratch), or ``stopped`` (the cohort that stops early).
        variant: What :func:`fastmem.defenses.rewind` does; None where nothing is trained on.
        score: What ranks the weights; None where none are ranked.
        fraction: Share of the weights.
        loss: Loss and its options.
        private: Whether it is trained by DP-SGD.
    """

    key: str
    method: str
    title: str
    start: str = "trained"
    variant: str | None = None
    score: str | None = None
    fraction: float = 0.0
    loss: tuple[str, dict[str, Any]] = ("ce", {})
    private: bool = False


def make_arms(config: RewindConfig) -> tuple[Arm, ...]:
    """The arms of a study, ``none`` first."""
    arms: list[Arm] = []
    for method in config.method_keys:
        arms += _arms_of(method, config)
    return tuple(arms)


def _arms_of(method: str, config: RewindConfig) -> list[Arm]:
    title, loss = METHODS[method], (config.loss, config.loss_options)
    if method == "none":
        return [Arm(method, method, title)]
    if method == "early_stopping":
        return [Arm(method, method, title, start="stopped")]
    if method == "relaxloss":
        return [Arm(method, method, title, "initial", "tune", loss=("relaxloss", {"alpha": config.relax_alpha}))]
    if method == "dp_sgd":
        return [Arm(method, method, title, "initial", "tune", private=True)]
    if method == "tune":
        return [Arm(method, method, title, variant="tune")]
    if method == "tune_only":
        return [Arm(method, method, title, variant="tune", loss=loss)]
    fractions = config.fractions if method == "cwrf" else (config.control_fraction,)
    return [
        Arm(
            f"{method}_{fraction:g}",
            method,
            f"{title}, {100 * fraction:g}%",
            variant=_VARIANT_OF.get(method, "rewind_freeze"),
            score=_SCORE_OF.get(method, "pve"),
            fraction=fraction,
            loss=loss,
        )
        for fraction in fractions
    ]
