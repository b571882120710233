"""The report of a few-shot study: a pure function of the files in its run folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from fastmem.report import provenance
from fastmem.report.artifacts import Fields, write_text
from fastmem.report.audit import provenance as audit_provenance
from fastmem.report.audit.figures import comparison_figure, roc_figure
from fastmem.report.audit.run import Run, load_run
from fastmem.report.audit.tables import attack_details, attack_table
from fastmem.report.few_shot.figures import shots_figure
from fastmem.report.few_shot.results import Cells, Rival, Variant, read_rivals, read_variants
from fastmem.report.few_shot.tables import control_table, cost_table, episode_table, held_out_table, inductive_table
from fastmem.report.html import Card, Head, Section, page, render, side_by_side
from fastmem.report.log_mia import LOG_MIA_LEAD
from fastmem.report.tables import TIMES, count, fixed, percent, span

__all__ = ["write_few_shot_report"]


@dataclass(frozen=True)
class _Study:
    """Everything that the page is made of."""

    run: Run
    variants: list[Variant]
    rivals: list[Rival]

    @property
    def summary(self) -> Fields:
        """``summary.json``."""
        return self.run.summary

    @property
    def headline(self) -> tuple[Variant, int, Cells] | None:
        """The method, the number of shots and the cells that the answer speaks of."""
        named, shots = self.summary.child("headline").text("variant"), self.summary.child("headline").number("shots")
        for variant in self.variants:
            if variant.key == named and math.isfinite(shots) and int(shots) in variant.shots:
                return variant, int(shots), variant.shots[int(shots)]
        return None


def write_few_shot_report(run_dir: str | Path) -> Path:
    """Draw the report of a finished few-shot study again; the same files give the same bytes.

    Args:
        run_dir: Folder with ``summary.json``, ``report_data.npz`` and ``scores.csv``.

    Returns:
        The file written: ``report.html`` in the same folder, self-contained.

    Raises:
        StoreError: A file is missing, corrupt, of a newer fastmem, or the folder cannot be written.
    """
    folder = Path(run_dir)
    run = load_run(folder)
    study = _Study(run, read_variants(run.summary), read_rivals(run.summary))
    file = folder / "report.html"
    title = f"Few-shot membership study of {run.summary.child('data').text('name', 'a data set')}"
    write_text(file, page(title, _head(study), _sections(study)))
    return file


def _sections(study: _Study) -> list[Section]:
    run = study.run
    candidates = [
        _episodes(study),
        _figures(study),
        _cost(study),
        _controls(study),
        _held_out(study),
        _inductive(study),
        _whole_pool(study),
        audit_provenance.training(run),
        _design(study),
        provenance.time(run.summary),
        provenance.environment(run.summary),
        audit_provenance.warnings(run),
        provenance.configuration(run.summary),
        Section("reading", "How to read this", render("few_shot_reading.html.j2")),
    ]
    return [section for section in candidates if section.body]


def _head(study: _Study) -> Head:
    return provenance.head(study.summary, "Few-shot membership study", _cards(study))


def _cards(study: _Study) -> list[Card]:
    cards = []
    if study.headline is not None:
        variant, shots, cells = study.headline
        who = f"{variant.title}, {shots} shot{'s' if shots > 1 else ''}"
        strict = cells.regimes.get("strict")
        if strict is not None:
            interval = span(percent(max(strict.tpr.low, 0), unit=False), percent(strict.tpr.high))
            detail = f"{interval}; guessing: {percent(strict.tpr_chance)}"
            cards.append(Card(f"TPR without a false alarm, {who}", percent(strict.tpr.mean), detail))
            detail = f"raw {fixed(strict.raw.mean)}; guessing: {fixed(strict.chance_mean)} raw, 0 adjusted"
            cards.append(Card("Log-MIA, adjusted for chance", fixed(strict.adjusted), detail))
        interval = span(fixed(cells.auc.low), fixed(cells.auc.high))
        cards.append(Card("AUC", fixed(cells.auc.mean), f"{interval}; guessing: 0.5"))
        blind = variant.controls.get("blind", {}).get(shots)
        if blind is not None:
            interval = span(fixed(blind.auc.low), fixed(blind.auc.high))
            cards.append(
                Card("AUC on a model that never saw them", fixed(blind.auc.mean), f"{interval}; must be near 0.5")
            )
    models = study.summary.child("models")
    train, test = models.number("target_train_accuracy"), models.number("target_test_accuracy")
    if math.isfinite(train):
        cards.append(
            Card(
                "Accuracy of the target, train / test",
                f"{percent(train, unit=False)} / {percent(test)}",
                f"gap {100 * (train - test):.1f} points",
            )
        )
    return cards


def _episodes(study: _Study) -> Section:
    if not study.variants:
        return Section("episodes", "Few examples", Markup("<p>This run holds no few-shot method.</p>"))
    headline = study.headline
    body = episode_table(study.variants, None if headline is None else (headline[0].key, headline[1]))
    lead = (
        "Each episode tells the attacker of a few members and non-members and asks about others, half of them members. "
        + LOG_MIA_LEAD
    )
    return Section("episodes", "Few examples", body, lead)


def _figures(study: _Study) -> Section:
    rows = [
        [shots_figure(study.variants, regime, quantity) for regime in ("strict", "regular")]
        for quantity in ("tpr", "raw")
    ]
    body = Markup("\n").join(side_by_side(*row) for row in rows if any(row))
    return Section("shots", "By the number of known records", body)


def _cost(study: _Study) -> Section:
    if not study.variants:
        return Section("cost", "Told and found", Markup())
    shots = study.headline[1] if study.headline is not None else max(study.variants[0].shots)
    training = study.summary.child("training_seconds")
    body = cost_table(
        study.variants, study.rivals, shots, training.number("one_model"), training.number("shadow_models")
    )
    lead = (
        "What each attacker must know, train and ask, beside what it finds among the same records. Attacks with shadow models "
        "know no member of the target, but train models on data of the same kind; few-shot attacks train none."
    )
    return Section("cost", "Told and found", body, lead)


def _controls(study: _Study) -> Section:
    lead = (
        "All must be near AUC 0.5 and adjusted Log-MIA 0; one interval in twenty misses by luck. With a model that never saw the records, members and non-members "
        "still differ by the luck of the one draw that all episodes share, which the interval does not count."
    )
    return Section("controls", "Controls", control_table(study.variants) if study.variants else Markup(), lead)


def _held_out(study: _Study) -> Section:
    lead = (
        "Above, thresholds are chosen on the very records that are asked about, as published. An attacker can only take them "
        "from records that it knows; then false positives come through, and the null is that of as many accusations."
    )
    body = held_out_table(study.variants, study.rivals) if study.variants else Markup()
    return Section("held-out", "With thresholds that an attacker can have", body, lead)


def _inductive(study: _Study) -> Section:
    lead = (
        "Transductive methods use the other records asked about, half of which are members here. A score that needs them "
        "is no statement about one person's record."
    )
    return Section("alone", "One record at a time", inductive_table(study.variants), lead)


def _whole_pool(study: _Study) -> Section:
    run = study.run
    if not run.attacks:
        return Section("pool", "Every record of the pool", Markup())
    figures: Sequence[Markup | None] = roc_figure(run.attacks, run.arrays), comparison_figure(run.attacks)
    body = Markup("\n").join(
        [attack_table(run.attacks), side_by_side(*figures) if any(figures) else Markup(), attack_details(run.attacks)]
    )
    lead = (
        "Each attack ranks every record of the pool once: few-shot methods with one draw of known records from the other half "
        "of the pool. One draw says less than the episodes above."
    )
    return Section("pool", "Every record of the pool", body, lead)


def _design(study: _Study) -> Section:
    data, design = study.summary.child("data"), study.summary.child("design")
    config = study.summary.child("config")
    shape = data.data.get("input_shape")
    items = [
        ("records in the pool", count(data.number("pool"))),
        ("records of the population", count(data.number("population"))),
        ("bystanders (for the blind model)", count(data.number("bystanders"))),
        ("input shape", f" {TIMES} ".join(map(str, shape)) if isinstance(shape, list) else ""),
        ("features", f"{design.text('features')}, {count(design.number('feature_width'))} values a record"),
        ("models", count(design.number("num_models"))),
        ("targets", count(design.number("targets"))),
        ("known to learn from, of each kind", config.text("shots")),
        ("known to tune on, of each kind", count(config.number("n_val"))),
        ("asked about, of each kind", count(config.number("n_query"))),
        ("episodes", count(config.number("episodes"))),
    ]
    lead = "Each model trains on a random half of the pool. Known records count as labels whatever they are used for."
    return Section("design", "Design", provenance.known_pairs(items), lead, half=True)
