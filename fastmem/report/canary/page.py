"""The report of a canary study: a pure function of the files in its run folder."""

from __future__ import annotations

import math
from pathlib import Path

from markupsafe import Markup

from fastmem.report import provenance
from fastmem.report.artifacts import write_text
from fastmem.report.canary.figures import difference_figure, own_figure, strip_figure
from fastmem.report.canary.results import Run, load_run, p_value
from fastmem.report.canary.tables import own_table, sensitivity_table, setting_table, variant_table
from fastmem.report.html import (
    Card,
    Exhibit,
    Head,
    Section,
    details,
    gallery,
    page,
    picture,
    render,
    side_by_side,
)
from fastmem.report.tables import TIMES, count, percent, signed

__all__ = ["write_canary_report"]

_BELIEVE = (
    "Believe the paired difference, not these. A test over images asks whether the mark moves a model's answers, and it "
    "does in models that never saw it, for reasons of shape and contrast; with enough images any such shift is "
    "significant. The columns “never saw it” show how often that happens here."
)


def write_canary_report(run_dir: str | Path) -> Path:
    """Draw the report of a finished canary study again; the same files give the same bytes.

    Args:
        run_dir: Folder with ``summary.json`` and ``report_data.npz``.

    Returns:
        The file written: ``report.html`` in the same folder, self-contained.

    Raises:
        StoreError: A file is missing, corrupt, of a newer fastmem, or the folder cannot be written.
    """
    folder = Path(run_dir)
    run = load_run(folder)
    file = folder / "report.html"
    title = f"Canary in {run.summary.child('data').text('name', 'a data set')}"
    write_text(file, page(title, _head(run), _sections(run)))
    return file


def _sections(run: Run) -> list[Section]:
    candidates = [
        _mark(run),
        _scores(run),
        _settings(run),
        _variants(run),
        _sensitivity(run),
        _design(run),
        _work(run),
        provenance.time(run.summary),
        provenance.environment(run.summary),
        provenance.warnings(run.summary),
        provenance.configuration(run.summary),
        Section("reading", "How to read this", render("canary_reading.html.j2")),
    ]
    return [section for section in candidates if section.body]


# The head


def _head(run: Run) -> Head:
    return provenance.head(
        run.summary,
        "Canary",
        [card for card in (*_own_cards(run), *_trace_cards(run), _size_card(run), _accuracy_card(run)) if card],
    )


def _trace_cards(run: Run) -> list[Card]:
    if not run.cells or run.variant not in run.cells[0].variants:
        return []
    cell = run.cells[0]
    variant = cell.variants[run.variant]
    test, null = variant.paired, variant.sensitivity.get("t", {}).get("null")
    cards = [
        Card(f"Paired difference, {cell.name}", signed(test.effect), f"95%: {test.interval}; no trace: 0"),
        Card(
            "Wilcoxon p over pairs",
            p_value(test.p_value),
            f"sign-flip p {p_value(test.p_sign_flip)}; {test.positive:.0f} of {test.n:.0f} pairs above 0",
            "bad" if test.p_value <= run.level else "",
        ),
        Card(
            "Models found one by one",
            percent(variant.power.value),
            f"{variant.power.interval}; models that never saw it: {percent(variant.null_power.value)}",
        ),
    ]
    if null is not None and math.isfinite(null.value):
        detail = f"of models that never saw the mark, at level {run.level:g}: do not use it as the answer"
        cards.append(
            Card("Image-level t test rejects", percent(null.value), detail, "warn" if null.low > run.level else "")
        )
    return cards


def _own_cards(run: Run) -> list[Card]:
    entry = next((entry for entry in run.own if entry.key == run.variant), None)
    if entry is None:
        return []
    tone = "bad" if entry.rank_p <= run.level else ""
    return [
        Card("Your model's score", signed(entry.value), f"null models: {signed(entry.null[0])} ± {entry.null[1]:.2g}"),
        Card("Rank p among null models", p_value(entry.rank_p), f"{entry.n_null:.0f} models that never saw it", tone),
        Card("Rank p among control marks", p_value(entry.control_rank_p), f"{entry.n_controls:.0f} marks, same model"),
    ]


def _size_card(run: Run) -> Card | None:
    design, pool = run.summary.child("design"), run.summary.child("data").number("pool")
    models = design.number("models")
    if not math.isfinite(models):
        return None
    canaries = design.number("canaries")
    detail = f"{count(canaries)} different canaries" if canaries > 0 else "null models"
    return Card(f"Models {TIMES} records", f"{count(models)} {TIMES} {count(pool)}", detail)


def _accuracy_card(run: Run) -> Card | None:
    models = run.summary.child("models")
    train, test = (models.child(f"{part}_accuracy").number("mean") for part in ("train", "test"))
    if not math.isfinite(train) and not math.isfinite(test):
        return None
    gap = f"gap {100 * (train - test):.1f} points" if math.isfinite(train - test) else ""
    return Card("Accuracy, train / held out", f"{percent(train, unit=False)} / {percent(test)}", gap)


# The mark


def _mark(run: Run) -> Section:
    feature = run.summary.child("feature")
    exhibits = [*_feature_exhibits(run), *_record_exhibits(run)]
    body = gallery(exhibits) if exhibits else Markup()
    images = _image_exhibits(run)
    if images:
        body += details("Images that scores are measured on", gallery(images))
    place = feature.data.get("offset")
    where = f" at row {place[0]}, column {place[1]}" if isinstance(place, list) and len(place) == 2 else ""
    lead = (
        f"“{feature.text('name')}”, {feature.text('mode')}, pasted{where} before normalisation; labels stay as they are. "
        "Control marks were in no training set."
    )
    return Section("mark", "The mark and its records", body, lead)


def _feature_exhibits(run: Run) -> list[Exhibit]:
    exhibits = []
    mark = run.array("feature_picture", None, None, None)
    if mark is not None:
        exhibits.append(
            Exhibit("the mark", [f"{mark.shape[1]} {TIMES} {mark.shape[2]} pixels"], picture(mark, "The mark"))
        )
    controls = run.array("control_pictures", None, None, None, None)
    for place, pixels in enumerate([] if controls is None else controls[:3]):
        exhibits.append(Exhibit("control mark", [f"number {place}"], picture(pixels, f"Control mark {place}")))
    return exhibits


def _record_exhibits(run: Run) -> list[Exhibit]:
    record, label = run.array("canary_record", None), run.array("canary_label", None)
    before, after = (run.array(f"canary_{name}", None, None, None, None) for name in ("original", "marked"))
    if record is None or label is None or before is None or after is None:
        return []
    exhibits = []
    for number, of_class, plain, marked in zip(record[:3], label, before, after, strict=False):
        for pixels, words in ((plain, "as it was"), (marked, "as it was trained on")):
            title = f"label {int(of_class)}"
            exhibits.append(
                Exhibit(title, [f"record {int(number)}", words], picture(pixels, f"Record {int(number)}, {words}"))
            )
    return exhibits


def _image_exhibits(run: Run) -> list[Exhibit]:
    kinds = {"clean": "clean", "marked": "with the mark", "patched": "with a random patch"}
    found = {name: run.array(f"image_{name}", None, None, None, None) for name in kinds}
    exhibits = []
    for place in range(min((len(each) for each in found.values() if each is not None), default=0)):
        for name, words in kinds.items():
            pixels = found[name]
            if pixels is not None:
                exhibits.append(Exhibit(words, [f"image {place}"], picture(pixels[place], f"Image {place}, {words}")))
    return exhibits


# Scores and tests


def _scores(run: Run) -> Section:
    figures = (
        [own_figure(run, run.variant)]
        if run.own
        else [strip_figure(run, run.variant), difference_figure(run, run.variant)]
    )
    body = side_by_side(*figures) if any(figures) else Markup()
    title = next((each.title for each in run.own if each.key == run.variant), "")
    title = title or (run.cells[0].variants[run.variant].title if run.cells and run.variant else "")
    return Section("scores", "Scores and their null", body, f"The headline's variant of the score: {title}.")


def _settings(run: Run) -> Section:
    if not run.cells:
        body = own_table(run.own, run.variant, run.level) if run.own else Markup()
        return Section("settings", "Your model", body, "Every variant of the score that can be had, beside its nulls.")
    lead = (
        "Each row is a training variant: the mean difference between models trained with the mark and the same models "
        "trained without it. p-values are one-sided and per row."
    )
    return Section("settings", "By training variant", setting_table(run.cells, run.variant, run.level), lead)


def _variants(run: Run) -> Section:
    if not run.cells:
        return Section("variants", "Variants of the score", Markup())
    first, *rest = run.cells
    body = variant_table(first, run.variant, run.level)
    if rest:
        tables = [variant_table(cell, run.variant, run.level) for cell in rest]
        body += details("The same for the other settings", Markup("\n").join(tables))
    lead = run.summary.child("headline").text("rule")
    return Section("variants", "Variants of the score", body, f"The answer above is about {lead}." if lead else "")


def _sensitivity(run: Run) -> Section:
    if not run.cells:
        return Section("sensitivity", "Sensitivity tests", Markup())
    body = sensitivity_table(run.cells, run.variant, run.level)
    return Section("sensitivity", "Sensitivity tests", body, _BELIEVE)


# Provenance


def _design(run: Run) -> Section:
    data, design = run.summary.child("data"), run.summary.child("design")
    models, evaluation = run.summary.child("models"), run.summary.child("evaluation")
    records = design.data.get("records")
    items = [
        ("records a model trains on", count(data.number("pool"))),
        ("held-out records", count(data.number("held_out"))),
        ("images that scores are measured on", f"{count(evaluation.number('images'))} ({evaluation.text('name')})"),
        ("network", f"{models.text('name')}, {count(models.number('parameters'))} parameters"),
        ("null models a variant", count(design.number("pairs"))),
        ("different canaries", count(design.number("canaries")) if design.number("canaries") > 0 else ""),
        ("control marks", count(run.summary.child("feature").number("controls"))),
        ("canary records", ", ".join(map(str, records)) if isinstance(records, list) else ""),
    ]
    return Section("design", "Design", provenance.known_pairs(items), half=True)


def _work(run: Run) -> Section:
    """Where the work of this call went, and how much of it is the divergences."""
    work = run.summary.child("work")
    seconds = {name: work.number(name) for name in work.data}
    body = provenance.stage_table(seconds) if sum(seconds.values()) > 0 else Markup()
    return Section("work", "Work of all processes", body, half=True)
