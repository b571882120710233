"""The report of a rewinding study: a pure function of the files in its run folder."""

from __future__ import annotations

import math
from pathlib import Path

from markupsafe import Markup

from fastmem.report import provenance
from fastmem.report.artifacts import write_text
from fastmem.report.html import Card, Head, Section, details, page, render, side_by_side
from fastmem.report.rewind.figures import cloud_figure, roc_figure, strip_figure, trade_off_figure
from fastmem.report.rewind.run import Arm, Run, load_run
from fastmem.report.rewind.tables import arm_table, attack_table, claim_table, mass_table, pair_table
from fastmem.report.tables import count, fixed, percent, signed, span

__all__ = ["write_rewind_report"]


def write_rewind_report(run_dir: str | Path) -> Path:
    """Draw the report of a finished rewinding study again; the same files give the same bytes.

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
    title = f"Critical weights, {run.summary.child('data').text('name', 'a data set')}"
    write_text(file, page(title, _head(run), _sections(run)))
    return file


def _sections(run: Run) -> list[Section]:
    candidates = [
        _trade_off(run),
        _ordering(run),
        _before_after(run),
        _entanglement(run),
        _strip(run),
        _attacks(run),
        _design(run),
        provenance.time(run.summary),
        provenance.environment(run.summary),
        provenance.warnings(run.summary),
        provenance.configuration(run.summary),
        Section("reading", "How to read this", render("rewind_reading.html.j2")),
    ]
    return [section for section in candidates if section.body]


def _head(run: Run) -> Head:
    return provenance.head(run.summary, "Critical weights, rewound", _cards(run))


def _cards(run: Run) -> list[Card]:
    title = run.attacks.get(run.attack, run.attack)
    cards = [_card(run, "AUC without defence", run.arms[0], title)]
    if run.main is not None:
        cards.append(_card(run, f"AUC, {100 * run.main.fraction:g}% rewound", run.main, _use(run.main)))
    if run.untouched is not None:
        cards.append(_card(run, "AUC, same tuning alone", run.untouched, _use(run.untouched)))
    pair = run.summary.child("entanglement").child("pairs")
    both, alone = (pair.child(name).child("all").child("pearson").number("mean") for name in ("pve/tfo", "kl_only/tfo"))
    if math.isfinite(both):
        cards.append(Card("Pearson, PVE and TFO", fixed(both), f"with no member seen by PVE: {fixed(alone)}"))
    return cards


def _card(run: Run, label: str, arm: Arm, detail: str) -> Card:
    auc = arm.auc(run.attack)
    return Card(label, fixed(auc.value), f"{span(fixed(auc.low), fixed(auc.high))}; {detail}")


def _use(arm: Arm) -> str:
    gap = arm.accuracy_gap().value
    return f"test accuracy {percent(arm.mean('test_accuracy'))} ({signed(100 * gap)} points)"


def _trade_off(run: Run) -> Section:
    curves = side_by_side(trade_off_figure(run, None), trade_off_figure(run, "0.001"))
    lead = (
        "Every model of an arm went through the same treatment, and each is attacked with the help of the others: the "
        "attacker knows the defence. All arms that train on had the same compute."
    )
    return Section("trade-off", "Privacy against utility", Markup("\n").join([curves, arm_table(run)]), lead)


def _ordering(run: Run) -> Section:
    body = claim_table(run) if run.claims else Markup()
    lead = (
        "“Not told apart”: the interval holds 0. Intervals are over models, which share records and references; they say "
        "nothing of other data or networks."
    )
    return Section("ordering", "Does the published ordering hold?", body, lead)


def _before_after(run: Run) -> Section:
    return Section("roc", "Before and after", roc_figure(run) or Markup())


def _entanglement(run: Run) -> Section:
    if not run.summary.child("entanglement").data:
        return Section("entanglement", "Entanglement", Markup())
    body = Markup("\n").join([pair_table(run), side_by_side(cloud_figure(run), mass_table(run))])
    lead = (
        "Do the weights that carry the risk (PVE) carry what was learned (TFO)? Both are |gradient times weight|, so a high "
        "correlation is no finding by itself: the rows below the first show how much of it needs no member, or no gradient."
    )
    return Section("entanglement", "Entanglement of risk and learning", body, lead)


def _strip(run: Run) -> Section:
    return Section("strip", "Where the critical weights sit", strip_figure(run) or Markup())


def _attacks(run: Run) -> Section:
    lead = "The loss attack knows no other model. “Shuffled” is the same attack where there is nothing to find."
    return Section("attacks", "Every attack", details("AUC by attack and arm", attack_table(run)), lead)


def _design(run: Run) -> Section:
    data, design, models = (run.summary.child(name) for name in ("data", "design", "models"))
    items = [
        ("records in the pool", count(data.number("pool"))),
        ("reference records, for scores", count(data.number("reference"))),
        ("validation records", count(data.number("validation"))),
        ("test records", count(data.number("test"))),
        ("models", count(design.number("num_models"))),
        ("targets", count(design.number("targets"))),
        ("network", f"{models.text('name')}, {count(models.number('parameters'))} parameters"),
        ("of which may be rewound", count(models.number("eligible"))),
        ("initial weights", models.text("initial")),
        ("repaired model", run.summary.text("repaired")),
    ]
    return Section("design", "Design", provenance.known_pairs(items), half=True)
