"""What every study's page says of its run: the head, and where the numbers come from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from fastmem.report.artifacts import Fields
from fastmem.report.html import Card, Head, Section, details, notes, pairs
from fastmem.report.tables import MISSING, Cell, Column, Table, duration

__all__ = ["configuration", "environment", "head", "known_pairs", "moment", "stage_table", "time", "warnings"]


def head(summary: Fields, kind: str, cards: Sequence[Card]) -> Head:
    """The answer, what it is about, and the figures behind it."""
    data, models = summary.child("data"), summary.child("models")
    parts = [data.text("name"), models.text("name"), moment(summary.text("created"))]
    return Head(
        kind=kind,
        answer=summary.text("answer", "This run states no answer."),
        subject=" · ".join(part for part in parts if part),
        cards=list(cards),
    )


def warnings(summary: Fields) -> Section:
    """What the run warns of."""
    texts = summary.texts("warnings")
    return Section("warnings", "Warnings", notes([(text, "") for text in texts]) if texts else Markup())


def time(summary: Fields) -> Section:
    """Seconds by stage, but for the drawing of this page, which cannot know how long that takes."""
    stages = summary.child("stages")
    names = [name for name in stages.data if name != "report"]
    body = stage_table({name: stages.number(name) for name in names}) if names else Markup()
    return Section("time", "Time", body, half=True)


def environment(summary: Fields) -> Section:
    """Versions, device, and the hashes that tell this run from any other."""
    items = [
        ("fastmem", summary.text("fastmem_version")),
        ("configuration", summary.text("config_hash")),
        ("data", summary.child("data").text("fingerprint")),
        *((name, value) for name, value in _flat(summary.child("environment").data) if value != "null"),
    ]
    return Section("environment", "Environment", known_pairs(items, code=True), half=True)


def configuration(summary: Fields) -> Section:
    """Every setting."""
    items = _flat(summary.child("config").data)
    body = details("All settings of this run", known_pairs(items, code=True)) if items else Markup()
    study = summary.text("study", "audit")
    lead = f"config.yaml beside this file runs the same study again: fastmem {study} --config config.yaml"
    return Section("configuration", "Configuration", body, lead)


def moment(created: str) -> str:
    """An ISO time without its fractions; any other text as it is."""
    try:
        return f"{datetime.fromisoformat(created):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return created


def known_pairs(items: Sequence[tuple[str, str]], *, code: bool = False) -> Markup:
    """Names and values, without those that are unknown."""
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


def stage_table(stages: Mapping[str, float]) -> Markup:
    """Seconds per stage, each with a bar of its share of the whole."""
    known = {name: seconds for name, seconds in stages.items() if math.isfinite(seconds)}
    total = sum(known.values())
    rows = [
        [name.replace("_", " "), Cell(duration(seconds), bar=seconds / total if total > 0 else 0.0)]
        for name, seconds in known.items()
    ]
    columns = [Column("Stage", numeric=False), Column("Time")]
    return Table(f"Time by stage, {duration(total)} in all", columns, rows).html()
