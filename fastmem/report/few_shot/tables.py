"""The tables of a few-shot page: what was found by shots, what it cost beside other attacks, and the controls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from fastmem.report.few_shot.results import CONTROLS, Cells, Mean, Regime, Rival, Variant
from fastmem.report.tables import MISSING, Cell, Column, Table, count, duration, fixed, percent, span

__all__ = ["control_table", "cost_table", "episode_table", "held_out_table", "inductive_table"]


def episode_table(variants: Sequence[Variant], headline: tuple[str, int] | None = None) -> Markup:
    """A row a method and number of shots: rates and Log-MIA, each beside guessing.

    Args:
        variants: The methods.
        headline: The method and shots to set apart.
    """
    rows, highlight = [], None
    cap = _cap(variants)
    for variant in variants:
        for shots, cells in variant.shots.items():
            if (variant.key, shots) == headline:
                highlight = len(rows)
            strict, regular = (cells.regimes.get(name) for name in ("strict", "regular"))
            rows.append(
                [
                    Cell(
                        f"{variant.title}, {_shots(shots)}", [f"{count(cells.n_labels)} labels"], swatch=variant.token
                    ),
                    _rate_cell(strict),
                    _rate_cell(regular),
                    _log_mia_cell(strict),
                    _log_mia_cell(regular),
                    Cell(fixed(cells.auc.mean), _lines(span(fixed(cells.auc.low), fixed(cells.auc.high)))),
                ]
            )
    columns = [
        Column("Method", numeric=False),
        Column("TPR, no false positive", "mean and 95% interval over episodes"),
        Column(f"TPR, at most {cap}", "false positives of each episode"),
        Column("Log-MIA, no false positive", "thresholds on the query itself"),
        Column(f"Log-MIA, at most {cap}", "false positives"),
        Column("AUC", "guessing 0.5"),
    ]
    return Table("What a handful of records finds", columns, rows, highlight).html()


def cost_table(
    variants: Sequence[Variant], rivals: Sequence[Rival], shots: int, one_model: float, shadow_models: float
) -> Markup:
    """What each attacker had to be told, beside what it found on the same episodes.

    Args:
        variants: The methods.
        rivals: The others.
        shots: Which episodes.
        one_model: Seconds that one model trains.
        shadow_models: Seconds that all shadow models train.
    """
    rows = []
    for variant in variants:
        cells = variant.shots.get(shots)
        if cells is not None:
            rows.append(
                [
                    Cell(variant.title, [f"{variant.access}; no class labels"], swatch=variant.token),
                    count(cells.n_labels),
                    "0",
                    "1",
                    Cell(
                        duration(cells.seconds / cells.episodes * 100) if cells.episodes else MISSING,
                        [f"100 episodes of {count(2 * cells.n_in)} questions"],
                    ),
                    *_found(cells),
                ]
            )
    for rival in rivals:
        cells = rival.shots.get(shots)
        if cells is None:
            continue
        labels = next((v.shots[shots].n_labels for v in variants if shots in v.shots), math.nan)
        knows = "its class label" if rival.needs_class else "no class labels"
        threshold = "0" if rival.shadow_models else Cell(count(labels), ["for a threshold only"])
        training = shadow_models if rival.shadow_models else 0.0
        seconds = [f"{duration(training)} of training, {duration(rival.seconds)} of scoring"]
        rows.append(
            [
                Cell(rival.title, [f"black box (answers); {knows}"]),
                threshold,
                count(rival.shadow_models),
                count(1 + rival.shadow_models),
                Cell(duration(training + rival.seconds), seconds if rival.shadow_models else ["all records"]),
                *_found(cells),
            ]
        )
    columns = [
        Column("Attacker", "what it must have", numeric=False),
        Column("Known members and non-members"),
        Column("Shadow models", f"each {duration(one_model)} to train" if math.isfinite(one_model) else ""),
        Column("Queries a record", "of the target and the shadow models"),
        Column("Time"),
        Column("TPR, no false positive", "guessing below"),
        Column("Adjusted Log-MIA", "no / few false positives"),
        Column("AUC", "guessing 0.5"),
    ]
    return Table(f"Told and found, on the episodes of {_shots(shots)}", columns, rows).html()


def control_table(variants: Sequence[Variant]) -> Markup:
    """Each method where there is nothing to find."""
    names = [name for name in CONTROLS if any(name in variant.controls for variant in variants)]
    rows = []
    for variant in variants:
        for shots in variant.shots:
            row = [Cell(f"{variant.title}, {_shots(shots)}", swatch=variant.token)]
            row += [_control_cell(variant.controls.get(name, {}).get(shots)) for name in names]
            rows.append(row)
    columns = [Column("Method", numeric=False)]
    columns += [Column(CONTROLS[name].capitalize(), "AUC and interval; adjusted Log-MIA") for name in names]
    return Table("The same attacks where there is nothing to find", columns, rows).html() if names else Markup()


def held_out_table(variants: Sequence[Variant], rivals: Sequence[Rival]) -> Markup:
    """What is found with thresholds that an attacker can have: those of the records that it knows."""
    rows = [
        [Cell(f"{variant.title}, {_shots(shots)}", swatch=variant.token), *_held_cells(cells)]
        for variant in variants
        for shots, cells in variant.shots.items()
    ]
    rows += [
        [Cell(f"{rival.title}, {_shots(shots)}"), *_held_cells(cells)]
        for rival in rivals
        for shots, cells in rival.shots.items()
        if not rival.shadow_models
    ]
    columns = [
        Column("Method", numeric=False),
        Column("TPR", "threshold of no false positive"),
        Column("FPR realised"),
        Column("Adjusted Log-MIA"),
        Column("TPR", "threshold of few false positives"),
        Column("FPR realised"),
        Column("Adjusted Log-MIA"),
    ]
    return Table("Thresholds from the known records, not from those asked about", columns, rows).html()


def inductive_table(variants: Sequence[Variant]) -> Markup:
    """Transductive methods asked about one record at a time, beside all records of an episode together."""
    rows = [
        [
            Cell(variant.title, swatch=variant.token),
            _auc_cell(variant.with_the_others),
            _auc_cell(variant.alone),
            fixed(variant.rank_correlation, 2),
            count(variant.alone.episodes),
        ]
        for variant in variants
        if variant.alone is not None
    ]
    columns = [
        Column("Method", numeric=False),
        Column("AUC, asked together"),
        Column("AUC, one at a time"),
        Column("Rank correlation", "of the two scores, mean over episodes"),
        Column("Episodes"),
    ]
    return Table("With and without the other records", columns, rows).html() if rows else Markup()


def _shots(shots: int) -> str:
    return f"{shots} shot{'s' if shots > 1 else ''}"


def _cap(variants: Sequence[Variant]) -> str:
    caps = {
        cells.regimes["regular"].fp_cap for v in variants for cells in v.shots.values() if "regular" in cells.regimes
    }
    return count(next(iter(caps))) if caps else "a few"


def _rate_cell(regime: Regime | None) -> Cell:
    if regime is None:
        return Cell(MISSING, tone="muted")
    return Cell(percent(regime.tpr.mean), _lines(_percents(regime.tpr), f"guessing {percent(regime.tpr_chance)}"))


def _log_mia_cell(regime: Regime | None) -> Cell:
    if regime is None:
        return Cell(MISSING, tone="muted")
    lines = _lines(
        span(fixed(regime.raw.low), fixed(regime.raw.high)),
        f"guessing {fixed(regime.chance_mean)}; 1 in 20 reaches {fixed(regime.critical_mean)}",
        f"adjusted {fixed(regime.adjusted)}, {_p(regime.p_value)}",
    )
    return Cell(fixed(regime.raw.mean), lines)


def _found(cells: Cells) -> list[Cell]:
    strict = cells.regimes.get("strict")
    rate = (
        Cell(MISSING)
        if strict is None
        else Cell(percent(strict.tpr.mean), _lines(_percents(strict.tpr), f"guessing {percent(strict.tpr_chance)}"))
    )
    adjusted = " / ".join(fixed(regime.adjusted, 2) for regime in cells.regimes.values())
    return [rate, Cell(adjusted or MISSING), _auc_cell(cells)]


def _held_cells(cells: Cells) -> list[Cell]:
    row = []
    for name in ("strict", "regular"):
        regime = cells.held_out.get(name)
        if regime is None:
            row += [Cell(MISSING), Cell(MISSING), Cell(MISSING)]
        else:
            row += [
                Cell(percent(regime.tpr.mean), _lines(_percents(regime.tpr))),
                Cell(percent(regime.fpr)),
                Cell(fixed(regime.adjusted), [_p(regime.p_value)]),
            ]
    return row


def _control_cell(cells: Cells | None) -> Cell:
    if cells is None:
        return Cell(MISSING, ["not run"], tone="muted")
    adjusted = " / ".join(fixed(regime.adjusted) for regime in cells.regimes.values())
    lines = _lines(span(fixed(cells.auc.low), fixed(cells.auc.high)), f"adjusted {adjusted}")
    missed = not cells.auc.low <= 0.5 <= cells.auc.high
    return Cell(fixed(cells.auc.mean), lines, tone="warn" if missed else "", mark="misses 0.5" if missed else "")


def _auc_cell(cells: Cells | None) -> Cell:
    if cells is None:
        return Cell(MISSING)
    return Cell(fixed(cells.auc.mean), _lines(span(fixed(cells.auc.low), fixed(cells.auc.high))))


def _percents(mean: Mean) -> str:
    return span(percent(max(mean.low, 0.0), unit=False), percent(mean.high))


def _p(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p {value:.3f}"


def _lines(*texts: str) -> list[str]:
    return [text for text in texts if text]
