"""A real trust study that takes seconds: few digits, three pairs, a generator of a few steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmem.studies.trust import TrustConfig, run_trust
from fastmem.training import Recipe
from fastmem.training.gan import GanRecipe

SMALL: dict[str, Any] = {
    "pool": 80,
    "test": 60,
    "held_out": 40,
    "model_args": {"hidden": [16]},
    "num_models": 6,
    "targets": 2,
    "recipe": Recipe(optimizer="adam", schedule="constant", epochs=8),
    "gan": GanRecipe(steps=6, batch_size=8, width=4, latent=8, grids=2, checkpoint_every=3),
    "calibrations": "label_smoothing,temperature,temperature_fit,ensemble",
    "ensemble_size": 2,
    "false_members": 1,
    "workers": 1,
}


@pytest.fixture
def small_trust(tmp_path: Path) -> Callable[..., TrustConfig]:
    """Makes the config of a small study in ``tmp_path / "run"``; keywords change it."""

    def make(**changes: Any) -> TrustConfig:
        return TrustConfig(**{"out": tmp_path / "run", **SMALL, **changes})

    return make


@pytest.fixture(scope="session")
def trust_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small study, for reading only."""
    return run_trust(TrustConfig(out=tmp_path_factory.mktemp("trust") / "run", **SMALL)).run_dir


@pytest.fixture
def finished_trust(trust_once: Path, tmp_path: Path) -> Path:
    """A copy of that folder, where ``small_trust`` looks for it."""
    return shutil.copytree(trust_once, tmp_path / "run")


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, which takes as long as all the rest."""
    monkeypatch.setattr("fastmem.studies.trust.run.write_trust_report", lambda folder: None)
