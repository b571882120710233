"""Models, their answers and slices of episodes on disk: each file whole or absent, and used again only under its own content key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.attacks.membership.few_shot import EpisodeScores
from fastmem.engine import Task, content_key
from fastmem.errors import StoreError
from fastmem.studies.few_shot.job import Job
from fastmem.training import load_checkpoint, save_checkpoint

__all__ = [
    "FOLDERS",
    "Answers",
    "load_answers",
    "load_model",
    "load_slice",
    "missing_rows",
    "save_answers",
    "save_model",
    "save_slice",
    "slice_path",
    "sweep",
]

FOLDERS = ("models", "answers", "episodes")
_METADATA = "fastmem_few_shot"
_PARAMETER = "parameter:"


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model said.

    Args:
        arrays: Statistics by name, a row a record; ``features:LAYER`` where features were read.
        seconds: Time that training took.
    """

    arrays: dict[str, np.ndarray]
    seconds: float


def save_model(job: Job, group: str, row: int, state: Mapping[str, Tensor], seconds: float) -> None:
    """Writes a model's weights. The time is kept apart, so that equal runs give equal bytes."""
    _save(_path(job, "models", group, row), state, {"key": job.groups[group].keys[row]})
    _path(job, "models", group, row).with_suffix(".json").write_text(json.dumps({"seconds": seconds}))


def load_model(job: Job, group: str, row: int) -> tuple[dict[str, Tensor], float] | None:
    """A model's weights and the seconds its training took, or None if it is absent, damaged or of another key."""
    path = _path(job, "models", group, row)
    found = _load(path, job.groups[group].keys[row])
    if found is None:
        return None
    try:
        seconds = float(json.loads(path.with_suffix(".json").read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        seconds = float("nan")
    return found[0], seconds


def save_answers(job: Job, group: str, row: int, answers: Answers) -> None:
    """Writes what a model said."""
    arrays = {name: np.ascontiguousarray(values) for name, values in answers.arrays.items()}
    about = {"key": job.groups[group].answer_keys[row], "seconds": answers.seconds}
    _save_arrays(_path(job, "answers", group, row), arrays, about)


def load_answers(job: Job, group: str, row: int) -> Answers | None:
    """What a model said, or None if it is absent, damaged or of another key."""
    found = _load_arrays(_path(job, "answers", group, row), job.groups[group].answer_keys[row])
    return None if found is None else Answers(found[0], float(found[1]["seconds"]))


def save_slice(job: Job, task: Task, key: str, scores: EpisodeScores) -> None:
    """Writes what the episodes of a slice gave."""
    arrays = {"query": scores.query, "query_members": scores.query_members}
    if scores.held is not None and scores.held_members is not None:
        arrays |= {"held": scores.held, "held_members": scores.held_members}
    arrays |= {f"{_PARAMETER}{name}": values for name, values in scores.params.items()}
    arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    _save_arrays(slice_path(job, task), arrays, {"key": key, "seconds": scores.seconds})


def load_slice(job: Job, task: Task, key: str) -> EpisodeScores | None:
    """What the episodes of a slice gave, or None if the file is absent, damaged or of another key."""
    found = _load_arrays(slice_path(job, task), key)
    if found is None:
        return None
    arrays, about = found
    return EpisodeScores(
        arrays["query"],
        arrays["query_members"],
        arrays.get("held"),
        arrays.get("held_members"),
        {name.removeprefix(_PARAMETER): values for name, values in arrays.items() if name.startswith(_PARAMETER)},
        float(about["seconds"]),
    )


def slice_path(job: Job, task: Task) -> Path:
    """The file of a slice."""
    return Path(job.folder) / "episodes" / f"{task.group.replace('/', '-')}-{task.rows[0]:05d}.safetensors"


def missing_rows(job: Job) -> dict[str, list[int]]:
    """The models of each group whose weights or answers are not there."""
    return {
        name: [
            row
            for row in range(len(group.seeds))
            if load_answers(job, name, row) is None or load_model(job, name, row) is None
        ]
        for name, group in job.groups.items()
    }


def sweep(job: Job) -> None:
    """Removes the models and answers that this job does not have."""
    for folder in ("models", "answers"):
        expected = {
            _path(job, folder, name, row) for name, group in job.groups.items() for row in range(len(group.seeds))
        }
        for path in (Path(job.folder) / folder).glob("*.safetensors"):
            if path not in expected:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)


def _path(job: Job, folder: str, group: str, row: int) -> Path:
    return Path(job.folder) / folder / f"{group}-{row:04d}.safetensors"


def _save(path: Path, state: Mapping[str, Tensor], about: dict[str, Any]) -> None:
    # One entry: safetensors writes several in an order of its own, and equal runs should give equal bytes.
    save_checkpoint(path, state, {_METADATA: json.dumps(about)})


def _save_arrays(path: Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    _save(
        path,
        {name: torch.from_numpy(values) for name, values in arrays.items()},
        {**about, "sha256": content_key(arrays=arrays)},
    )


def _load_arrays(path: Path, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    found = _load(path, key)
    if found is None:
        return None
    arrays = {name: values.numpy() for name, values in found[0].items()}
    return (arrays, found[1]) if content_key(arrays=arrays) == found[1].get("sha256") else None


def _load(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    try:
        state, metadata = load_checkpoint(path)
    except StoreError:
        return None
    about = json.loads(metadata.get(_METADATA, "{}"))
    return (state, about) if about.get("key") == key else None
