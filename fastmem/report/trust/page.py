"""The report of a trust study: a pure function of the files in its run folder."""

from __future__ import annotations

import math
from pathlib import Path

from markupsafe import Markup

from fastmem.report import provenance
from fastmem.report.artifacts import write_text
from fastmem.report.html import Card, Head, LegendEntry, Section, details, figure, page, render, side_by_side
from fastmem.report.tables import count, duration, fixed, percent, span
from fastmem.report.theme import MEMBER, NON_MEMBER
from fastmem.report.trust.figures import confidence_figures, fpr_figure, reliability_figures, trade_off_figure
from fastmem.report.trust.pictures import false_members, generator_grids
from fastmem.report.trust.run import Run, load_run
from fastmem.report.trust.tables import attack_table, calibration_table, control_table, group_table, set_table

__all__ = ["write_trust_report"]


def write_trust_report(run_dir: str | Path) -> Path:
    """Draw the report of a finished trust study again; the same files give the same bytes.

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
    title = f"Trust in prediction scores, {run.summary.child('data').text('name', 'a data set')}"
    write_text(file, page(title, _head(run), _sections(run)))
    return file


def _sections(run: Run) -> list[Section]:
    candidates = [
        _sets(run),
        _calibration(run),
        _pictures(run),
        _attacks(run),
        _confidence(run),
        _reliability(run),
        _controls(run),
        _generator(run),
        _design(run),
        provenance.time(run.summary),
        provenance.environment(run.summary),
        provenance.warnings(run.summary),
        provenance.configuration(run.summary),
        Section("reading", "How to read this", render("trust_reading.html.j2")),
    ]
    return [section for section in candidates if section.body]


# The head


def _head(run: Run) -> Head:
    return provenance.head(run.summary, "Trust in prediction scores", _cards(run))


def _cards(run: Run) -> list[Card]:
    plain = run.calibrations[0]
    attack, test = plain.headline, plain.headline.sets["test"]
    cards = [
        Card(
            "Test records accused",
            percent(test.fpr.value),
            f"{test.fpr.percent_interval}; members found: {percent(attack.recall.value)}",
            "bad" if test.fpr.value > 0.25 else "",
        ),
        Card("AUC on test records", fixed(test.auc.value), f"{test.auc.interval}; guessing: 0.5"),
        Card(
            "Mean score, false / true positives",
            f"{fixed(test.mmps['fp'])} / {fixed(test.mmps['tp'])}",
            "false members are as confident as members" if _alike(test.mmps) else "largest probability",
        ),
    ]
    stream = run.summary.child("stream")
    if math.isfinite(stream.number("drawn")):
        interval = span(percent(stream.number("low"), unit=False), percent(stream.number("high")))
        cards.append(
            Card(
                "Generated false members",
                count(stream.number("found")),
                f"of {count(stream.number('drawn'))} drawn: {percent(stream.number('rate'))} ({interval}), in "
                f"{duration(stream.number('seconds'))}",
            )
        )
    cards.append(
        Card(
            "Accuracy, train / test",
            f"{percent(plain.train_accuracy, unit=False)} / {percent(plain.test_accuracy.value)}",
            f"calibration error {fixed(plain.ece)}",
        )
    )
    return cards


def _alike(mmps: dict[str, float]) -> bool:
    return abs(mmps["fp"] - mmps["tp"]) < 0.01


# What was found


def _sets(run: Run) -> Section:
    comparison = trade_off_figure(run) if len(run.calibrations) > 1 else None
    body = Markup("\n").join([side_by_side(fpr_figure(run), comparison), set_table(run)])
    lead = (
        "The attack is fitted on a shadow model and asked about records that no model trained on: every bar is a false "
        "accusation. The AUC of a set that looks unlike the data is no evidence of membership: the last column is a "
        "network that was never trained."
    )
    return Section("sets", "False members by set", body, lead)


def _calibration(run: Run) -> Section:
    lead = (
        "Does a model that knows better what it does not know reveal more about its members? Target and shadow model are "
        "calibrated alike; figures are means over the targets."
    )
    return Section("calibration", "Calibration and what it tells", calibration_table(run), lead)


def _pictures(run: Run) -> Section:
    lead = (
        "Records that no model trained on and that the first target is surest of, among those called members, with the "
        "class it gives them. Two preprocessing errors look like the records they are made of."
    )
    return Section("false-members", "The most confident false members", Markup("\n").join(false_members(run)), lead)


def _attacks(run: Run) -> Section:
    lead = (
        "Attacks on the same uncalibrated targets. Those that need a label get the class that the target gives, where a "
        "record has none of its own. Attacks that compare with other models are asked whether they make the same mistakes."
    )
    parts = [attack_table(run), details("How sure the target is of whom", group_table(run))]
    return Section("attacks", "Do other attacks make the same mistakes?", Markup("\n").join(parts), lead)


def _confidence(run: Run) -> Section:
    panels = confidence_figures(run, run.calibrations[0])
    if not panels:
        return Section("confidence", "Confidence by set", Markup())
    legend = [LegendEntry("members", MEMBER), LegendEntry("the set", NON_MEMBER, "6 3")]
    parts = [render("trust_multiples.html.j2", panels=panels), figure(Markup(), "", legend)]
    for calibration in run.calibrations[1:]:
        more = confidence_figures(run, calibration)
        if more:
            parts.append(details(calibration.title, render("trust_multiples.html.j2", panels=more)))
    lead = (
        "Log-odds of the largest probability, log p - log(1 - p), of the first target: 0 is one half, 7 is 0.999; in "
        "float32 everything beyond about 17 is exactly 1. What lies beyond an axis is counted at its end."
    )
    return Section("confidence", "Confidence by set", Markup("\n").join(parts), lead)


def _reliability(run: Run) -> Section:
    panels = reliability_figures(run)
    body = render("trust_multiples.html.j2", panels=panels) if panels else Markup()
    lead = (
        "Share of right answers (up) by confidence (right) on test records, first target. On the diagonal a model is "
        "right as often as it says; below it, it is overconfident. Larger dots hold more records."
    )
    return Section("reliability", "Reliability", body, lead)


def _controls(run: Run) -> Section:
    alike = run.summary.child("untrained").child("alike")
    parts = [
        f"{run.sets.get(name, name)} {fixed(entry.number('auc'))} "
        f"({span(fixed(entry.number('auc_low')), fixed(entry.number('auc_high')))})"
        for name, entry in alike.children().items()
    ]
    body = control_table(run)
    if parts:
        body += Markup("<p>{}</p>").format(
            "An untrained network on members and test records that are shown in the same way, AUC: "
            + "; ".join(parts)
            + "."
        )
    return Section("controls", "Controls", body, "The same attacks where there is nothing to find.")


def _generator(run: Run) -> Section:
    entry = run.summary.child("generator")
    if not entry.data:
        return Section("generator", "The generator", Markup())
    items = [
        ("source", entry.text("source")),
        ("steps", count(entry.number("steps"))),
        ("trained on held-out records", count(entry.number("records"))),
        ("loss of the discriminator, at the end", fixed(entry.number("loss_discriminator"), 2)),
        ("loss of the generator, at the end", fixed(entry.number("loss_generator"), 2)),
    ]
    body = side_by_side(provenance.known_pairs(items), generator_grids(run) or None)
    lead = "It never saw a member: what it draws and the attack accuses is certainly a false member."
    return Section("generator", "The generator", body, lead if entry.text("source") == "dcgan" else "")


def _design(run: Run) -> Section:
    data, design, models = (run.summary.child(name) for name in ("data", "design", "models"))
    items = [
        ("records in the pool", count(data.number("pool"))),
        ("test records", count(data.number("test"))),
        ("held-out records", count(data.number("held_out"))),
        ("members asked about, a target", count(design.number("attack_size"))),
        ("models of each calibration", count(design.number("num_models"))),
        ("models trained in all", count(models.number("trained"))),
        ("targets", count(design.number("targets"))),
        ("network", f"{models.text('name')}, {count(models.number('parameters'))} parameters"),
    ]
    lead = "Models come in pairs that train on opposite halves of the pool; each is the other's shadow model."
    return Section("design", "Design", provenance.known_pairs(items), lead, half=True)
