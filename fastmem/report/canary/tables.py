"""The tables of a canary study: settings, variants of the score, and why the image-level tests are not the answer."""

from __future__ import annotations

import math

from markupsafe import Markup

from fastmem.report.canary.results import CONTROLS, Cell, Own, Share, Test, Variant, p_value
from fastmem.report.tables import MISSING, Column, Table, fixed, percent, signed
from fastmem.report.tables import Cell as Field

__all__ = ["own_table", "sensitivity_table", "setting_table", "variant_table"]

_TESTS = {"t": "paired t test over images", "mann_whitney": "Mann-Whitney U over images"}


def setting_table(cells: list[Cell], variant: str, level: float) -> Markup:
    """A row per training variant and count of marked records."""
    columns = [
        Column("Training variant", "marked records k", numeric=False),
        Column("Accuracy", "train / held out"),
        Column("Paired difference", "95% interval"),
        Column("Wilcoxon p", "sign-flip p"),
        Column("Effect size", "paired; AUC unpaired"),
        Column("Power of one model", f"rank p ≤ {level:g} among nulls"),
        Column("The same, never saw", f"expected at most {percent(level)}"),
        *(Column("Control", f"{text}: difference, p") for text in CONTROLS.values()),
    ]
    rows = [_setting_row(cell, cell.variants[variant], level) for cell in cells if variant in cell.variants]
    return Table("The same models with the mark and without it", columns, rows, 0).html()


def _setting_row(cell: Cell, variant: Variant, level: float) -> list[Field]:
    test = variant.paired
    return [
        Field(cell.title, [f"k = {cell.copies}; {test.n:.0f} pairs"]),
        Field(f"{percent(cell.train_accuracy, unit=False)} / {percent(cell.test_accuracy)}"),
        *_difference(test, level),
        Field(fixed(test.standardised, 2), [f"AUC {fixed(test.auc, 2)}"]),
        _share(variant.power),
        _share(variant.null_power),
        *(_control(variant.controls.get(name)) for name in CONTROLS),
    ]


def variant_table(cell: Cell, headline: str, level: float) -> Markup:
    """A row per variant of the score, in one setting."""
    columns = [
        Column("Variant of the M score", numeric=False),
        Column("With the mark", "mean ± s.d. over models"),
        Column("Never saw it", "mean ± s.d."),
        Column("Paired difference", "95% interval"),
        Column("Wilcoxon p", "sign-flip p"),
        Column("Power of one model", f"rank p ≤ {level:g} among nulls"),
        Column("Among control marks", "with the mark / never saw"),
    ]
    rows = []
    for variant in cell.variants.values():
        shares = variant.control_rank
        rows.append(
            [
                Field(variant.title, [variant.key]),
                *(Field(_spread(values)) for values in (variant.canary, variant.null)),
                *_difference(variant.paired, level),
                _share(variant.power),
                Field(
                    " / ".join(
                        percent(shares[name].value) if name in shares else MISSING for name in ("canary", "null")
                    )
                ),
            ]
        )
    keys = list(cell.variants)
    return Table(
        f"Every variant, {cell.name}", columns, rows, keys.index(headline) if headline in keys else None
    ).html()


def sensitivity_table(cells: list[Cell], variant: str, level: float) -> Markup:
    """How often the papers' image-level tests reject, for models with the mark and for models that never saw it."""
    columns = [
        Column("Setting", numeric=False),
        *(
            Column(title, f"share p ≤ {level:g}: {who}")
            for title in _TESTS.values()
            for who in ("with the mark", "never saw it")
        ),
    ]
    rows = []
    for cell in cells:
        if variant not in cell.variants:
            continue
        row = [Field(cell.name)]
        for test in _TESTS:
            found = cell.variants[variant].sensitivity.get(test, {})
            for who in ("canary", "null"):
                share = found.get(who)
                high = who == "null" and share is not None and share.low > level
                row.append(
                    Field(MISSING)
                    if share is None
                    else Field(share.text, [share.interval], "bad" if high else "", "above its level" if high else "")
                )
        rows.append(row)
    return Table("Sensitivity tests: rejections by setting", columns, rows).html()


def own_table(own: list[Own], headline: str, level: float) -> Markup:
    """A row per variant of the score of the user's model."""
    columns = [
        Column("Variant of the M score", numeric=False),
        Column("Your model"),
        Column("Null models", "mean ± s.d."),
        Column("Rank p", "among null models"),
        Column("Rank p", "among control marks"),
        Column("Sensitivity test", "paired t over images: p"),
        Column("The same rejects", "for null models"),
    ]
    rows = [
        [
            Field(entry.title, [entry.key]),
            Field(signed(entry.value)),
            Field(_spread(entry.null), [f"{entry.n_null:.0f} models"]),
            Field(p_value(entry.rank_p), tone="bad" if entry.rank_p <= level else ""),
            Field(p_value(entry.control_rank_p), [f"{entry.n_controls:.0f} marks"]),
            Field(p_value(entry.t), tone="muted"),
            Field(entry.null_share.text, [entry.null_share.interval]),
        ]
        for entry in own
    ]
    keys = [entry.key for entry in own]
    return Table("Your model beside models that never saw the mark", columns, rows, keys.index(headline)).html()


def _difference(test: Test, level: float) -> list[Field]:
    found = test.p_value <= level
    return [
        Field(signed(test.effect), [test.interval]),
        Field(p_value(test.p_value), [p_value(test.p_sign_flip)], "bad" if found else "", "trace" if found else ""),
    ]


def _share(share: Share) -> Field:
    return Field(share.text, [share.interval] if math.isfinite(share.low) else [])


def _control(test: Test | None) -> Field:
    if test is None:
        return Field(MISSING, ["not run"], tone="muted")
    return Field(signed(test.effect), [f"p {p_value(test.p_value)}, n = {test.n:.0f}"])


def _spread(values: tuple[float, float]) -> str:
    return f"{signed(values[0])} ± {abs(values[1]):.2g}" if math.isfinite(values[0]) else MISSING
