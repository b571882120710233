"""Whole fine-tuning trains a copy of the network for every episode: it is done in slices of episodes that are kept on disk.

A slice is a task of the engine, short enough to be lost, and each file is used again only under its own content key.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from fastmem.attacks.membership.few_shot import METHODS, Draw, EpisodeScores, make_learner, run_learner
from fastmem.attacks.membership.few_shot.fit import TEXT
from fastmem.data.transforms import normalise
from fastmem.engine import Task, content_key
from fastmem.models.language import LanguageModel, PooledLogits
from fastmem.studies.few_shot.job import Job
from fastmem.studies.few_shot.store import load_model, load_slice, save_slice, slice_path
from fastmem.studies.few_shot.task import build
from fastmem.studies.tensors import as_tensor
from fastmem.training import load_into

__all__ = ["SLICE_CODE", "cut", "is_sliced", "read_slice", "score_slice", "sweep_slices"]

#: What decides about a slice beside the model, as parts for :func:`fastmem.engine.code_version`.
SLICE_CODE = ("attacks/membership/few_shot", "models", "ops", "studies/few_shot/slices.py")
# Episodes of images, which take a tenth of a second to seconds each, and of text, which take a quarter of a minute.
_IMAGES, _TEXTS = 20, 2


def is_sliced(group: str) -> bool:
    """Whether the cell SUBJECT/METHOD/SHOTS is done in slices."""
    return METHODS[group.split("/")[1]].white_box


def cut(job: Job, group: str, targets: int, each: int) -> tuple[Task, ...]:
    """The slices of a cell: row ``target * each + i`` is episode i of a target."""
    step = _TEXTS if job.language is not None else _IMAGES
    return tuple(
        Task(group, tuple(range(target * each + first, target * each + min(first + step, each))))
        for target in range(targets)
        for first in range(0, each, step)
    )


def score_slice(job: Job, task: Task, target: int, draw: Draw, code: str) -> None:
    """Scores the episodes of a slice, and keeps what they gave."""
    subject, method, _ = task.group.split("/")
    model = ("blind", 0) if subject == "blind" else ("pool", target)
    network = _network(job, *model).to(job.device)
    records = as_tensor(job.pool)
    if isinstance(network, LanguageModel):
        learner, inputs = make_learner(method, model=PooledLogits(network), schedule=TEXT), records.to(job.device)
    else:
        learner = make_learner(method, model=network)
        inputs = normalise(records, as_tensor(job.mean), as_tensor(job.std)).to(job.device)
    save_slice(job, task, _key(job, task, target, draw, code), run_learner(learner, inputs, draw))


def read_slice(job: Job, task: Task, target: int, draw: Draw, code: str) -> EpisodeScores | None:
    """What a slice gave, or None if it is absent, damaged or of another key."""
    return load_slice(job, task, _key(job, task, target, draw, code))


def sweep_slices(job: Job, tasks: tuple[Task, ...]) -> None:
    """Removes the files that none of these tasks writes."""
    expected = {slice_path(job, task) for task in tasks}
    for path in _files(job):
        if path not in expected:
            path.unlink()


def _files(job: Job) -> Iterator[Path]:
    return (Path(job.folder) / "episodes").glob("*.safetensors")


def _key(job: Job, task: Task, target: int, draw: Draw, code: str) -> str:
    subject = task.group.split("/")[0]
    group, row = ("blind", 0) if subject == "blind" else ("pool", target)
    return content_key(
        task=task.group,
        rows=task.rows,
        answers=job.groups[group].answer_keys[row],
        draw={name: getattr(draw, name) for name in Draw.__dataclass_fields__},
        device=job.device,
        torch=str(torch.__version__),
        code=code,
    )


def _network(job: Job, group: str, row: int) -> nn.Module:
    found = load_model(job, group, row)
    assert found is not None, "the run has made sure of it"
    network = build(job, seed=0)
    load_into(network, found[0])
    return network.eval()
