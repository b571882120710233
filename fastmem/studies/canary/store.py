"""A model's scores and its weights on disk: each file whole or absent, and used again only under its own content key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.engine import content_key
from fastmem.errors import StoreError
from fastmem.studies.canary.job import Cohort, Job, Member
from fastmem.training import load_checkpoint, save_checkpoint

__all__ = ["FOLDERS", "Row", "load_model", "load_row", "missing_rows", "save_model", "save_row", "sweep"]

FOLDERS = ("rows", "models")
_METADATA = "fastmem_canary"


@dataclass(frozen=True, eq=False)
class Row:
    """What one model said about the marks.

    Args:
        scores: float64 [V, L, 1 + G]: a variant, a label, and the mark or a control.
        sensitivity: p-values of the image-level tests of the mark, float64 [V, L, 2] (t, Mann-Whitney).
        accuracy: On its own records and on held-out ones, float64 [2].
    """

    scores: np.ndarray
    sensitivity: np.ndarray
    accuracy: np.ndarray


def save_row(job: Job, cohort: Cohort, member: int, row: Row) -> None:
    """Writes a model's scores."""
    arrays = vars(row)
    about = {"key": cohort.row_keys[member], "sha256": content_key(**arrays)}
    _save(_path(job, "rows", cohort.members[member]), {name: torch.from_numpy(a) for name, a in arrays.items()}, about)


def load_row(job: Job, cohort: Cohort, member: int) -> Row | None:
    """A model's scores, or None if they are absent, damaged or of another key."""
    found = _load(_path(job, "rows", cohort.members[member]), cohort.row_keys[member])
    if found is None:
        return None
    state, about = found
    arrays = {name: value.numpy() for name, value in state.items()}
    return Row(**arrays) if content_key(**arrays) == about.get("sha256") else None


def save_model(job: Job, cohort: Cohort, member: int, state: dict[str, Tensor], train_accuracy: float) -> None:
    """Writes a model's weights."""
    about = {"key": cohort.keys[member], "train_accuracy": train_accuracy}
    _save(_path(job, "models", cohort.members[member]), state, about)


def load_model(job: Job, cohort: Cohort, member: int) -> tuple[dict[str, Tensor], float] | None:
    """A model's weights and training accuracy, or None if they are absent, damaged or of another key."""
    found = _load(_path(job, "models", cohort.members[member]), cohort.keys[member])
    return None if found is None else (found[0], float(found[1]["train_accuracy"]))


def missing_rows(job: Job, cohort: Cohort) -> list[int]:
    """The models whose scores are not there, or whose saved copy is not."""
    return [
        member
        for member in range(len(cohort.members))
        if load_row(job, cohort, member) is None or (job.save_models and load_model(job, cohort, member) is None)
    ]


def sweep(job: Job) -> bool:
    """Removes the scores and models of another config; returns whether there were any that this one replaces."""
    members = [(cohort, place) for cohort in job.cohorts.values() for place in range(len(cohort.members))]
    replaced = False
    for folder in FOLDERS:
        expected = {_path(job, folder, cohort.members[place]) for cohort, place in members}
        for path in (Path(job.folder) / folder).glob("*.safetensors"):
            if path not in expected or (folder == "models" and not job.save_models):
                path.unlink()
                replaced = True
    return replaced


def _path(job: Job, folder: str, member: Member) -> Path:
    return Path(job.folder) / folder / f"{member.name}.safetensors"


def _save(path: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    # One entry: safetensors writes several in an order of its own, and equal runs should give equal bytes.
    save_checkpoint(path, state, {_METADATA: json.dumps(about)})


def _load(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    try:
        state, metadata = load_checkpoint(path)
    except StoreError:
        return None
    about = json.loads(metadata.get(_METADATA, "{}"))
    return (state, about) if about.get("key") == key else None
