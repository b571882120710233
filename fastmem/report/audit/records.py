"""Which records leak most: their pictures, and the labels that they have more often than the pool does."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from markupsafe import Markup

from fastmem.report.audit.run import Run
from fastmem.report.html import Exhibit, Section, details, gallery, picture
from fastmem.report.tables import TIMES, Cell, Column, Table, compact, count, fixed, percent

__all__ = ["records"]

_MOST_EXPOSED = 24
_TOP_SHARE = 0.1
_FOUND = "found_at_1pct_fpr"


def records(run: Run) -> Section:
    """The most exposed records, with pictures where the data are pictures."""
    exhibits = _exhibits(run)
    parts = [gallery(exhibits)] if exhibits else []
    if table := _label_table(run):
        parts.append(table)
    return Section("records", "Most exposed records", Markup("\n").join(parts), _lead(run))


def _lead(run: Run) -> str:
    attack = run.attack(run.summary.text("exposure_attack")) or next(iter(run.attacks), None)
    sentences = []
    found = [share for share in map(_number, run.scores.columns.get(_FOUND, [])) if math.isfinite(share)]
    if found:
        often = sum(share >= 0.5 for share in found)
        sentences.append(
            f"At 1% FPR, {count(often)} of {count(len(found))} records are found in at least half of the models that "
            f"were trained on them."
        )
    name = attack.title if attack else "the strongest attack"
    sentences.append(
        f"Score: by {name}, the mean over the targets that were trained on the record; rank ±: how far its place among "
        f"all records moves from target to target; found in: the share of those targets that name it at 1% FPR. All {count(run.scores.num_records)} records are in scores.csv."
    )
    return " ".join(sentences)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _exhibits(run: Run) -> list[Exhibit]:
    index = run.arrays.get("exposed_index")
    if index is None:
        return []
    fields = {name: run.arrays.get(f"exposed_{name}") for name in ("label", "score", "rank_std", "picture")}
    for name, values in fields.items():
        if values is not None and (values.ndim == 0 or len(values) != len(index)):
            raise run.bad_array(f"exposed_{name} has not one entry for each of the {len(index)} exposed records")
    pictures = fields["picture"]
    if pictures is not None and (pictures.ndim != 4 or pictures.dtype != np.uint8):
        found = f"{pictures.dtype} of {pictures.ndim} dimensions"
        raise run.bad_array(f"exposed_picture is {found}, not uint8 [K, C, H, W]")
    found = dict(
        zip(run.scores.columns.get("record", []), map(_number, run.scores.columns.get(_FOUND, [])), strict=False)
    )
    return [
        _exhibit(run, place, int(record), fields, found.get(str(int(record)), math.nan))
        for place, record in enumerate(index[:_MOST_EXPOSED])
    ]


def _exhibit(run: Run, place: int, record: int, fields: dict[str, Any], found: float) -> Exhibit:
    def value(name: str) -> float:
        return math.nan if fields[name] is None else float(fields[name][place])

    label = run.label(fields["label"][place]) if fields["label"] is not None else ""
    lines = [f"score {compact(value('score'))}"]
    if math.isfinite(value("rank_std")):
        lines.append(f"rank ± {fixed(value('rank_std'), 1)}")
    if math.isfinite(found):
        lines.append(f"found in {found:.0%}")
    pixels = fields["picture"]
    alt = f"Record {record}{f', label {label}' if label else ''}, {lines[0]}"
    image = picture(pixels[place], alt) if pixels is not None else None
    return Exhibit(
        f"label {label}" if label else f"record {record}", [f"record {record}", *lines] if label else lines, image
    )


def _label_table(run: Run) -> Markup | None:
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
        name = run.label(label) if label.lstrip("-").isdigit() else label
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
