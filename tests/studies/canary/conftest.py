"""A real canary study that takes a second: few digits, few pairs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmem.studies.canary import CanaryConfig, run_canary
from fastmem.training import Recipe

SMALL: dict[str, Any] = {
    "pool": 80,
    "held_out": 40,
    "validation": 40,
    "model_args": {"hidden": [16]},
    "nulls": 6,
    "level": 0.2,
    "canaries": 2,
    "copies": "1,3",
    "controls": 3,
    "images": 20,
    "variants": "log_ratio,kl_contrast,prob_diff_max",
    "recipe": Recipe(epochs=5),
    "workers": 1,
}


@pytest.fixture
def small_canary(tmp_path: Path) -> Callable[..., CanaryConfig]:
    """Makes the config of a small study in ``tmp_path / "run"``; keywords change it."""

    def make(**changes: Any) -> CanaryConfig:
        return CanaryConfig(**{"out": tmp_path / "run", **SMALL, **changes})

    return make


@pytest.fixture(scope="session")
def finished_canary_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small study, for reading only."""
    return run_canary(CanaryConfig(out=tmp_path_factory.mktemp("finished") / "run", **SMALL)).run_dir


@pytest.fixture
def finished_canary(finished_canary_once: Path, tmp_path: Path) -> Path:
    """A copy of that folder, where ``small_canary`` looks for it."""
    return shutil.copytree(finished_canary_once, tmp_path / "run")


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, which takes as long as all the rest."""
    monkeypatch.setattr("fastmem.studies.canary.run.write_canary_report", lambda folder: None)
