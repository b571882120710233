"""The report of a reconstruction study: a pure function of the files in its run folder."""

from __future__ import annotations

import math
from pathlib import Path

from markupsafe import Markup

from fastmem.report import provenance
from fastmem.report.artifacts import write_text
from fastmem.report.html import Card, Head, Section, details, page, render, side_by_side
from fastmem.report.reconstruct.figures import residual_figure
from fastmem.report.reconstruct.pictures import candidate_gallery, held_out_grid, picture_grid
from fastmem.report.reconstruct.results import Counted, Results, load_results
from fastmem.report.reconstruct.tables import count_table, run_table, victim_table
from fastmem.report.tables import compact, count, fixed, percent

__all__ = ["write_reconstruct_report"]


def write_reconstruct_report(run_dir: str | Path) -> Path:
    """Draw the report of a finished reconstruction again; the same files give the same bytes.

    Args:
        run_dir: Folder with ``summary.json`` and ``report_data.npz``.

    Returns:
        The file written: ``report.html`` in the same folder, self-contained.

    Raises:
        StoreError: A file is missing, corrupt, of a newer fastmem, or the folder cannot be written.
    """
    folder = Path(run_dir)
    results = load_results(folder)
    title = f"Reconstruction from weights, {results.summary.child('data').text('name', 'a data set')}"
    file = folder / "report.html"
    write_text(file, page(title, _head(results), _sections(results)))
    return file


def _sections(results: Results) -> list[Section]:
    candidates = [
        _pictures(results),
        _counts(results),
        _residuals(results),
        _victims(results),
        _runs(results),
        _null(results),
        _design(results),
        provenance.time(results.summary),
        provenance.environment(results.summary),
        provenance.warnings(results.summary),
        provenance.configuration(results.summary),
        Section("reading", "How to read this", render("reconstruct_reading.html.j2")),
    ]
    return [section for section in candidates if section.body]


def _head(results: Results) -> Head:
    return provenance.head(results.summary, "Reconstruction from weights", _cards(results))


def _cards(results: Results) -> list[Card]:
    design = results.summary.child("design")
    if not results.counted:
        return [Card("Candidates", count(design.number("m")), "no training images to compare with")]
    by_key = {row.key: row for row in results.counted}
    attack, null = by_key["attack"], by_key["held_out"]
    share = attack.above["0.8"].value / design.number("n")
    cards = [
        Card(
            "Images recovered",
            f"{attack.above['0.8'].counted} of {count(design.number('n'))}",
            f"correlation above 0.8; {attack.above['0.8'].count_interval or percent(share)}",
            "bad" if share > 0.25 else "",
        ),
        Card("Mean correlation", fixed(attack.mean.value), attack.mean.interval or "one victim: no interval"),
    ]
    if "first_layer" in by_key:
        cards += [
            _control_card("First-layer rows, no attack", by_key["first_layer"]),
            _control_card("Best of all first-layer rows", by_key["first_layer_all"]),
        ]
    cards.append(
        Card("By chance", null.above["0.8"].counted, f"images never trained on; mean {fixed(null.mean.value)}")
    )
    return cards


def _control_card(label: str, row: Counted) -> Card:
    return Card(label, row.above["0.8"].counted, f"above 0.8; mean {fixed(row.mean.value)}")


def _pictures(results: Results) -> Section:
    if not results.counted:
        lead = "What the attack made of the weights. Whether these are training images nobody can say without the set."
        return Section("pictures", "Candidates", candidate_gallery(results), lead)
    lead = (
        "Training images of the first victim, the best recovered first, beside their candidates. Below each its correlation "
        "with the training image. First-layer rows are weights with the contrast of an image: no attack was run for "
        "them. “Best of all rows” may choose among many more candidates than the attack."
    )
    return Section("pictures", "What was recovered", picture_grid(results), lead)


def _counts(results: Results) -> Section:
    body = count_table(results) if results.counted else Markup()
    lead = (
        "The same one-to-one matching of everything. An attack is worth something as far as it is above the first-layer "
        "rows, and knows who was trained on as far as it is above images never trained on."
    )
    return Section("counts", "Counts and controls", body, lead)


def _residuals(results: Results) -> Section:
    victim = results.victims[0]
    residuals = victim.child("residuals")
    items = [(name, compact(residuals.number(name))) for name in residuals.data]
    body = side_by_side(residual_figure(results), provenance.known_pairs(items) or None)
    return Section("residuals", "Residuals", body, "Of the first victim; at the end, by parameter.")


def _victims(results: Results) -> Section:
    body = victim_table(results) if results.counted else Markup()
    return Section("victims", "Victims and tests", body)


def _runs(results: Results) -> Section:
    body = run_table(results)
    union = results.victims[0].child("union")
    parts = []
    if math.isfinite(union.number("mean")):
        parts.append(
            f"The union of all runs' candidates, as the papers count: {count(union.child('above').number('0.8'))} above "
            f"0.8, mean correlation {fixed(union.number('mean'))}."
        )
    agreement = results.victims[0].number("agreement")
    if math.isfinite(agreement):
        parts.append(
            f"A candidate of the run shown comes back in {percent(agreement)} of the other runs (correlation above 0.9)."
        )
    if parts and body:
        body += Markup("<p>{}</p>").format(" ".join(parts))
    lead = "Ranked by what an attacker can see. The last two columns need the training set: nothing was chosen by them."
    if results.summary.child("design").text("rank") == "oracle":
        lead = "The run shown was chosen by the last two columns, which need the training set: an oracle."
    return Section("runs", "Runs", body, lead)


def _null(results: Results) -> Section:
    grid = held_out_grid(results)
    body = details("Images never trained on, and the candidates nearest to them", grid) if grid else Markup()
    lead = "What resemblance by chance looks like: each may pick its candidate freely, so this is generous to chance."
    return Section("null", "By chance", body, lead)


def _design(results: Results) -> Section:
    design, models = results.summary.child("design"), results.summary.child("models")
    items = [
        ("training images of a victim", count(design.number("n"))),
        ("victims", count(len(results.victims))),
        ("candidates of a run", count(design.number("m"))),
        ("runs on each victim", count(design.number("runs"))),
        ("iterations", count(design.number("iterations"))),
        ("network", f"{models.text('name')}, {count(models.number('parameters'))} parameters"),
    ]
    settings = design.child("settings")
    items += [(f"setting: {name}", settings.text(name)) for name in settings.data if settings.text(name)]
    return Section("design", "Design", provenance.known_pairs(items), half=True)
