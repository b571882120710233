"""The tables of the benchmarks: what is pooled, what is kept of earlier runs, what the README gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table


def _lap(case: str, contestant: str, seconds: float, *, load: float = 0.0, threads: int = 2) -> dict[str, Any]:
    info = {"case": case, "operator": case, "shape": "(2, 3)", "dtype": "float32", "contestant": contestant}
    info |= {"ours": contestant.startswith("fastmem"), "threads": threads, "bytes": 1000, "work": 1.0}
    return {"extra_info": info | {"bandwidth": 1e9, "other_load": load}, "stats": {"data": [seconds] * 4}}


def _run(folder: Path, *laps: dict[str, Any]) -> str:
    raw = folder / "raw.json"
    raw.write_text(json.dumps({"benchmarks": list(laps)}))
    return table.render(raw, folder, device="cpu")


def _rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return {(row["operator"], row["contestant"]): row for row in rows}


def test_a_case_that_is_measured_again_is_replaced_whole_and_others_stay(tmp_path: Path) -> None:
    _run(tmp_path, _lap("a", "eager", 4e-3), _lap("a", "fastmem cpu", 1e-3), _lap("b", "fastmem cpu", 2e-3))
    _run(tmp_path, _lap("a", "fastmem cpu", 3e-3))
    rows = _rows(tmp_path)
    assert set(rows) == {("a", "fastmem cpu"), ("b", "fastmem cpu")}
    assert rows["a", "fastmem cpu"]["median_ms"] == pytest.approx(3.0)
    assert rows["b", "fastmem cpu"]["median_ms"] == pytest.approx(2.0)


def test_quiet_laps_count_and_a_row_without_any_says_that_the_machine_was_busy(tmp_path: Path) -> None:
    quiet_once = [_lap("a", "fastmem cpu", 9e-3, load=1.5), _lap("a", "fastmem cpu", 1e-3)]
    never = [_lap("b", "fastmem cpu", 5e-3, load=0.9), _lap("b", "fastmem cpu", 7e-3, load=1.1)]
    text = _run(tmp_path, *quiet_once, *never)
    rows = _rows(tmp_path)
    assert rows["a", "fastmem cpu"]["median_ms"] == pytest.approx(1.0)
    assert rows["b", "fastmem cpu"]["other_load_cores"] == pytest.approx(1.1)
    marked = {line.split(",")[0] for line in text.splitlines() if "(busy machine)" in line}
    assert marked == {"| b"}


def test_ratios_stand_against_the_baseline_compile_and_peers(tmp_path: Path) -> None:
    laps = [_lap("a", name, ms / 1e3) for name, ms in (("eager", 8), ("compile", 4), ("other 1.0", 6))]
    (line,) = [
        line for line in _run(tmp_path, *laps, _lap("a", "fastmem cpu", 2e-3)).splitlines() if "| a, cpu" in line
    ]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:9] == ["8", "4", "2", "4x", "2x", "3x other 1.0"]


def test_the_readme_gets_the_rows_of_the_most_threads_between_its_marks(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "here"
    folder.mkdir(parents=True)
    _run(folder, _lap("a", "eager", 4e-3), _lap("a", "fastmem cpu", 1e-3), _lap("b", "fastmem cpu", 1e-3, threads=1))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nafter\n")
    table.update_readme(readme, folder)
    head, rest = readme.read_text().split("<!-- benchmarks: begin -->\n")
    text, tail = rest.split("<!-- benchmarks: end -->")
    assert (head, tail) == ("before\n", "\nafter\n")
    assert "](results/here/results.md)" in text
    (row,) = [line for line in text.splitlines() if "float32" in line]
    assert [cell.strip() for cell in row.strip("|").split("|")][:5] == ["a, cpu", "(2, 3) float32", "4", "1", "4x"]
