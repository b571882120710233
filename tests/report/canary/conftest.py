"""A stored canary study to draw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_STORED = Path(__file__).parents[1] / "fixtures" / "canary_schema_1"


@pytest.fixture
def canary_dir(tmp_path: Path) -> Path:
    """A private copy of the stored run of schema 1."""
    return Path(shutil.copytree(_STORED, tmp_path / "run"))


@pytest.fixture
def change(canary_dir: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """Change the copy's summary by a function and get its folder."""

    def apply(edit: Callable[[dict[str, Any]], None]) -> Path:
        file = canary_dir / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8"))
        edit(summary)
        file.write_text(json.dumps(summary), encoding="utf-8")
        return canary_dir

    return apply


@pytest.fixture
def own_dir(canary_dir: Path, change: Callable[..., Path]) -> Path:
    """The copy as if a model of the user's own had been scored."""

    def own(summary: dict[str, Any]) -> None:
        entry = {
            "title": "log-ratio, label known",
            "value": 0.8,
            "null": {"mean": 0.1, "std": 0.2},
            "rank_p": 0.05,
            "control_rank_p": 0.25,
            "n_null": 6,
            "n_controls": 3,
            "sensitivity": {"t": 0.001, "null_share": {"share": 0.5, "k": 3, "n": 6, "low": 0.12, "high": 0.88}},
        }
        del summary["cells"]
        summary["own"] = {"model": "model.safetensors", "variants": {"log_ratio": entry}}

    file = canary_dir / "report_data.npz"
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files if not name.startswith(("canary", "control_s"))}
    arrays |= {"own_scores": np.arange(12.0).reshape(3, 4), "null_scores": np.zeros((1, 3, 6))}
    np.savez(file, **arrays)
    return change(own)
