"""What a run writes can be read by anything that reads JSON, CSV and numpy, and nothing in it is a Python object."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from fastmem.studies.membership import Outcome
from fastmem.studies.results import mask_counts, spread, write_results


def _outcome(key: str, tpr: float, mean_in: np.ndarray) -> Outcome:
    level = {"tpr": tpr, "resolvable": True, "threshold": float("inf")}
    entry = {"auc": 0.5, "tpr_at_fpr": {"0.01": level}, "details": {"count": np.int64(3), "nan": float("nan")}}
    arrays = {f"roc_{key}_fpr": np.array([0.0, 1.0])}
    size = len(mean_in)
    return Outcome(key, entry, arrays, mean_in, np.zeros(size), np.full(size, 0.25), np.ones(size))


def _write(folder: Path) -> dict[str, object]:
    weak = _outcome("weak", 0.1, np.array([3.0, 1.0, 2.0, 0.0]))
    strong = _outcome("strong", 0.2, np.array([0.5, np.nan, 7.0, 1.0]))
    pictures = np.arange(4 * 3, dtype=np.uint8).reshape(4, 1, 3, 1)
    index, labels = np.array([40, 41, 42, 43]), np.array([0, 1, 0, 1])
    return write_results(folder, "audit", {"seed": 1}, [weak, strong], labels, index, {"answer": "none"}, pictures)


def test_the_summary_is_strict_json(tmp_path: Path) -> None:
    _write(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary["schema"] == 1
    assert summary["attacks"]["weak"]["tpr_at_fpr"]["0.01"]["threshold"] is None
    assert summary["attacks"]["weak"]["details"] == {"count": 3, "nan": None}
    assert summary["exposure_attack"] == "strong"
    assert len(summary["config_hash"]) == 64


def test_records_are_sorted_by_the_strongest_attack(tmp_path: Path) -> None:
    _write(tmp_path)
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["record"]) for row in rows] == [42, 43, 40, 41]  # the one that no target trained on comes last
    assert [float(row["exposure"]) for row in rows][:3] == [7.0, 1.0, 0.5]
    assert rows[0]["weak_in"] == "2.0"
    assert rows[0]["found_at_1pct_fpr"] == "0.25"


def test_the_reports_arrays_need_no_pickle(tmp_path: Path) -> None:
    _write(tmp_path)
    with np.load(tmp_path / "report_data.npz", allow_pickle=False) as arrays:
        assert arrays["exposed_index"].tolist() == [42, 43, 40, 41]
        assert arrays["exposed_picture"].dtype == np.uint8
        assert arrays["exposed_picture"][0].ravel().tolist() == [6, 7, 8]
        assert "roc_strong_fpr" in arrays.files


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _write(tmp_path / "a")
    _write(tmp_path / "b")
    for name in ("scores.csv", "report_data.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_spread_and_counts() -> None:
    assert spread(np.array([1.0, 3.0])) == {"mean": 2.0, "std": 2**0.5, "min": 1.0, "max": 3.0}
    keep = np.array([[True, False, False], [True, True, False]])
    assert mask_counts(keep, [0, 1])["n_in"] == {"min": 1, "mean": 1.5, "max": 2}
    assert mask_counts(keep, [1])["n_out"] == {"min": 1, "mean": 1.0, "max": 1}
