"""Where an audit's numbers come from: training, design, warnings."""

from __future__ import annotations

import math

from markupsafe import Markup

from fastmem.report.artifacts import Fields
from fastmem.report.audit.run import Run
from fastmem.report.html import Section, notes
from fastmem.report.provenance import known_pairs
from fastmem.report.tables import TIMES, count, percent, span

__all__ = ["design", "training", "warnings"]


def training(run: Run) -> Section:
    """Model and accuracies."""
    models = run.summary.child("models")
    items = [("model", models.text("name")), ("parameters", count(models.number("parameters")))]
    for part in ("train", "test"):
        accuracy = models.child(f"{part}_accuracy")
        mean, std, low, high = (accuracy.number(name) for name in ("mean", "std", "min", "max"))
        if math.isfinite(mean):
            text = percent(mean) + (f" ± {percent(std, unit=False)}" if math.isfinite(std) else "")
            ends = span(percent(low, unit=False), percent(high))
            items.append((f"{part} accuracy", f"{text} ({ends})" if ends else text))
    target = run.summary.child("target")
    if target.data:
        items += [
            (f"{part} accuracy of the audited model", percent(target.number(f"{part}_accuracy")))
            for part in ("train", "test")
        ]
    lead = "A wide gap between the two accuracies goes with leakage, but a narrow one does not rule it out."
    return Section("training", "Training", known_pairs(items), lead, half=True)


def design(run: Run) -> Section:
    """How many records, models and targets, and who was trained on what."""
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
        ("control models", count(design.number("null_models"))),
        ("targets", count(len(targets)) if isinstance(targets, list) else design.text("targets")),
        *(
            (f"{word} per target", _counts(design.child(name)))
            for name, word in (("n_in", "members"), ("n_out", "non-members"))
        ),
    ]
    halves = design.text("kind") in ("rank", "paired")
    lead = (
        "Every record is in the training set of half of the models; the other half has never seen it." if halves else ""
    )
    return Section("design", "Design", known_pairs(items), lead, half=True)


def _counts(fields: Fields) -> str:
    low, mean, high = (fields.number(name) for name in ("min", "mean", "max"))
    if not math.isfinite(mean):
        return ""
    return count(mean) if low == high else f"{count(round(mean, 1))} ({span(count(low), count(high))})"


def warnings(run: Run) -> Section:
    """Each warning once, with the attacks that it concerns."""
    concerns: dict[str, list[str]] = {text: [] for text in run.summary.texts("warnings")}
    for attack in run.attacks:
        for text in attack.warnings:
            concerns.setdefault(text, []).append(attack.title)
    body = notes([(text, ", ".join(names)) for text, names in concerns.items()]) if concerns else Markup()
    return Section("warnings", "Warnings", body)
