"""The report of a membership audit: a pure function of the files in its run folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from fastmem.report import provenance
from fastmem.report.artifacts import write_text
from fastmem.report.audit import provenance as audit_provenance
from fastmem.report.audit.figures import comparison_figure, histogram_figure, roc_figure
from fastmem.report.audit.log_mia import log_mia_section
from fastmem.report.audit.records import records
from fastmem.report.audit.results import HEADLINE_LEVEL, AttackResult, control_tally
from fastmem.report.audit.run import Run, load_run
from fastmem.report.audit.tables import attack_details, attack_table
from fastmem.report.html import Card, Head, Section, page, render, side_by_side
from fastmem.report.tables import TIMES, count, fixed, level_name, percent, span

__all__ = ["write_audit_report"]


def write_audit_report(run_dir: str | Path) -> Path:
    """Draw the report of a finished audit again; the same files give the same bytes.

    Args:
        run_dir: Folder with ``summary.json``, ``report_data.npz`` and ``scores.csv``.

    Returns:
        The file written: ``report.html`` in the same folder, self-contained.

    Raises:
        StoreError: A file is missing, corrupt, of a newer fastmem, or the folder cannot be written.
    """
    folder = Path(run_dir)
    run = load_run(folder)
    file = folder / "report.html"
    write_text(file, page(_title(run), _head(run), _sections(run)))
    return file


def _title(run: Run) -> str:
    return f"Membership {run.summary.text('study', 'audit')} of {run.summary.child('data').text('name', 'a data set')}"


def _sections(run: Run) -> list[Section]:
    candidates = [
        _attacks(run),
        _curves(run),
        _scores(run),
        log_mia_section(run),
        records(run),
        audit_provenance.training(run),
        audit_provenance.design(run),
        provenance.time(run.summary),
        provenance.environment(run.summary),
        audit_provenance.warnings(run),
        provenance.configuration(run.summary),
        Section("reading", "How to read this", render("audit_reading.html.j2")),
    ]
    return [section for section in candidates if section.body]


# The head


def _head(run: Run) -> Head:
    return provenance.head(
        run.summary,
        f"Membership {run.summary.text('study', 'audit')}",
        [card for card in (*_leak_cards(run), _size_card(run), _accuracy_card(run), _control_card(run)) if card],
    )


def _leak_cards(run: Run) -> list[Card]:
    best = run.headline
    if best is None:
        return []
    cards = []
    level = best.levels.get(HEADLINE_LEVEL)
    label = f"TPR at {level_name(HEADLINE_LEVEL)} FPR, {best.title}"
    if level is not None and level.resolvable:
        interval = span(percent(level.tpr.low, unit=False), percent(level.tpr.high))
        chance = f"guessing: {percent(level.realised_fpr)}"
        cards.append(Card(label, percent(level.tpr.value), f"{interval}; {chance}" if interval else chance))
    elif level is not None:
        cards.append(Card(label, "not resolvable", level.reason, "warn"))
    interval = span(fixed(best.auc.low), fixed(best.auc.high))
    cards.append(Card(f"AUC, {best.title}", fixed(best.auc.value), f"{interval}; guessing: 0.5".lstrip("; ")))
    return cards


def _size_card(run: Run) -> Card | None:
    models, records = run.summary.child("design").number("num_models"), run.summary.child("data").number("pool")
    if not math.isfinite(models) and not math.isfinite(records):
        return None
    targets = run.summary.child("design").data.get("targets")
    number = len(targets) if isinstance(targets, list) else targets
    detail = f"{count(number)} of the models as targets" if isinstance(number, int | float) else ""
    return Card(f"Models {TIMES} records", f"{count(models)} {TIMES} {count(records)}", detail)


def _accuracy_card(run: Run) -> Card | None:
    models = run.summary.child("models")
    train, test = (models.child(f"{part}_accuracy").number("mean") for part in ("train", "test"))
    if not math.isfinite(train) and not math.isfinite(test):
        return None
    gap = f"gap {100 * (train - test):.1f} points" if math.isfinite(train - test) else ""
    return Card("Accuracy, train / test", f"{percent(train, unit=False)} / {percent(test)}", gap)


def _control_card(run: Run) -> Card | None:
    covered, total = control_tally(run.attacks)
    if total == 0:
        return Card("Controls", "none", "nothing shows that this audit finds no leak where there is none", "warn")
    far = sum(control.far_off for attack in run.attacks for control in attack.controls.values())
    if far:
        detail, tone = (
            f"{far} far off chance: see the marked {'row' if far == 1 else 'rows'} before you believe them",
            "bad",
        )
    elif covered < total:
        detail, tone = "of the 95% intervals hold chance; the others miss by no more than luck", ""
    else:
        detail, tone = "intervals hold chance: nothing found where there is nothing", "good"
    return Card("Controls at chance", f"{covered} of {total}", detail, tone)


# Attacks, curves and scores


def _attacks(run: Run) -> Section:
    if not run.attacks:
        return Section("attacks", "Attacks", Markup("<p>This run holds no attack.</p>"))
    body = render(
        "audit_attacks.html.j2",
        table=attack_table(run.attacks, run.headline),
        controls=_control_sentence(run.attacks),
        details=attack_details(run.attacks),
    )
    lead = (
        "Each attack ranks records by how sure it is that the model was trained on them. Rates are pooled over all "
        "targets; intervals come from resampling the records."
    )
    rule = run.summary.child("headline").text("rule")
    if rule and run.headline:
        lead += f" The answer above speaks of {run.headline.title} (shaded), chosen before any result: {rule}."
    return Section("attacks", "Attacks", body, lead)


def _control_sentence(attacks: Sequence[AttackResult]) -> str:
    covered, total = control_tally(attacks)
    if total == 0:
        return "No control was run: nothing here shows what these attacks report where there is nothing to find."
    if covered == total:
        return f"All {total} control intervals hold chance (AUC 0.5), as they must where there is nothing to find."
    return (
        f"{total - covered} of {total} control intervals miss chance (AUC 0.5) and are marked. About one 95% interval in "
        f"twenty does so by luck, and attacks on the same models miss together. A control marked “far off chance” misses "
        f"by more than luck explains (once in a thousand): the audit itself leaks there, and the row cannot be believed."
    )


def _curves(run: Run) -> Section:
    figures = roc_figure(run.attacks, run.arrays, run.headline), comparison_figure(run.attacks)
    body = side_by_side(*figures) if any(figures) else Markup()
    return Section(
        "curves", "At few false alarms", body, "What an attacker gets who must not accuse wrongly: the left edge."
    )


def _scores(run: Run) -> Section:
    best = [attack for attack in run.attacks if attack is run.headline]
    large = [histogram_figure(one, run.arrays, large=True, logarithmic=log) for one in best for log in (False, True)]
    small = [histogram_figure(attack, run.arrays) for attack in run.attacks if attack not in best]
    body = render(
        "audit_scores.html.j2",
        large=side_by_side(*large) if any(large) else "",
        small=[panel for panel in small if panel],
    )
    return Section("scores", "Scores", body if any(large) or any(small) else Markup())
