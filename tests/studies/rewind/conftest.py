"""A real rewinding study that takes seconds: few digits, six models, a small perceptron."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmem.studies.rewind import RewindConfig, run_rewind
from fastmem.training import Recipe

SMALL: dict[str, Any] = {
    "pool": 80,
    "reference_size": 30,
    "validation": 20,
    "test": 60,
    "model_args": {"hidden": [12]},
    "num_models": 6,
    "recipe": Recipe(epochs=8, batch_size=16),
    "tune_epochs": 2,
    "score_steps": 4,
    "fractions": (0.01, 0.05),
    "control_fraction": 0.05,
    "entangled": 2,
    "attacks": "lira_online_fixed,loss",
    "workers": 1,
}


@pytest.fixture
def small_rewind(tmp_path: Path) -> Callable[..., RewindConfig]:
    """Makes the config of a small study in ``tmp_path / "run"``; keywords change it."""

    def make(**changes: Any) -> RewindConfig:
        return RewindConfig(**{"out": tmp_path / "run", **SMALL, **changes})

    return make


@pytest.fixture(scope="session")
def rewind_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small study, for reading only."""
    return run_rewind(RewindConfig(out=tmp_path_factory.mktemp("rewind") / "run", **SMALL)).run_dir


@pytest.fixture
def finished_rewind(rewind_once: Path, tmp_path: Path) -> Path:
    """A copy of that folder, where ``small_rewind`` looks for it."""
    return shutil.copytree(rewind_once, tmp_path / "run")


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, which takes as long as all the rest."""
    monkeypatch.setattr("fastmem.studies.rewind.run.write_rewind_report", lambda folder: None)
