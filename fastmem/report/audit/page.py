"""The report of a membership audit: a pure function of the files in its run folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from fastmem.errors import StoreError
from fastmem.report.artifacts import Fields, ScoreTable, load_arrays, load_scores, load_summary, write_text
from fastmem.report.audit.figures import comparison_figure, histogram_figure, roc_figure
from fastmem.report.audit.results import HEADLINE_LEVEL, AttackResult, control_tally, read_attacks
from fastmem.report.audit.tables import attack_details, attack_table, stage_table
from fastmem.report.html import (
    Card,
    Exhibit,
    Head,
    Section,
    details,
    gallery,
    notes,
    page,
    pairs,
    picture,
    render,
    side_by_side,
)
from fastmem.report.tables import MISSING, TIMES, Cell, Column, Table, compact, count, fixed, percent, span

__all__ = ["write_audit_report"]

_MOST_EXPOSED = 24
_TOP_SHARE = 0.1


@dataclass(frozen=True)
class _Run:
    """Everything that the page is made of."""

    summary: Fields
    attacks: list[AttackResult]
    arrays: dict[str, np.ndarray]
    scores: ScoreTable

    @property
    def class_names(self) -> list[str]:
        return self.summary.child("data").texts("class_names")


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
    summary = load_summary(folder)
    run = _Run(summary, read_attacks(summary), load_arrays(folder), load_scores(folder))
    file = folder / "report.html"
    write_text(file, page(_title(run), _head(run), _sections(run)))
    return file


def _title(run: _Run) -> str:
    return f"Membership {run.summary.text('study', 'audit')} of {run.summary.child('data').text('name', 'a data set')}"


def _sections(run: _Run) -> list[Section]:
    candidates = [
        _attacks(run),
        _curves(run),
        _scores(run),
        _records(run),
        _training(run),
        _design(run),
        _time(run),
        _environment(run),
        _warnings(run),
        _configuration(run),
        Section("reading", "How to read this", render("audit_reading.html.j2")),
    ]
    return [section for section in candidates if section.body]


# The head


def _head(run: _Run) -> Head:
    data, models = run.summary.child("data"), run.summary.child("models")
    parts = [data.text("name"), models.text("name"), _moment(run.summary.text("created"))]
    return Head(
        kind=f"Membership {run.summary.text('study', 'audit')}",
        answer=run.summary.text("answer", "This run states no answer."),
        subject=" · ".join(part for part in parts if part),
        cards=[card for card in (*_leak_cards(run), _size_card(run), _accuracy_card(run), _control_card(run)) if card],
    )


def _moment(created: str) -> str:
    """An ISO time without its fractions; any other text as it is."""
    try:
        return f"{datetime.fromisoformat(created):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return created


def _leak_cards(run: _Run) -> list[Card]:
    if not run.attacks:
        return []
    best = run.attacks[0]
    cards = []
    level = best.levels.get(HEADLINE_LEVEL)
    label = f"TPR at {percent(HEADLINE_LEVEL)} FPR, {best.title}"
    if level is not None and level.resolvable:
        interval = span(percent(level.tpr.low, unit=False), percent(level.tpr.high))
        chance = f"guessing: {percent(level.realised_fpr)}"
        cards.append(Card(label, percent(level.tpr.value), f"{interval}; {chance}" if interval else chance))
    elif level is not None:
        cards.append(Card(label, "not resolvable", level.reason, "warn"))
    interval = span(fixed(best.auc.low), fixed(best.auc.high))
    cards.append(Card(f"AUC, {best.title}", fixed(best.auc.value), f"{interval}; guessing: 0.5".lstrip("; ")))
    return cards


def _size_card(run: _Run) -> Card | None:
    models, records = run.summary.child("design").number("num_models"), run.summary.child("data").number("pool")
    if not math.isfinite(models) and not math.isfinite(records):
        return None
    targets = run.summary.child("design").data.get("targets")
    number = len(targets) if isinstance(targets, list) else targets
    detail = f"{count(number)} of the models as targets" if isinstance(number, int | float) else ""
    return Card(f"Models {TIMES} records", f"{count(models)} {TIMES} {count(records)}", detail)


def _accuracy_card(run: _Run) -> Card | None:
    models = run.summary.child("models")
    train, test = (models.child(f"{part}_accuracy").number("mean") for part in ("train", "test"))
    if not math.isfinite(train) and not math.isfinite(test):
        return None
    gap = f"gap {100 * (train - test):.1f} points" if math.isfinite(train - test) else ""
    return Card("Accuracy, train / test", f"{percent(train)} / {percent(test)}", gap)


def _control_card(run: _Run) -> Card | None:
    covered, total = control_tally(run.attacks)
    if total == 0:
        return Card("Controls", "none", "nothing shows that this audit finds no leak where there is none", "warn")
    detail = "control intervals that hold chance: nothing found where there is nothing"
    return Card("Controls at chance", f"{covered} of {total}", detail, "good" if covered == total else "warn")


# Attacks, curves and scores


def _attacks(run: _Run) -> Section:
    if not run.attacks:
        return Section("attacks", "Attacks", Markup("<p>This run holds no attack.</p>"))
    body = render(
        "audit_attacks.html.j2",
        table=attack_table(run.attacks),
        controls=_control_sentence(run.attacks),
        details=attack_details(run.attacks),
    )
    lead = (
        "Each attack ranks records by how sure it is that the model was trained on them. Rates are pooled over all "
        "targets; intervals come from resampling the records."
    )
    return Section("attacks", "Attacks", body, lead)


def _control_sentence(attacks: Sequence[AttackResult]) -> str:
    covered, total = control_tally(attacks)
    if total == 0:
        return "No control was run: nothing here shows what these attacks report where there is nothing to find."
    if covered == total:
        return f"All {total} control intervals hold chance (AUC 0.5), as they must where there is nothing to find."
    return (
        f"{total - covered} of {total} control intervals miss chance (AUC 0.5), marked “off chance”. About one 95% "
        f"interval in twenty does so by luck, and attacks on the same models miss together; many misses, or one far "
        f"from 0.5, mean that the audit itself leaks and the attack's row cannot be believed."
    )


def _curves(run: _Run) -> Section:
    figures = roc_figure(run.attacks, run.arrays), comparison_figure(run.attacks)
    body = side_by_side(*figures) if any(figures) else Markup()
    return Section(
        "curves", "At few false alarms", body, "What an attacker gets who must not accuse wrongly: the left edge."
    )


def _scores(run: _Run) -> Section:
    best = run.attacks[:1]
    large = [histogram_figure(one, run.arrays, large=True, logarithmic=log) for one in best for log in (False, True)]
    small = [histogram_figure(attack, run.arrays) for attack in run.attacks[1:]]
    body = render(
        "audit_scores.html.j2",
        large=side_by_side(*large) if any(large) else "",
        small=[panel for panel in small if panel],
    )
    return Section("scores", "Scores", body if any(large) or any(small) else Markup())


# The records


def _records(run: _Run) -> Section:
    exhibits = _exhibits(run)
    parts = [gallery(exhibits)] if exhibits else []
    if table := _label_table(run):
        parts.append(table)
    best = run.attacks[0].title if run.attacks else "the strongest attack"
    lead = (
        f"Exposure is the score of {best}, averaged over the targets that were trained on the record; rank ± is how far "
        f"its place moves from target to target. All {count(run.scores.num_records)} records are in scores.csv."
    )
    return Section("records", "Most exposed records", Markup("\n").join(parts), lead)


def _exhibits(run: _Run) -> list[Exhibit]:
    index = run.arrays.get("exposed_index")
    if index is None:
        return []
    fields = {name: run.arrays.get(f"exposed_{name}") for name in ("label", "score", "rank_std", "picture")}
    for name, values in fields.items():
        if values is not None and (values.ndim == 0 or len(values) != len(index)):
            raise _bad_array(run, f"exposed_{name} has not one entry for each of the {len(index)} exposed records")
    pictures = fields["picture"]
    if pictures is not None and (pictures.ndim != 4 or pictures.dtype != np.uint8):
        raise _bad_array(
            run, f"exposed_picture is {pictures.dtype} of {pictures.ndim} dimensions, not uint8 [K, C, H, W]"
        )
    return [_exhibit(run, place, int(record), fields) for place, record in enumerate(index[:_MOST_EXPOSED])]


def _exhibit(run: _Run, place: int, record: int, fields: dict[str, Any]) -> Exhibit:
    def value(name: str) -> float:
        return math.nan if fields[name] is None else float(fields[name][place])

    label = _label(run, fields["label"][place]) if fields["label"] is not None else ""
    lines = [f"score {compact(value('score'))}"]
    if math.isfinite(value("rank_std")):
        lines.append(f"rank ± {compact(value('rank_std'))}")
    pixels = fields["picture"]
    alt = f"Record {record}{f', label {label}' if label else ''}, {lines[0]}"
    image = picture(pixels[place], alt) if pixels is not None else None
    return Exhibit(label or f"record {record}", [f"record {record}", *lines] if label else lines, image)


def _label(run: _Run, label: Any) -> str:
    names = run.class_names
    number = int(label)
    return f"{number} {names[number]}" if 0 <= number < len(names) and names[number] != str(number) else str(number)


def _label_table(run: _Run) -> Markup | None:
    """Which labels the most exposed tenth holds more often than the pool does."""
    labels = run.scores.columns.get("label", [])
    top = labels[: round(_TOP_SHARE * len(labels))]
    if len(top) < 10 or len(set(labels)) < 2:
        return None
    whole, exposed = Counter(labels), Counter(top)
    ratio = {label: exposed[label] / len(top) / (whole[label] / len(labels)) for label in whole}
    rows = []
    for label in sorted(ratio, key=lambda name: (-ratio[name], name))[:10]:
        share = Cell(f"{percent(exposed[label] / len(top))}", bar=exposed[label] / max(exposed.values()))
        name = _label(run, label) if label.lstrip("-").isdigit() else label
        rows.append([name, share, percent(whole[label] / len(labels)), f"{ratio[label]:.2f} {TIMES}"])
    columns = [
        Column("Label", numeric=False),
        Column("Share of the most exposed 10%"),
        Column("Share of the pool"),
        Column("Ratio"),
    ]
    return details(
        "Labels among the most exposed tenth", Table("Most over-represented labels first", columns, rows).html()
    )


def _bad_array(run: _Run, problem: str) -> StoreError:
    file = Path(run.summary.source).with_name("report_data.npz")
    return StoreError(str(file), problem, "run the study again with --fresh, or restore the file from a copy")


# The run


def _training(run: _Run) -> Section:
    models = run.summary.child("models")
    items = [("model", models.text("name")), ("parameters", count(models.number("parameters")))]
    for part in ("train", "test"):
        accuracy = models.child(f"{part}_accuracy")
        mean, std, low, high = (accuracy.number(name) for name in ("mean", "std", "min", "max"))
        if math.isfinite(mean):
            text = percent(mean) + (f" ± {percent(std, unit=False)}" if math.isfinite(std) else "")
            ends = span(percent(low, unit=False), percent(high))
            items.append((f"{part} accuracy", f"{text} ({ends})" if ends else text))
    lead = "A wide gap between the two accuracies goes with leakage, but a narrow one does not rule it out."
    return Section("training", "Training", _pairs(items), lead, half=True)


def _design(run: _Run) -> Section:
    data, design = run.summary.child("data"), run.summary.child("design")
    targets = design.data.get("targets")
    shape = data.data.get("input_shape")
    items = [
        ("records in the pool", count(data.number("pool"))),
        ("records of the population", count(data.number("population"))),
        ("bystanders (for the control)", count(data.number("bystanders"))),
        ("classes", count(data.number("num_classes"))),
        ("input shape", f" {TIMES} ".join(map(str, shape)) if isinstance(shape, list) else ""),
        ("design", design.text("kind")),
        ("models", count(design.number("num_models"))),
        ("targets", count(len(targets)) if isinstance(targets, list) else design.text("targets")),
        *(
            (f"{word} per target", _counts(design.child(name)))
            for name, word in (("n_in", "members"), ("n_out", "non-members"))
        ),
    ]
    lead = "Every record is in the training set of half of the models, so each model is an exam for all attacks."
    return Section("design", "Design", _pairs(items), lead, half=True)


def _counts(fields: Fields) -> str:
    low, mean, high = (fields.number(name) for name in ("min", "mean", "max"))
    if not math.isfinite(mean):
        return ""
    return count(mean) if low == high else f"{count(round(mean, 1))} ({span(count(low), count(high))})"


def _time(run: _Run) -> Section:
    stages = run.summary.child("stages")
    body = stage_table({name: stages.number(name) for name in stages.data}) if stages.data else Markup()
    return Section("time", "Time", body, half=True)


def _environment(run: _Run) -> Section:
    summary = run.summary
    items = [
        ("fastmem", summary.text("fastmem_version")),
        ("configuration", summary.text("config_hash")),
        ("data", summary.child("data").text("fingerprint")),
        *_flat(summary.child("environment").data),
    ]
    return Section("environment", "Environment", _pairs(items, code=True), half=True)


def _warnings(run: _Run) -> Section:
    concerns: dict[str, list[str]] = {text: [] for text in run.summary.texts("warnings")}
    for attack in run.attacks:
        for text in attack.warnings:
            concerns.setdefault(text, []).append(attack.title)
    body = notes([(text, ", ".join(names)) for text, names in concerns.items()]) if concerns else Markup()
    return Section("warnings", "Warnings", body)


def _configuration(run: _Run) -> Section:
    items = _flat(run.summary.child("config").data)
    body = details("All settings of this run", _pairs(items, code=True)) if items else Markup()
    study = run.summary.text("study", "audit")
    lead = f"config.yaml beside this file runs the same study again: fastmem {study} --config config.yaml"
    return Section("configuration", "Configuration", body, lead)


def _pairs(items: Sequence[tuple[str, str]], *, code: bool = False) -> Markup:
    known = [(name, value) for name, value in items if value not in ("", MISSING)]
    return pairs(known, code=code) if known else Markup()


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and plain values."""
    items: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, dict) and value:
            items += _flat(value, f"{prefix}{name}.")
        else:
            items.append(
                (f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            )
    return items
