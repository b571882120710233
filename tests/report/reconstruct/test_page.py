"""The page of a reconstruction study, from the files of a real small one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fastmem.errors import StoreError
from fastmem.report.reconstruct import write_reconstruct_report
from fastmem.report.redraw import write_report
from fastmem.studies.reconstruct import ReconstructConfig, run_reconstruct

CONFIG = {"n": 4, "held_out": 30, "hidden": (40, 40), "iterations": 30, "restarts": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_reconstruct(ReconstructConfig(out=tmp_path_factory.mktemp("page") / "run", **CONFIG)).run_dir


def test_the_same_files_give_the_same_bytes(run_dir: Path) -> None:
    drawn = (run_dir / "report.html").read_bytes()
    assert write_report(run_dir).read_bytes() == drawn


def test_every_image_stands_beside_what_was_found_and_its_controls(run_dir: Path) -> None:
    page = (run_dir / "report.html").read_text()
    rows = re.findall(r"<li>(.*?)</li>", page.split('<ol class="strips">')[1], re.DOTALL)
    assert len(rows) >= 4
    for row in rows[:4]:
        captions = re.findall(r"<figcaption>([^<]*)<", row)
        assert captions == [
            "Training image",
            "Reconstructed",
            "First-layer row",
            "Best of all rows",
            "Untrained row",
            "Random",
        ]
    best = [float(value) for value in re.findall(r"<strong>(-?[\d.]+)</strong></span></figcaption>", page)]
    assert best == sorted(best, reverse=True)
    for word in ("Mean image", "never trained on", "Residuals", "oracle"):
        assert word in page
    assert "<script" not in page
    assert "nan" not in re.sub(r"data:image/png;base64,[^\"]*", "", page).lower().split()
    assert "mathdefault" not in page


def test_names_from_outside_are_escaped(run_dir: Path, tmp_path: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    summary["data"]["name"] = "<script>alert(1)</script>"
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "report_data.npz").write_bytes((run_dir / "report_data.npz").read_bytes())
    page = write_reconstruct_report(tmp_path).read_text()
    assert "<script>alert" not in page


def test_files_that_are_damaged_or_without_pictures(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes((run_dir / "summary.json").read_bytes())
    with pytest.raises(StoreError):
        write_reconstruct_report(tmp_path)
    np.savez(tmp_path / "report_data.npz", steps=np.array([0]))
    page = write_reconstruct_report(tmp_path).read_text()
    assert "Counts and controls" in page
    summary = json.loads((run_dir / "summary.json").read_text())
    summary["victims"] = 3
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(StoreError, match="victims is not a list"):
        write_reconstruct_report(tmp_path)
