"""The table for the terminal: one line an attack, 100 columns, plain characters."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fastmem.errors import StoreError
from fastmem.report import audit_table


def lines(summary: dict[str, Any], width: int = 100) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(audit_table(summary))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def attack(tpr: float, auc: float, **more: Any) -> dict[str, Any]:
    at = {"tpr": tpr, "low": tpr - 0.01, "high": tpr + 0.01, "n_out": 32000, "resolvable": True}
    control = {"auc": 0.5, "auc_low": 0.49, "auc_high": 0.51}
    base = {"auc": auc, "auc_low": auc - 0.01, "auc_high": auc + 0.01, "tpr_at_fpr": {"0.01": at, "0.001": at}}
    return base | {"controls": {"shuffled": control, "never_saw": control}} | more


def test_attacks_stand_in_order_with_their_intervals() -> None:
    table = lines({"attacks": {"loss": attack(0.02, 0.56), "lira_offline_cdf_fixed": attack(0.3, 0.7)}})
    first, second = (next(line for line in table if line.startswith(key)) for key in ("lira_off", "loss"))
    assert table.index(first) < table.index(second)
    assert first.split() == [
        *("lira_offline_cdf_fixed", ".700", ".690-.710", "30.0", "29.0-31.0", "30.0", "29.0-31.0"),
        *(".490-.510", ".490-.510"),
    ]
    assert "95%" in " ".join(table)


def test_it_fits_100_columns_in_plain_characters(write_run, tmp_path: Path) -> None:
    summary = json.loads((write_run(tmp_path, models=8, records=60) / "summary.json").read_text())
    table = lines(summary)
    assert max(map(len, table)) <= 100
    assert all(line.isascii() for line in table), "an ellipsis or a dash that some terminals lack"
    assert sum(line.split(" ")[0] in summary["attacks"] for line in table) == len(summary["attacks"])


def test_levels_that_cannot_be_resolved_say_so() -> None:
    low = {"tpr": 0.2, "n_out": 500, "resolvable": False}
    loss = attack(0.02, 0.56)
    loss["tpr_at_fpr"]["0.001"] = low
    table = lines({"attacks": {"loss": loss}})
    row = next(line for line in table if line.startswith("loss"))
    assert "n/r" in row
    assert "20.0" not in row, "the value of an unresolvable level must not be read as that level's"
    assert "too few non-members" in " ".join(table)


def test_a_control_off_chance_is_marked_and_only_that_one() -> None:
    leak, luck = ({"auc": auc, "auc_low": auc - 0.01, "auc_high": auc + 0.01} for auc in (0.42, 0.512))
    bad, unlucky = attack(0.02, 0.56), attack(0.02, 0.55)
    bad["controls"] = bad["controls"] | {"never_saw": leak}
    unlucky["controls"] = unlucky["controls"] | {"never_saw": luck}
    table = lines({"attacks": {"loss": bad, "top3": unlucky, "global": attack(0.01, 0.5)}})
    assert [line.split()[0] for line in table if line.endswith("-.430 !!")] == ["loss"]
    assert [line.split()[0] for line in table if line.endswith("-.522 !")] == ["top3"]
    assert "misses .500" in " ".join(table)
    assert "!" not in "".join(lines({"attacks": {"global": attack(0.01, 0.5)}}))


def test_an_interval_that_only_just_misses_does_not_look_as_if_it_held() -> None:
    barely = attack(0.02, 0.56)
    barely["controls"] = {"shuffled": {"auc": 0.507, "auc_low": 0.50012, "auc_high": 0.514}, "never_saw": None}
    row = next(line for line in lines({"attacks": {"loss": barely}}) if line.startswith("loss"))
    assert ".5001-.5140 !" in row


def test_missing_numbers_are_dashes() -> None:
    table = lines({"attacks": {"loss": {"auc": math.nan, "tpr_at_fpr": {"0.01": {"tpr": None}}}}})
    row = next(line for line in table if line.startswith("loss"))
    assert row.split() == ["loss", "-", "-", "-", "-", "-"]
    assert lines({})


def test_wrong_or_newer_summaries_are_refused() -> None:
    with pytest.raises(StoreError, match="newer"):
        audit_table({"schema": 99})
    with pytest.raises(StoreError, match="attacks is not an object"):
        audit_table({"attacks": [1]})
