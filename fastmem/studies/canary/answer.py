"""The answer in one sentence: the seed-matched paired difference, or a model's rank, with its p-value.

Which score, variant and count of copies the sentence is about follows from the config alone, not from results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastmem.report.tables import count, signed
from fastmem.studies.canary.regularisers import REGULARISERS

__all__ = ["HEADLINE_RULE", "answer_sentence", "headline_variant", "own_sentence", "p_text"]

HEADLINE_RULE = (
    "the first training variant and the first count of copies in the config, and the first variant of the score of: "
    "log_ratio, kl_contrast, the others as listed"
)
_ORDER = ("log_ratio", "kl_contrast")


def headline_variant(variants: Sequence[str]) -> str:
    """The variant of the score that the answer is about."""
    return next((name for name in _ORDER if name in variants), variants[0])


def answer_sentence(cells: Sequence[Mapping[str, Any]], variant: str, pool: int, level: float) -> str:
    """What the study found.

    Args:
        cells: The ``cells`` of the summary.
        variant: The headline's.
        pool: Records in a training set.
        level: Of the test.
    """
    first = cells[0]
    test = first["variants"][variant]["paired"]
    times = "one training record" if first["copies"] == 1 else f"{first['copies']} training records"
    carried = f"a mark on {times} in {count(pool)}"
    difference = (
        f"models that saw it score {signed(test['effect'])} {_unit(variant)} ({signed(test['low'])} to "
        f"{signed(test['high'])}) beside the same models trained without it, over {test['n']} seed-matched pairs "
        f"({first['variants'][variant]['title']}; Wilcoxon {p_text(test['p_value'])}, sign-flip "
        f"{p_text(test['p_sign_flip'])})"
    )
    if test["p_value"] <= level:
        return f"{carried[0].upper()}{carried[1:]} leaves a trace: {difference}.{_others(cells, variant, level)}"
    return (
        f"No trace was found of {carried}: {difference}, which may be chance; more pairs may still find one."
        f"{_others(cells, variant, level)}"
    )


def own_sentence(entries: Mapping[str, Mapping[str, Any]], variant: str, level: float) -> str:
    """What was found about a model of the user's own."""
    entry = entries[variant]
    controls = (
        f", and {p_text(entry['control_rank_p'])} among {entry['n_controls']} control marks"
        if entry["control_rank_p"] is not None
        else ""
    )
    found = (
        f"its score of {signed(entry['value'])} {_unit(variant)} has the rank {p_text(entry['rank_p'])} among "
        f"{entry['n_null']} models that never saw the mark{controls} ({entry['title']})"
    )
    if entry["rank_p"] <= level:
        return f"This model looks as if it had learned the mark: {found}."
    return f"No trace of the mark was found in this model: {found}."


def p_text(p: float) -> str:
    """``p = 0.0012``, or ``p < 1e-5``."""
    return f"p = {p:.2g}" if p >= 1e-5 else "p < 1e-5"


def _others(cells: Sequence[Mapping[str, Any]], variant: str, level: float) -> str:
    """In how many of the further cells the same test finds a trace."""
    rest = cells[1:]
    if not rest:
        return ""
    found = [cell for cell in rest if cell["variants"][variant]["paired"]["p_value"] <= level]
    if not found:
        return f" In none of {len(rest)} other settings was one found."
    names = ", ".join(_setting(cell) for cell in found)
    return f" In {len(found)} of {len(rest)} other settings there is one too: {names}."


def _setting(cell: Mapping[str, Any]) -> str:
    title = REGULARISERS[cell["regularise"]]
    return f"{title} with {cell['copies']} marked" if cell["copies"] > 1 else title


def _unit(variant: str) -> str:
    return "in probability" if variant.startswith("prob") else "nats"
