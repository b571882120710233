"""A real reconstruction study that takes seconds: few digits, a narrow network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmem.studies.reconstruct import ReconstructConfig, run_reconstruct

SMALL: dict[str, Any] = {"n": 4, "held_out": 40, "hidden": (60, 60), "iterations": 60, "victims": 2, "device": "cpu"}


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., ReconstructConfig]:
    """Makes the config of a small study in ``tmp_path / "run"``; keywords change it."""

    def make(**changes: Any) -> ReconstructConfig:
        return ReconstructConfig(**{"out": tmp_path / "run", **SMALL, **changes})

    return make


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small study, for reading only."""
    return run_reconstruct(ReconstructConfig(out=tmp_path_factory.mktemp("reconstruct") / "run", **SMALL)).run_dir


@pytest.fixture
def finished(once: Path, tmp_path: Path) -> Path:
    """A copy of that folder, where ``small`` looks for it."""
    return shutil.copytree(once, tmp_path / "run")


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing."""
    monkeypatch.setattr("fastmem.studies.reconstruct.run.write_reconstruct_report", lambda folder: None)
