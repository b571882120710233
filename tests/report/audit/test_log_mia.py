"""Log-MIA on the page of an audit: beside its chance level, absent where a run has none, no words for ranges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.metrics import log_mia_over_targets
from fastmem.report import write_audit_report


def _entry() -> dict[str, Any]:
    members = np.arange(200) < 100
    scores = np.random.default_rng(0).normal(size=200) + 2.0 * members
    return log_mia_over_targets(scores[None], members[None])


def test_a_row_an_attack_with_chance_and_controls(edit: Callable[..., Path], read_page: Callable[..., Any]) -> None:
    entry = _entry()

    def change(summary: dict[str, Any]) -> None:
        attack = next(iter(summary["attacks"].values()))
        attack["log_mia"] = entry
        attack["controls"]["shuffled"]["log_mia"] = entry

    document = read_page(write_audit_report(edit(change)))
    section = document.section("log-mia")
    assert f"{entry['strict']['raw']:.3f}" in section
    assert f"guessing {entry['regular']['chance_mean']:.3f}; 1 in 20 reaches 0.587" in section
    assert f"adjusted {entry['regular']['adjusted']:.3f}" in section
    assert "At most 6 false positives" in section
    assert "oracle" in section
    assert section.count("<tr>") == 2  # the heading, and the one attack that has it


def test_a_run_without_it_has_no_such_section(run_dir: Path, read_page: Callable[..., Any]) -> None:
    assert 'id="log-mia"' not in read_page(write_audit_report(run_dir)).source
