"""The page of a rewinding study is drawn from its files alone, whatever is missing from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fastmem.errors import StoreError
from fastmem.report.redraw import write_report
from fastmem.report.rewind import rewind_table, write_rewind_report
from fastmem.studies.rewind import RewindConfig, run_rewind
from fastmem.training import Recipe


@pytest.fixture(scope="session")
def rewind_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = RewindConfig(
        out=tmp_path_factory.mktemp("report") / "run",
        pool=60,
        reference_size=20,
        validation=10,
        test=40,
        model_args={"hidden": [8]},
        num_models=6,
        recipe=Recipe(epochs=3, batch_size=16),
        tune_epochs=1,
        score_steps=2,
        fractions=(0.01, 0.05),
        entangled=1,
        methods="cwrf,tune_only,random,zero_tune",
        attacks="lira_online_fixed,loss",
        workers=1,
    )
    return run_rewind(config).run_dir


@pytest.fixture
def run_dir(rewind_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(rewind_run, tmp_path / "run")


def _change(run_dir: Path, **entries: object) -> None:
    file = run_dir / "summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_the_same_files_give_the_same_bytes(run_dir: Path) -> None:
    before = (run_dir / "report.html").read_bytes()
    assert write_report(run_dir).read_bytes() == before


def test_it_shows_every_arm_claim_and_figure(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text()
    summary = json.loads((run_dir / "summary.json").read_text())
    for arm in summary["arms"].values():
        assert f"{arm['attacks']['lira_online_fixed']['auc']:.3f}" in text
    for claim in summary["ordering"]:
        assert claim["claim"] in text
    for name in ("trade-off-auc", "trade-off-0-001", "roc-before-after", "strip", "cloud"):
        assert f'id="{name}-' in text
    assert "<script" not in text


def test_what_is_missing_is_left_out(run_dir: Path) -> None:
    _change(run_dir, entanglement={}, ordering=None, warnings=[])
    np.savez(run_dir / "report_data.npz", nothing=np.zeros(1))
    text = write_rewind_report(run_dir).read_text()
    assert 'id="strip-' not in text
    assert "trade-off-auc" in text


def test_names_from_outside_are_text(run_dir: Path) -> None:
    _change(run_dir, answer="<script>alert(1)</script>")
    assert "<script>" not in write_rewind_report(run_dir).read_text()


def test_damaged_files_are_named(run_dir: Path) -> None:
    _change(run_dir, arms={})
    with pytest.raises(StoreError, match="arms"):
        write_rewind_report(run_dir)
    _change(run_dir, arms={"none": {"title": "x"}}, ordering=[3])
    with pytest.raises(StoreError, match="ordering"):
        write_rewind_report(run_dir)
    _change(run_dir, ordering=[])
    np.savez(run_dir / "report_data.npz", cloud=np.zeros(3))
    with pytest.raises(StoreError, match="cloud"):
        write_rewind_report(run_dir)


def test_the_terminal_table_fits(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    Console(width=110).print(rewind_table(summary))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110
    assert sum("Rewound, frozen" in line for line in lines) == 2
