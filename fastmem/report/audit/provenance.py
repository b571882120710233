"""Where an audit's numbers come from: training, design, time, environment, warnings, configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from fastmem.report.artifacts import Fields
from fastmem.report.audit.run import Run
from fastmem.report.audit.tables import stage_table
from fastmem.report.html import Section, details, notes, pairs
from fastmem.report.tables import MISSING, TIMES, count, percent, span

__all__ = ["configuration", "design", "environment", "time", "training", "warnings"]


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
    return Section("training", "Training", _pairs(items), lead, half=True)


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
    return Section("design", "Design", _pairs(items), lead, half=True)


def _counts(fields: Fields) -> str:
    low, mean, high = (fields.number(name) for name in ("min", "mean", "max"))
    if not math.isfinite(mean):
        return ""
    return count(mean) if low == high else f"{count(round(mean, 1))} ({span(count(low), count(high))})"


def time(run: Run) -> Section:
    """Seconds by stage, but for the drawing of this page, which cannot know how long that takes."""
    stages = run.summary.child("stages")
    names = [name for name in stages.data if name != "report"]
    body = stage_table({name: stages.number(name) for name in names}) if names else Markup()
    return Section("time", "Time", body, half=True)


def environment(run: Run) -> Section:
    """Versions, device, and the hashes that tell this run from any other."""
    summary = run.summary
    items = [
        ("fastmem", summary.text("fastmem_version")),
        ("configuration", summary.text("config_hash")),
        ("data", summary.child("data").text("fingerprint")),
        *((name, value) for name, value in _flat(summary.child("environment").data) if value != "null"),
    ]
    return Section("environment", "Environment", _pairs(items, code=True), half=True)


def warnings(run: Run) -> Section:
    """Each warning once, with the attacks that it concerns."""
    concerns: dict[str, list[str]] = {text: [] for text in run.summary.texts("warnings")}
    for attack in run.attacks:
        for text in attack.warnings:
            concerns.setdefault(text, []).append(attack.title)
    body = notes([(text, ", ".join(names)) for text, names in concerns.items()]) if concerns else Markup()
    return Section("warnings", "Warnings", body)


def configuration(run: Run) -> Section:
    """Every setting."""
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
