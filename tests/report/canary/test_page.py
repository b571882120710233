"""The page of a canary study, drawn from a stored run: complete, self-contained, robust, deaf to markup."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fastmem.errors import StoreError
from fastmem.report import canary_table, write_canary_report, write_report

EVIL = "<img src=x onerror=alert(1)></style><script>'\""
SECTIONS = [
    *("mark", "scores", "settings", "variants", "sensitivity", "design", "work", "time", "environment"),
    *("configuration", "reading"),
]


def lines(summary: dict[str, Any], width: int = 110) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(canary_table(summary))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_an_old_report_still_opens(canary_dir: Path, read_page) -> None:
    summary = json.loads((canary_dir / "summary.json").read_text())
    page = read_page(write_canary_report(canary_dir))
    assert [section["id"] for section in page.tags("section")] == SECTIONS
    assert summary["answer"] in page.text
    assert len(page.tags("img")) >= 4 + 2 * len(summary["design"]["records"])
    for cell in summary["cells"]:
        assert f"k = {cell['copies']}" in page.section("settings")
    assert "Believe the paired difference" in page.text
    assert page.section("sensitivity").count("never saw it") >= 2


def test_the_same_files_give_the_same_bytes_by_either_door(canary_dir: Path) -> None:
    first = write_canary_report(canary_dir).read_bytes()
    assert write_report(canary_dir).read_bytes() == first


def test_the_figures_show_every_model(canary_dir: Path) -> None:
    page = write_canary_report(canary_dir).read_text()
    strips = page.partition('id="strips-')[2].partition("</svg>")[0]
    for token in ("series-1", "series-2", "series-6"):
        assert f"var(--{token})" in strips
    # 4 settings of 6 models with the mark, their partners, and 3 control marks in each.
    assert strips.count("<use") >= 4 * (6 + 6 + 18)


def test_a_sensitivity_test_far_above_its_level_is_marked(change, read_page) -> None:
    def inflate(summary: dict[str, Any]) -> None:
        share = summary["cells"][0]["variants"]["log_ratio"]["sensitivity"]["t"]["null"]
        share |= {"share": 0.9, "k": 18, "n": 20, "low": 0.68, "high": 0.99}

    page = read_page(write_canary_report(change(inflate)))
    assert "above its level" in page.section("sensitivity")
    head = page.source.partition("<main>")[0]
    assert "90.0%" in head
    assert "do not use it as the answer" in head


def test_names_from_outside_stay_text(change, read_page) -> None:
    def poison(summary: dict[str, Any]) -> None:
        summary["answer"] = summary["created"] = EVIL
        summary["data"]["name"] = summary["models"]["name"] = summary["feature"]["name"] = EVIL
        summary["config"] = {EVIL: EVIL}
        summary["warnings"] = [EVIL]
        for cell in summary["cells"]:
            cell["regularise"] = EVIL
            for variant in cell["variants"].values():
                variant["title"] = EVIL

    page = read_page(write_canary_report(change(poison)))
    assert page.text.count(EVIL) > 20


def test_a_model_of_ones_own(own_dir: Path, read_page) -> None:
    page = read_page(write_canary_report(own_dir))
    anchors = [section["id"] for section in page.tags("section")]
    assert {"scores", "settings"} <= set(anchors)
    assert not {"variants", "sensitivity"} & set(anchors)
    assert "Rank p among control marks" in page.text
    summary = json.loads((own_dir / "summary.json").read_text())
    assert any("log_ratio" in line and "0.25" in line for line in lines(summary))


def test_missing_arrays_drop_out_and_wrong_ones_are_named(canary_dir: Path, read_page) -> None:
    np.savez(canary_dir / "report_data.npz", variants=np.array(["log_ratio"]))
    anchors = [section["id"] for section in read_page(write_canary_report(canary_dir)).tags("section")]
    assert "mark" not in anchors
    assert "settings" in anchors
    np.savez(canary_dir / "report_data.npz", variants=np.array(["log_ratio"]), canary_scores=np.zeros(3))
    with pytest.raises(StoreError, match=r"canary_scores is float64 \[3\]"):
        write_canary_report(canary_dir)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda summary: summary.update(cells=3), "cells is not a list"),
        (lambda summary: summary.update(schema=99), "newer"),
        (lambda summary: summary["cells"][0]["variants"]["log_ratio"].update(paired=[1]), "paired is not an object"),
    ],
)
def test_a_damaged_summary_is_one_line(change, edit, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        write_canary_report(change(edit))


def test_an_unknown_study_is_refused(change) -> None:
    with pytest.raises(StoreError, match="study is not one of audit"):
        write_report(change(lambda summary: summary.update(study="tarot")))


def test_the_terminal_table_fits_and_is_plain(canary_dir: Path) -> None:
    summary = json.loads((canary_dir / "summary.json").read_text())
    table = lines(summary)
    assert len([line for line in table if line.startswith(("none", "dropout"))]) == 4
    assert all(len(line) <= 110 and line.isascii() for line in table)
    assert "no evidence" in " ".join(table)
