"""A real audit that takes a second: few digits, few models, few attacks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmem.studies.audit import AuditConfig, run_audit
from fastmem.training import Recipe

SMALL: dict[str, Any] = {
    "pool": 80,
    "population": 40,
    "bystanders": 40,
    "model_args": {"hidden": [16]},
    "num_models": 8,
    "null_models": 8,
    "recipe": Recipe(epochs=5),
    "attacks": "loss,lira_online,rmia_online",
    "workers": 1,
}


@pytest.fixture
def small_audit(tmp_path: Path) -> Callable[..., AuditConfig]:
    """Makes the config of a small audit in ``tmp_path / "run"``; keywords change it."""

    def make(**changes: Any) -> AuditConfig:
        return AuditConfig(**{"out": tmp_path / "run", **SMALL, **changes})

    return make


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small audit, for reading only."""
    return run_audit(AuditConfig(out=tmp_path_factory.mktemp("finished") / "run", **SMALL)).run_dir


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A copy of that folder, where ``small_audit`` looks for it."""
    return shutil.copytree(finished_once, tmp_path / "run")


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, which takes as long as all the rest."""
    monkeypatch.setattr("fastmem.studies.audit.run.write_audit_report", lambda folder: None)


@pytest.fixture
def run_contents() -> Callable[[Path], dict[str, bytes]]:
    """Reads everything of a run's folder that must not depend on where and how often interrupted it ran."""

    def contents(folder: Path) -> dict[str, bytes]:
        files = [folder / "scores.csv", folder / "report_data.npz", *sorted((folder / "models").iterdir())]
        files += sorted(path for path in (folder / "signals.zarr").rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return contents
