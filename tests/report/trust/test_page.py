"""The report is a pure function of a run's files, names what matters, and refuses damaged ones in one line."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from fastmem.errors import StoreError
from fastmem.report import write_report
from fastmem.report.trust import trust_table, write_trust_report
from fastmem.studies.trust import TrustConfig, run_trust
from fastmem.training import Recipe
from fastmem.training.gan import GanRecipe


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrustConfig(
        out=tmp_path_factory.mktemp("report") / "run",
        pool=60,
        test=40,
        held_out=20,
        model_args={"hidden": [8]},
        num_models=2,
        recipe=Recipe(optimizer="adam", schedule="constant", epochs=3),
        gan=GanRecipe(steps=4, batch_size=8, width=4, latent=4, grids=2),
        calibrations="temperature,ensemble",
        false_members=3,
        workers=1,
    )
    return run_trust(config).run_dir


@pytest.fixture
def folder(once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(once, tmp_path / "run")


def test_the_page_holds_every_part(once: Path) -> None:
    text = (once / "report.html").read_text()
    for anchor in (
        "sets",
        "calibration",
        "false-members",
        "attacks",
        "confidence",
        "reliability",
        "controls",
        "generator",
    ):
        assert f'<section id="{anchor}"' in text
    summary = json.loads((once / "summary.json").read_text())
    assert summary["answer"].split(";")[0] in text.replace("&#39;", "'")
    for entry in summary["sets"].values():
        assert entry["title"] in text
    assert text.count("data:image/png") >= 6
    assert "nan" not in re.sub(r"data:image/png;base64,[^\"]*", "", text).lower().replace("alphanan", "")
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert "<script" not in text


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    before = (folder / "report.html").read_bytes()
    assert write_report(folder) == folder / "report.html"
    assert (folder / "report.html").read_bytes() == before


def test_without_arrays_the_figures_drop_out(folder: Path) -> None:
    import numpy as np

    np.savez(folder / "report_data.npz", nothing=np.zeros(1))
    text = write_trust_report(folder).read_text()
    assert '<section id="reliability"' not in text
    assert '<section id="sets"' in text


@pytest.mark.parametrize("damage", ["calibrations", "arrays", "schema"])
def test_damaged_files_are_named(folder: Path, damage: str) -> None:
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    if damage == "calibrations":
        summary["calibrations"] = {}
    if damage == "schema":
        summary["schema"] = 99
    if damage == "arrays":
        (folder / "report_data.npz").write_bytes(b"PK no")
    file.write_text(json.dumps(summary))
    with pytest.raises(StoreError, match=r"summary\.json|report_data\.npz"):
        write_trust_report(folder)


def test_names_from_outside_are_escaped(folder: Path) -> None:
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    summary["sets"]["test"]["title"] = "<script>alert(1)</script>"
    file.write_text(json.dumps(summary))
    assert "<script" not in write_trust_report(folder).read_text()


def test_the_terminals_table(once: Path) -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(trust_table(json.loads((once / "summary.json").read_text())))
    text = console.export_text()
    assert "temperature" in text
    assert "Permuted pixels" in text
    assert max(map(len, text.splitlines())) <= 110
